"""Records signals that stop a run, so that it can save its state first. Imports no TensorFlow."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator

SIGHUP = getattr(signal, "SIGHUP", None)  # Windows has none


@contextlib.contextmanager
def noted_signals() -> Iterator[list[int]]:
    """Records SIGTERM, SIGINT and SIGHUP in the list it yields, inside this context. They have no other effect.

    SIGHUP comes when the terminal is closed. Under `nohup` it is ignored, and stays so. Outside the main thread,
    Python allows no handlers, so signals keep their behaviour.
    """
    received: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield received
        return
    numbers = [signal.SIGTERM, signal.SIGINT]
    if SIGHUP is not None and signal.getsignal(SIGHUP) is not signal.SIG_IGN:
        numbers.append(SIGHUP)
    before = {number: signal.signal(number, lambda number, _frame: received.append(number)) for number in numbers}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
