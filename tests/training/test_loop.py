"""Tests of the training loop: validation changes nothing, and an interrupted run equals an undisturbed one."""

import json
import time
from types import SimpleNamespace

import keras
import numpy as np
import pytest

from dupr_tf.data.reader import Block, Reader
from dupr_tf.errors import RunFailed, RunInterrupted
from dupr_tf.training.callbacks import SaveCheckpoints, StepCallback, StopOnSignal, Validate
from dupr_tf.training.checkpoints import RunCheckpoints
from dupr_tf.training.feed import feed
from dupr_tf.training.loop import chief_callbacks, train
from dupr_tf.training.metrics_log import MetricsLog

TOTAL, PER_EPOCH, BATCH = 11, 4, 8


SIGNATURE = {"x": ((BATCH, 5), np.float32), "y": ((BATCH, 1), np.float32)}


def block(step):
    """Batches that are functions of the step."""
    x = np.random.default_rng([3, step]).normal(size=(BATCH, 5)).astype(np.float32)
    return Block({"x": x, "y": x.sum(1, keepdims=True)})


def batches(first, last):
    return Reader(block, first, last, SIGNATURE)


def pairs(reader):
    return feed(reader).map(lambda batch: (batch["x"], batch["y"]))


def model():
    keras.utils.set_random_seed(1)
    layers = [
        keras.layers.Dense(4, name="a"),
        keras.layers.BatchNormalization(name="b"),
        keras.layers.Dense(1, name="c"),
    ]
    model = keras.Sequential([keras.Input((5,)), *layers], name="net")
    model.compile(keras.optimizers.Adam(0.01, name="adam"), loss="mse", metrics=["mae"], run_eagerly=True)
    model.optimizer.build(model.trainable_variables)
    return model


def run_loop(run, every=0, signals=(), log_every=3):
    """Trains, or resumes, a run; returns its weights."""
    network = model()
    checkpoints = RunCheckpoints(network, run / "checkpoints")
    first = checkpoints.restore()
    metrics = MetricsLog(run, first, TOTAL, PER_EPOCH, BATCH, log_every, state=checkpoints.extra)

    def validation():
        with batches(100, 102) as reader:
            scores = network.evaluate(pairs(reader), verbose=0, return_dict=True)
        return {"loss": scores["loss"]}, {}

    slot = Validate(validation, every, first, TOTAL) if every else None
    callbacks = chief_callbacks(metrics, checkpoints, 2, list(signals), validation=slot)
    train(network, batches, (first, TOTAL), PER_EPOCH, callbacks, as_dataset=pairs)
    metrics.close()
    return network.get_weights()


def lines_of(run):
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return {line["step"]: line for line in lines}


def assert_same(received, expected):
    for a, b in zip(received, expected, strict=True):
        np.testing.assert_array_equal(a, b)


def test_validation_changes_no_bit_of_the_training(tmp_path):
    plain = run_loop(tmp_path / "plain")
    assert_same(run_loop(tmp_path / "validated", every=3), plain)
    lines, validated = lines_of(tmp_path / "plain"), lines_of(tmp_path / "validated")
    assert list(validated) == list(lines) == [3, 6, 9, 11]
    for step, line in lines.items():
        for name in ("loss", "mae", "learning_rate"):
            assert validated[step][name] == line[name]
        assert validated[step]["validation/loss"] > 0 and "validation/loss" not in line


def test_signals_at_every_step_lose_nothing(tmp_path):
    """A run that is interrupted after each step has the lines and the weights of an undisturbed run."""
    whole = run_loop(tmp_path / "whole")
    for step in range(1, TOTAL + 1):
        with pytest.raises(RunInterrupted) as error:
            run_loop(tmp_path / "cut", signals=[15])
        assert error.value.step == step
    assert_same(run_loop(tmp_path / "cut"), whole)
    expected, received = lines_of(tmp_path / "whole"), lines_of(tmp_path / "cut")
    for step, line in expected.items():
        for name in ("epoch", "loss", "mae", "learning_rate"):
            assert received[step][name] == line[name], (step, name)
    assert list(expected) == list(received)


class Note(StepCallback):
    """Stands for a guard, a validation or a check, with a state for the checkpoint."""

    def __init__(self, name):
        super().__init__(0)
        self.name = name

    def state(self):
        return {self.name: "state"}


def test_checkpoint_keeps_the_states_and_comes_last():
    saved, guard, validation, check = SimpleNamespace(), Note("guard"), Note("validation"), Note("check")
    metrics = SimpleNamespace(step=0, flush=lambda: {"log": "state"})
    order = chief_callbacks(metrics, saved, 2, [], [guard], validation, [check])
    assert order[:4] == [guard, validation, metrics, check]  # a step that a guard rejects is neither logged nor saved
    assert [type(one) for one in order[4:]] == [SaveCheckpoints, StopOnSignal]
    assert saved.before_save() == {name: "state" for name in ("log", "validation", "check")}
    assert validation.metrics is metrics


@pytest.mark.parametrize("in_callback", [False, True])
def test_reader_error_ends_training_unless_a_callback_failed(in_callback):
    opened = []

    def failing(step):
        return block(step) if step < 2 else Block({}, ((step, "gone"),))

    def refuse(image, reason):
        raise RunFailed(f"image {image}: {reason}")

    def open_reader(first, last):
        opened.append(Reader(failing, first, last, SIGNATURE, on_bad=refuse))
        return opened[-1]

    class Stop(StepCallback):
        def on_step(self, step, logs):
            while in_callback and opened[-1].error is None:  # the reader is ahead
                time.sleep(0.01)
            if in_callback:
                raise RunFailed("a callback's")

    with pytest.raises(RunFailed, match="a callback's" if in_callback else "image 2: gone"):
        train(model(), open_reader, (0, TOTAL), PER_EPOCH, [Stop(0)], as_dataset=pairs)
    assert len(opened) == 1 and len(opened[0]) == 0  # the reader is closed


def test_logged_loss_is_the_mean_since_the_previous_line(tmp_path):
    run_loop(tmp_path / "each", log_every=1)
    run_loop(tmp_path / "third")
    each = [line["loss"] for line in lines_of(tmp_path / "each").values()]
    third = {step: line["loss"] for step, line in lines_of(tmp_path / "third").items()}
    windows = {3: each[:3], 6: each[3:6], 9: each[6:9], 11: each[9:]}
    assert third == pytest.approx({step: np.mean(losses) for step, losses in windows.items()}, rel=1e-6)
    assert len(set(each)) == TOTAL
