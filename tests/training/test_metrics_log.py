"""Tests of a run's log: which steps have a line, its means and its speed, and TensorBoard after a resume."""

import json
import time
import types

import pytest
import tensorflow as tf

from dupr_tf.training.metrics_log import METRICS_FILE, MetricsLog, drop_lines_after, read_events, training_speed


class Clock:
    """A clock that only the test moves."""

    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    fake = types.SimpleNamespace(perf_counter=clock, monotonic=time.monotonic)
    monkeypatch.setattr("dupr_tf.training.metrics_log.time", fake)
    return clock


def lines_of(run, clock, first_step=0, last_step=5, every=2, pause=0.0):
    """Returns the lines of steps of 1, 2, 3, ... seconds with pauses between them."""
    metrics = MetricsLog(run, first_step, last_step, steps_per_epoch=5, batch_size=8, every=every)
    for step in range(first_step + 1, last_step + 1):
        metrics.on_train_batch_begin(0)
        clock.now += step
        metrics.on_train_batch_end(0, {"loss": 1.0})
        clock.now += pause
    metrics.close()
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def test_last_step_has_a_line(tmp_path, clock):
    assert [line["step"] for line in lines_of(tmp_path, clock)] == [2, 4, 5]


def test_speed_is_measured_since_the_previous_line(tmp_path, clock):
    lines = lines_of(tmp_path, clock)
    assert [line["images_per_second"] for line in lines] == pytest.approx([16 / 3, 16 / 7, 8 / 5])
    assert [line["step_share"] for line in lines] == pytest.approx([1, 1, 1])


def test_pauses_between_steps_lower_the_step_share(tmp_path, clock):
    lines = lines_of(tmp_path, clock, pause=1.0)  # a pause counts in the next line
    assert [line["images_per_second"] for line in lines] == pytest.approx([16 / 4, 16 / 9, 8 / 6])
    assert [line["step_share"] for line in lines] == pytest.approx([3 / 4, 7 / 9, 5 / 6])


def test_resumed_run_measures_its_own_steps_only(tmp_path, clock):
    lines_of(tmp_path, clock, last_step=4)
    lines = lines_of(tmp_path, clock, first_step=2, last_step=5)
    assert [line["step"] for line in lines] == [2, 4, 5]  # step 4 of the first start is dropped
    assert [line["images_per_second"] for line in lines[1:]] == pytest.approx([16 / 7, 8 / 5])


def logged(run, losses, first_step=0, every=4, state=None):
    """Logs the losses of the steps after `first_step`; returns {step: state} after each step."""
    metrics = MetricsLog(run, first_step, 12, steps_per_epoch=5, batch_size=8, every=every, state=state)
    states = {}
    for step, loss in enumerate(losses, first_step + 1):
        metrics.on_train_batch_begin(0)
        metrics.on_train_batch_end(0, {"loss": loss, "learning_rate": loss / 8})
        states[step] = json.loads(json.dumps(metrics.flush()))  # as a checkpoint stores it
    metrics.close()
    return states


LOSSES = [0.1 * step**1.5 for step in range(1, 13)]


def losses_of(run):
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return {line["step"]: (line["loss"].hex(), line["learning_rate"].hex()) for line in lines}


def test_number_is_the_mean_since_the_previous_line(tmp_path):
    logged(tmp_path, LOSSES)
    means = {step: float.fromhex(loss) for step, (loss, _) in losses_of(tmp_path).items()}
    assert means == pytest.approx({4: sum(LOSSES[:4]) / 4, 8: sum(LOSSES[4:8]) / 4, 12: sum(LOSSES[8:]) / 4})


def test_resume_between_two_lines_gives_the_same_means(tmp_path):
    logged(tmp_path / "whole", LOSSES)
    states = logged(tmp_path / "cut", LOSSES[:7])
    logged(tmp_path / "cut", LOSSES[6:], first_step=6, state=states[6])
    assert losses_of(tmp_path / "cut") == losses_of(tmp_path / "whole")


def test_lines_that_do_not_continue_a_run_are_left_out(tmp_path, caplog):
    path = tmp_path / METRICS_FILE
    path.write_text("".join(f'{{"step": {step}}}\n' for step in (1, 2, 3, 1, 2, 3, 4, 9)))  # two runs, or two starts
    drop_lines_after(path, 4)
    assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == [1, 2, 3, 4]
    assert caplog.messages == [f"3 lines of {path} will be left out: an earlier one has its step"]
    caplog.clear()
    drop_lines_after(path, 4)
    assert caplog.messages == []
    drop_lines_after(path, 0)
    assert path.read_text() == "" and "the training starts again, and its 4 lines" in caplog.text


def progress_of(tmp_path, capsys, logs_of_step, **settings):
    """Returns the lines that a run without a terminal prints."""
    metrics = MetricsLog(tmp_path, 0, 3, 5, 8, 1, **settings)
    for step in (1, 2, 3):
        metrics.on_train_batch_begin(0)
        metrics.on_train_batch_end(0, logs_of_step(step))
    metrics.close()
    return capsys.readouterr().err.splitlines()


def test_progress_shows_guessing_accuracies_and_trends(tmp_path, capsys):
    def logs(step):
        return {"loss": 20.0 - step, "accuracy/patch_P5": 0.1 * step, "accuracy/image_P5": 0.2, "std/patch_P5": 0.9}

    shown = ["accuracy/image_P5", "accuracy/patch_P5", "accuracy/absent"]
    first, _, last = progress_of(tmp_path, capsys, logs, shown=shown, guessing=23.1)
    assert "loss 19.0000 (guessing 23.10)  image_P5 20.0%  patch_P5 10.0%" in first
    assert "loss 17.0000 ↓ (guessing 23.10)  image_P5 20.0% →  patch_P5 30.0% ↑" in last


def test_progress_of_a_detector_shows_the_parts_of_its_loss(tmp_path, capsys):
    _, _, last = progress_of(tmp_path, capsys, lambda step: {"loss": 3.0 / step, "box_loss": 0.5, "boxes_lost": 0.0})
    assert "loss 1.0000 ↓  box_loss 0.5000 →  " in last and "boxes_lost" not in last


def test_epochs_continue_after_a_change(tmp_path):
    metrics = MetricsLog(tmp_path, 40, 42, steps_per_epoch=100, batch_size=8, every=1, epochs=(40, 4.0))
    for _ in range(2):
        metrics.on_train_batch_begin(0)
        metrics.on_train_batch_end(0, {"loss": 1.0})
    metrics.close()
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in lines] == [4.01, 4.02]


def test_tensorboard_drops_repeated_steps(tmp_path):
    from tensorboard.backend.event_processing.plugin_event_accumulator import EventAccumulator

    states = logged(tmp_path, LOSSES[:9], every=1)
    reader = EventAccumulator(str(tmp_path / "tensorboard"), tensor_size_guidance={"scalars": 0}).Reload()
    assert [event.step for event in reader.Tensors("loss")] == list(range(1, 10))
    logged(tmp_path, LOSSES[4:], first_step=4, every=1, state=states[4])
    reader.Reload()
    assert [event.step for event in reader.Tensors("loss")] == list(range(1, 13))


def events_of(run):
    """Returns [(step, tag)] of all event files."""
    contents = [path.read_bytes() for path in (run / "tensorboard").iterdir()]
    events = [event for content in contents for _, event in read_events(content)]
    return sorted((event.step, value.tag) for event in events for value in event.summary.value)


def test_tensorboard_has_each_step_once_after_resumes(tmp_path):
    states = logged(tmp_path, LOSSES[:9], every=1)
    logged(tmp_path, LOSSES[4:8], first_step=4, every=1, state=states[4])
    newest = max((tmp_path / "tensorboard").iterdir(), key=lambda path: path.stat().st_mtime_ns)
    newest.write_bytes(newest.read_bytes()[:-5])  # as after a kill during a write
    logged(tmp_path, LOSSES[6:], first_step=6, every=1, state=states[6])
    events = events_of(tmp_path)
    assert [step for step, tag in events if tag == "loss"] == list(range(1, 13))
    assert len(events) == len(set(events))


def test_events_of_tensorboard_files_are_read_by_tensorflow(tmp_path):
    states = logged(tmp_path, LOSSES[:9], every=1)
    logged(tmp_path, [], first_step=4, state=states[4])
    steps = [
        event.step
        for path in sorted((tmp_path / "tensorboard").iterdir())
        for event in tf.compat.v1.train.summary_iterator(str(path))
        for value in event.summary.value
        if value.tag == "loss"
    ]
    assert steps == [1, 2, 3, 4]


def test_training_speed_omits_the_line_with_tracing(tmp_path, clock):
    lines_of(tmp_path, clock)
    seconds, rate = training_speed(tmp_path, batch_size=8)
    assert (seconds, rate) == (pytest.approx(15), pytest.approx(3 * 8 / 12))


def test_training_speed_takes_the_batch_size_of_each_line(tmp_path, clock):
    lines_of(tmp_path, clock)
    assert training_speed(tmp_path, batch_size=64) == training_speed(tmp_path, batch_size=8)
