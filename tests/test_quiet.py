"""Tests of the quiet import of TensorFlow. A stand-in named tensorflow writes to descriptor 2, as C++ does."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
NOTES = (
    "WARNING: All log messages before absl::InitializeLog() is called are written to STDERR",
    "I0000 00:00:1795905512.558961   26184 port.cc:153] oneDNN custom operations are on.",
    "2026-11-28 10:00:00.123456: I tensorflow/core/util/port.cc:153] oneDNN custom operations are on.",
)
ERROR = "E0000 00:00:1795905512.558961   26184 cuda.cc:1] failed call to cuInit"


def stderr_of_import(folder, ending=""):
    """Returns the exit code and the lines on standard error of a process that imports the stand-in."""
    written = "\n".join((*NOTES, ERROR, "plain\n")).encode()
    (folder / "tensorflow.py").write_text(f"import os\nos.write(2, {written!r})\n{ending}\n")
    code = "from dupr_tf.quiet import silence_libraries; silence_libraries(); import tensorflow"
    path = os.pathsep.join([str(folder), str(ROOT)])
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    return done.returncode, done.stderr.splitlines()


def test_import_prints_errors_and_no_notes(tmp_path):
    assert stderr_of_import(tmp_path) == (0, [ERROR, "plain"])


@pytest.mark.parametrize("ending, code", [
    ("raise ImportError('no library')", 1),
    ("os.abort()", -signal.SIGABRT),
    ("os.kill(os.getpid(), 9)", -signal.SIGKILL),
])  # fmt: skip
def test_failed_import_prints_everything(tmp_path, ending, code):
    got, lines = stderr_of_import(tmp_path, ending)
    assert got == code and {*NOTES, ERROR} <= set(lines)


def test_ctrl_c_during_import_prints_no_notes(tmp_path):
    _, lines = stderr_of_import(tmp_path, "raise KeyboardInterrupt")
    assert ERROR in lines and not set(NOTES) & set(lines)


def test_later_messages_reach_stderr(tmp_path):
    code, lines = stderr_of_import(tmp_path, "import atexit; atexit.register(os.write, 2, b'I0000 later')")
    assert code == 0 and lines[-1] == "I0000 later"
