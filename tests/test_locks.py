"""Tests of locks: an output belongs to one process, a second one is refused, and a dead process holds nothing."""

import json
import os
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from dupr_tf.errors import RunFailed
from dupr_tf.files import write_whole
from dupr_tf.locks import LOCK_FILE, locked
from tests.refusals import refusal

HOLD = """
import sys, time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from dupr_tf.locks import locked
with locked(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


def enter(folder):
    with locked(folder):
        pass


@pytest.fixture
def holder(tmp_path):
    """Starts a process that locks a folder whose name has brackets and blanks."""
    folder = tmp_path / "runs" / "[a] é"
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(folder)], stdout=subprocess.PIPE)
    assert process.stdout.readline() == b"held\n"
    yield process, folder
    process.kill()
    process.wait()
    process.stdout.close()


def test_second_process_is_refused_until_the_first_dies(holder):
    process, folder = holder
    error = refusal(enter, folder)
    assert error.field == "--output" and f"process {process.pid} on " in error.problem
    assert json.loads((folder / LOCK_FILE).read_text())["process"] == process.pid  # a contender changes nothing
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert (folder / LOCK_FILE).exists()
    enter(folder)
    assert not (folder / LOCK_FILE).exists()


def test_damaged_lock_still_holds(holder):
    _, folder = holder
    for content in (b"", b"[" * 900, b"\xff", b"{}", b"x" * 9999):
        (folder / LOCK_FILE).write_bytes(content)
        refusal(enter, folder)


def test_lock_is_acquired_once_per_process(tmp_path):
    with locked(tmp_path / "a"):
        with locked(tmp_path / "b" / ".." / "a"):
            assert (tmp_path / "a" / LOCK_FILE).exists()
        assert (tmp_path / "a" / LOCK_FILE).exists()
    assert not (tmp_path / "a").exists()


def test_lock_refuses_another_thread(tmp_path):
    with locked(tmp_path / "a"), ThreadPoolExecutor(1) as pool:
        error = refusal(pool.submit(enter, tmp_path / "a").result)
    assert f"process {os.getpid()} on " in error.problem


def test_empty_folders_are_removed_and_others_kept(tmp_path):
    with locked(tmp_path / "a" / "b"):
        (tmp_path / "a" / "result").write_text("x")
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["a", "result"]
    with locked(tmp_path / "c" / "out.keras", beside=True):
        assert [path.name for path in (tmp_path / "c").iterdir()] == [".out.keras.lock"]
    assert not (tmp_path / "c").exists()


def test_failed_write_is_one_line(tmp_path):
    (tmp_path / "file").write_text("x")
    folder = tmp_path / "run"

    def write(break_it):
        with locked(folder):
            break_it()
            write_whole(folder / "a" / "b.json", "x")

    def replace_by_file():
        (folder / "a").write_text("x")

    def fill_disk():
        Path("/dev/full").write_text("x" * 100_000)

    for failing in (replace_by_file, fill_disk):
        with pytest.raises(RunFailed) as error:
            write(failing)
        assert "\n" not in str(error.value) and error.value.code == 1
    for place in (tmp_path / "file", tmp_path / "file" / "run", Path("/proc/run"), tmp_path / ("x" * 300)):
        with pytest.raises(RunFailed):
            enter(place)


def test_folder_removed_while_locked_is_named(tmp_path):
    folder = tmp_path / "run"
    with pytest.raises(RunFailed) as error, locked(folder):
        (folder / LOCK_FILE).unlink()
        folder.rmdir()
        (folder / "metrics.jsonl").write_text("x")
    assert str(folder) in str(error.value) and not os.path.lexists(folder)
