"""Tests of validation: the best step, patience, and resuming."""

import keras
import numpy as np
import pytest

from dupr_tf.data.reader import Block, Reader
from dupr_tf.detection.validation import ValidateDetector, logged_scores, patience_is_over
from dupr_tf.errors import RunFailed, UserError
from dupr_tf.training.checkpoints import RunCheckpoints
from dupr_tf.training.feed import feed
from dupr_tf.training.loop import chief_callbacks, train
from dupr_tf.training.metrics_log import MetricsLog
from tests.refusals import refusal

SCORES = [0.1, 0.3, 0.2, 0.25, 0.3, 0.2, 0.4, 0.1]  # after each step
SIGNATURE = {"x": ((4, 2), np.float32), "y": ((4, 1), np.float32)}


def block(step):
    x = np.random.default_rng(step).normal(size=(4, 2)).astype(np.float32)
    return Block({"x": x, "y": x.sum(1, keepdims=True)})


def run(folder, last, patience=None, scores=SCORES, save_every=2):
    """Trains up to a step, or resumes, with validation after each step. Returns model, validation and first step."""
    keras.utils.set_random_seed(1)
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1, name="a")], name="net")
    model.compile(keras.optimizers.SGD(0.1, name="sgd"), loss="mse", run_eagerly=True)
    model.optimizer.build(model.trainable_variables)
    checkpoints = RunCheckpoints(model, folder / "checkpoints")
    first = checkpoints.restore()
    metrics = MetricsLog(folder, first, last, 3, 4, 1, checkpoints.extra)
    saved = checkpoints.extra.get("validation")
    validation = ValidateDetector(model, None, checkpoints.folder, 1, (first, last), patience, saved)
    validation.measure = lambda: {"AP": scores[validation.step - 1], "AP50": 1.0}
    callbacks = chief_callbacks(metrics, checkpoints, save_every, [], validation=validation)
    if not validation.is_over:
        train(
            model, lambda begin, end: Reader(block, begin, end, SIGNATURE), (first, last), 3, callbacks,
            lambda reader: feed(reader).map(lambda batch: (batch["x"], batch["y"])),
        )  # fmt: skip
    metrics.close()
    return model, validation, first


def kept(folder):
    return sorted(path.name for path in (folder / "checkpoints").glob("best-*"))


def test_best_weights_are_saved_and_loaded(tmp_path):
    at_step_2 = run(tmp_path / "short", 2)[0].get_weights()
    model, validation, _ = run(tmp_path / "long", 6)
    assert validation.best == {"step": 2, "score": 0.3} and validation.without_gain == 4
    assert kept(tmp_path / "long") == ["best-2.npz"]
    assert not np.array_equal(model.get_weights()[0], at_step_2[0])
    validation.load_best()
    for value, expected in zip(model.get_weights(), at_step_2, strict=True):
        np.testing.assert_array_equal(value, expected)


def test_earlier_best_is_kept_for_older_checkpoints(tmp_path):
    run(tmp_path, 7)
    assert kept(tmp_path) == ["best-2.npz", "best-7.npz"]  # checkpoints 4 and 6 refer to the best at step 2


def test_patience_stops_the_run_for_good(tmp_path):
    model, validation, _ = run(tmp_path, 8, patience=3, save_every=1)
    assert validation.is_over and int(model.optimizer.iterations) == 5  # in the middle of an epoch of three
    state = validation.state()
    assert patience_is_over(3, state) and not patience_is_over(4, state) and not patience_is_over(None, state)
    assert not patience_is_over(3, {})
    model, validation, first = run(tmp_path, 8, patience=3)
    assert (first, int(model.optimizer.iterations), validation.best["step"]) == (5, 5, 2)
    assert int(run(tmp_path, 8, patience=5)[0].optimizer.iterations) == 8


def test_better_score_restores_the_patience(tmp_path):
    _, validation, _ = run(tmp_path, 6, patience=2, scores=[0.1, 0.1, 0.2, 0.2, 0.3, 0.3])
    assert (validation.best["step"], validation.without_gain, validation.is_over) == (5, 1, False)


def test_resumed_run_drops_a_best_of_lost_steps(tmp_path):
    run(tmp_path, 2)
    (tmp_path / "checkpoints" / "best-3.npz").write_bytes(b"of a start that was killed")
    _, validation, first = run(tmp_path, 4)
    assert first == 2 and kept(tmp_path) == ["best-2.npz"]
    assert (validation.best["step"], validation.without_gain) == (2, 2)


def test_missing_and_damaged_best_weights_are_reported(tmp_path):
    _, validation, _ = run(tmp_path, 2)
    (file,) = (tmp_path / "checkpoints").glob("best-*")
    file.write_bytes(file.read_bytes()[:50])
    with pytest.raises(RunFailed, match=r"best-2\.npz"):
        validation.load_best()
    file.unlink()
    assert isinstance(refusal(run, tmp_path, 4), UserError)


def test_logged_scores_are_those_of_the_task():
    boxes = {"AP": 0.1, "AP50": 0.2, "AP75": 0.3, "masks": {"AP": 0.4, "AP50": None, "per_class": {}}}
    assert logged_scores(boxes) == {"AP": 0.1, "AP50": 0.2, "masks_AP": 0.4}
    assert logged_scores({"mIoU": 0.0, "pixel_accuracy": 0.5}) == {"mIoU": 0.0}
