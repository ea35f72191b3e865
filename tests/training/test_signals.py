"""Tests of signals during a run: which ones are handled, and which keep their behaviour."""

import os
import signal

import pytest

from dupr_tf.errors import RunInterrupted
from dupr_tf.training.callbacks import StopOnSignal
from dupr_tf.training.signals import noted_signals


@pytest.fixture
def hangup():
    """Restores the previous handler of SIGHUP."""
    before = signal.getsignal(signal.SIGHUP)
    yield signal.SIGHUP
    signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT", "SIGHUP"])
def test_signal_saves_and_ends_the_run(name, hangup):
    signal.signal(hangup, signal.SIG_DFL)  # `nohup pytest` ignores it
    number, saved = getattr(signal, name), []
    checkpoints = type("Checkpoints", (), {"save": lambda self: saved.append(True)})()
    with noted_signals() as received:
        stop = StopOnSignal(received, checkpoints)
        stop.on_step(1, {})
        os.kill(os.getpid(), number)
        with pytest.raises(RunInterrupted) as ended:
            stop.on_step(2, {})
    assert saved == [True] and (ended.value.code, ended.value.step) == (128 + number, 2)


def test_hangup_stays_ignored_under_nohup(hangup):
    signal.signal(hangup, signal.SIG_IGN)
    with noted_signals() as received:
        os.kill(os.getpid(), hangup)
        assert received == [] and signal.getsignal(hangup) is signal.SIG_IGN
