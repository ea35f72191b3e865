"""The lines of metrics.jsonl: which steps have one, and the speed that it gives."""

import json
import time
import types

import pytest

from dupr_tf.training.callbacks import MetricsLog


class Clock:
    """A clock that moves only when it is told to."""

    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    fake = types.SimpleNamespace(perf_counter=clock, monotonic=time.monotonic)
    monkeypatch.setattr("dupr_tf.training.callbacks.time", fake)
    return clock


def lines_of(run, clock, first_step=0, last_step=5, every=2, pause=0.0):
    """The lines of steps of 1, 2, 3, ... seconds with pauses between them."""
    metrics = MetricsLog(run, first_step, last_step, steps_per_epoch=5, batch_size=8, every=every)
    for step in range(first_step + 1, last_step + 1):
        metrics.on_train_batch_begin(0)
        clock.now += step
        metrics.on_train_batch_end(0, {"loss": 1.0})
        clock.now += pause
    metrics.close()
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def test_last_step_has_a_line_of_its_own(tmp_path, clock):
    assert [line["step"] for line in lines_of(tmp_path, clock)] == [2, 4, 5]


def test_speed_is_that_since_the_line_before(tmp_path, clock):
    lines = lines_of(tmp_path, clock)
    assert [line["images_per_second"] for line in lines] == pytest.approx([16 / 3, 16 / 7, 8 / 5])
    assert [line["step_share"] for line in lines] == pytest.approx([1, 1, 1])


def test_pauses_between_steps_lower_the_step_share(tmp_path, clock):
    lines = lines_of(tmp_path, clock, pause=1.0)  # a pause falls into the line after it
    assert [line["images_per_second"] for line in lines] == pytest.approx([16 / 4, 16 / 9, 8 / 6])
    assert [line["step_share"] for line in lines] == pytest.approx([3 / 4, 7 / 9, 5 / 6])


def test_resumed_run_measures_its_own_steps_only(tmp_path, clock):
    lines_of(tmp_path, clock, last_step=4)
    lines = lines_of(tmp_path, clock, first_step=2, last_step=5)
    assert [line["step"] for line in lines] == [2, 4, 5]  # step 4 of the first start is dropped
    assert [line["images_per_second"] for line in lines[1:]] == pytest.approx([16 / 7, 8 / 5])
