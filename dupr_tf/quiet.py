"""Imports TensorFlow quietly, which writes to standard error before its log level takes effect.

While TensorFlow loads, standard error (the descriptor, so that C++ is included) is a pipe to a second process. Once
TensorFlow is loaded, that process prints the lines that are neither notes nor warnings. If the import fails, or a
signal kills this process, it prints all lines. The second process runs this file and imports only the standard library.
"""

from __future__ import annotations

import contextlib
import logging
import os
import subprocess
import sys
from collections.abc import Iterator

LIBRARIES = ("absl", "tensorflow", "tf2onnx", "matplotlib", "grain")
# A note or warning of absl, such as "I0000 00:00:17… 26184 port.cc:153] oneDNN …", or in TensorFlow's older form.
NOTE = rb"[IW]\d{4} |WARNING: All log messages before absl|\d{4}-\d\d-\d\d [\d:.]+: [IW] "
LOADED = b"\0loaded\n"  # the last line of the pipe if all went well


def silence_libraries(gpu: bool = True) -> None:
    """Keeps all but the errors of TensorFlow, tf2onnx, absl, oneDNN, Grain and matplotlib from standard error.

    Args:
        gpu: log C++ errors after the import. On a CPU they are hidden, because oneDNN logs each int64 operation as an
            error. A real failure there raises an exception.
    """
    for library in LIBRARIES:
        logging.getLogger(library).setLevel(logging.ERROR)
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2" if gpu else "3")  # errors, or fatal errors
    from dupr_tf.around_import import install  # the second process, which runs this file, has no package

    install(("tensorflow",), lambda _: held_stderr())


@contextlib.contextmanager
def held_stderr() -> Iterator[None]:
    """Holds back the text written to standard error inside this context.

    At its end, everything but notes is printed; after an error or a fatal signal, everything is. Process 1 of a
    container holds nothing back, because its end stops all other processes. Ctrl-C is not an error.
    """
    if os.name != "posix" or os.getpid() == 1:
        yield
        return
    try:
        stderr = os.dup(2)
        command = [sys.executable, "-I", "-S", __file__]
        holder = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=stderr, start_new_session=True, bufsize=0)
    except OSError:  # standard error is closed, or no process can be started
        yield
        return
    os.dup2(holder.stdin.fileno(), 2)
    message = b""
    try:
        yield
        message = LOADED
    except KeyboardInterrupt:
        message = LOADED
        raise
    finally:
        if sys.stderr is not None:
            sys.stderr.flush()
        os.dup2(stderr, 2)
        os.close(stderr)
        with contextlib.suppress(BrokenPipeError):  # the holder was killed
            holder.stdin.write(message)
        holder.stdin.close()
        holder.wait()


def main() -> None:
    """Reads lines until the end or `LOADED`, then prints them. After `LOADED` it leaves out the notes."""
    import re

    lines, loaded = [], False
    for line in sys.stdin.buffer:
        if line.endswith(LOADED):
            line, loaded = line.removesuffix(LOADED), True
        lines.append(line)
        if loaded:
            break
    sys.stdout.buffer.write(b"".join(line for line in lines if not (loaded and re.match(NOTE, line))))


if __name__ == "__main__":
    main()
