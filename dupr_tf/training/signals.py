"""Handles signals that stop a run: the step is finished and saved, and the same command resumes the run."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator

from dupr_tf.errors import RunInterrupted
from dupr_tf.training.callbacks import StepCallback

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


class StopOnSignal(StepCallback):
    """Saves and raises `RunInterrupted` after the step in which a signal came.

    Args:
        received: list from `noted_signals`.
        checkpoints: checkpoints of the run.
        first_step: step from which the run starts.
    """

    def __init__(self, received: list[int], checkpoints, first_step: int = 0):
        super().__init__(first_step)
        self.received, self.checkpoints = received, checkpoints

    def on_step(self, step, logs):
        if self.received:
            self.checkpoints.save()
            raise RunInterrupted(self.received[0], step)
