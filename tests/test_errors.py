"""Classes of errors: what they print, and the exit code that each gives a command."""

import errno
import pickle

import pytest

from dupr_tf.errors import (
    RunFailed,
    RunInterrupted,
    UserError,
    UserErrors,
    WorkerLost,
    is_disk_full,
    raise_all,
    reporting_failed_writes,
)
from dupr_tf.files import write_whole

WRONG_EPOCHS = UserError("train.epochs", "Expected at least 1, received 0.", "Use 1.")
NO_FOLDER = UserError(None, "photos is not a folder.", "Pass a folder.")


def test_user_error_prints_field_problem_and_fix():
    assert str(WRONG_EPOCHS) == "train.epochs: Expected at least 1, received 0. Use 1."
    assert str(NO_FOLDER) == "photos is not a folder. Pass a folder."
    assert str(UserError("x", "It is missing.")) == "x: It is missing."


def test_user_errors_print_one_line_each_and_flatten():
    both = UserErrors([UserErrors([WRONG_EPOCHS]), NO_FOLDER])
    assert str(both).splitlines() == [str(WRONG_EPOCHS), str(NO_FOLDER)]
    assert both.errors == (WRONG_EPOCHS, NO_FOLDER)
    assert both.fields == ("train.epochs", None)
    assert isinstance(both, ValueError)


def test_raise_all_raises_one_or_several_or_nothing():
    raise_all([])
    with pytest.raises(UserError) as one:
        raise_all([NO_FOLDER])
    assert one.value is NO_FOLDER
    with pytest.raises(UserErrors) as several:
        raise_all([NO_FOLDER, WRONG_EPOCHS])
    assert several.value.errors == (NO_FOLDER, WRONG_EPOCHS)


@pytest.mark.parametrize("error", [WRONG_EPOCHS, UserErrors([WRONG_EPOCHS, NO_FOLDER])], ids=["one", "several"])
def test_user_errors_survive_pickling(error):
    copy = pickle.loads(pickle.dumps(error))
    assert (type(copy), str(copy), copy.fields) == (type(error), str(error), error.fields)


def test_exit_codes():
    codes = [WRONG_EPOCHS.code, UserErrors([WRONG_EPOCHS]).code, RunFailed().code, WorkerLost().code]
    assert codes == [2, 2, 1, 75]
    assert RunInterrupted(15, 7).code == 143
    assert "SIGTERM. Checkpoint 7 " in str(RunInterrupted(15, 7))
    assert isinstance(RunInterrupted(2, 0), KeyboardInterrupt)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
def test_full_disk_becomes_run_failed_that_names_the_file(number):
    with pytest.raises(RunFailed, match=r"out/ckpt"), reporting_failed_writes("out"):
        raise OSError(number, "no room", "out/ckpt")
    with pytest.raises(RunFailed, match="out"), reporting_failed_writes("out"):
        raise OSError(number, "no room")


@pytest.mark.parametrize("kind", [errno.EACCES, errno.EROFS, errno.ENOTDIR, errno.ENOENT, errno.EISDIR, errno.EIO])
def test_errors_of_the_system_become_run_failed(kind):
    with pytest.raises(RunFailed) as error, reporting_failed_writes("out"):
        raise OSError(kind, "no", "a\nb")
    assert "a\\nb" in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("error", [BrokenPipeError(), ConnectionResetError(), TimeoutError(), ValueError()])
def test_other_errors_are_not_converted(error):
    with pytest.raises(type(error)), reporting_failed_writes("out"):
        raise error


def test_disk_full_is_recognised_in_causes_and_texts():
    error = RuntimeError("h5py failed")
    error.__cause__ = OSError(errno.ENOSPC, "x")
    assert is_disk_full(error)
    assert is_disk_full(RuntimeError("ResourceExhausted: No space left on device"))
    assert not is_disk_full(PermissionError(errno.EACCES, "no"))


def test_failed_rename_names_the_final_file(tmp_path):
    (tmp_path / "record.json").mkdir()
    with pytest.raises(RunFailed, match=r"record\.json could not be written") as error, reporting_failed_writes("run"):
        write_whole(tmp_path / "record.json", "{}")
    assert ".tmp" not in str(error.value)
