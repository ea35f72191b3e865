"""Makes the standard streams accept any text, and lets training continue if the reader of its output ends."""

from __future__ import annotations

import codecs
import contextlib
import io
import os
import sys
from collections.abc import Iterator

from dupr_tf.text import replace_unencodable


def prepare_streams() -> None:
    """Opens closed standard streams on the null device, and replaces characters that a stream cannot encode."""
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:  # otherwise the next file that is opened would receive the printed text
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(number, "w" if number else "r", encoding="utf-8", closefd=False))
    codecs.register_error("dupr_tf", replace_unencodable)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="dupr_tf")


@contextlib.contextmanager
def lasting_streams() -> Iterator[None]:
    """Makes writes to standard output and error succeed in this context, also if their reader or terminal is gone."""
    before = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = (LastingStream(stream) for stream in before)
    try:
        yield
    finally:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        sys.stdout, sys.stderr = before


class LastingStream:
    """Wraps a text stream, and writes to the null device after the first failure.

    Args:
        stream: the stream to write to. Attributes other than `write` and `flush` are those of the stream.
    """

    def __init__(self, stream):
        self._stream = stream

    def __getattr__(self, name):
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        try:
            return self._stream.write(text)
        except OSError:  # a pipe without a reader (EPIPE), a closed terminal (EIO), a full disk
            silence(self._stream)
            return len(text)

    def flush(self) -> None:
        try:
            self._stream.flush()
        except OSError:
            silence(self._stream)


def silence(stream) -> None:
    """Sends all further text of a stream, and its buffer, to the null device."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, stream.fileno())
    os.close(null)
