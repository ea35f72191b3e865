"""Tests of the devices, compilation and platform checks of a run."""

import logging

import numpy as np
import pytest
import tensorflow as tf
from tensorflow.python.framework import config

from dupr_tf.config import parse_config
from dupr_tf.errors import RunFailed, RunInterrupted, UserError, WorkerLost
from dupr_tf.models.multi_worker import check_keras
from dupr_tf.training.distribution import choose_jit, deterministic_ops
from dupr_tf.training.pretrain import compiled_model
from dupr_tf.training.workers import check_service, verdict
from tests.refusals import refusal

TINY = {
    "data": {"image_size": 32},
    "views": {"min_overlap": 8},
    "model": {"backbone": "resnet18", "width": 0.125, "bank_size": 64, "patch_weights": [0, 0, 0, 0]},
}


@pytest.mark.parametrize(
    ("setting", "gpus", "replicas", "jit"),
    [
        ("auto", 0, 1, False),
        ("auto", 1, 1, True),
        ("auto", 2, 2, False),
        ("on", 0, 1, True),
        ("off", 1, 1, False),
        ("off", 2, 2, False),
    ],
)
def test_xla_is_used_where_it_helps_or_as_configured(monkeypatch, setting, gpus, replicas, jit):
    monkeypatch.setattr(tf.config, "list_logical_devices", lambda kind: ["GPU"] * gpus)
    assert choose_jit(setting, replicas)[0] is jit


@pytest.mark.parametrize("jit", ["on", "off"])
def test_model_is_compiled_as_chosen_with_a_logged_reason(jit, caplog):
    with caplog.at_level(logging.INFO):
        model = compiled_model(parse_config({**TINY, "train": {"jit": jit}}), images=512)
    assert model.jit_compile is (jit == "on")
    assert f"train.jit is {jit}" in caplog.text


def test_xla_on_several_devices_is_refused_in_one_line():
    config = parse_config({"train": {"jit": "on"}})
    assert config.pretrain_problems(1) == []
    (problem,) = config.pretrain_problems(2)
    assert problem.field == "train.jit" and "2 devices" in problem.problem


def test_gradient_of_overlapping_regions_is_deterministic():
    rng = np.random.default_rng(0)
    image = tf.constant(rng.normal(size=(1, 16, 16, 256)).astype(np.float32))
    boxes = tf.constant(np.sort(rng.uniform(0, 1, (256, 2, 2)), 1).reshape(256, 4).astype(np.float32))
    weights = tf.constant(rng.normal(size=(256, 14, 14, 256)).astype(np.float32))

    @tf.function(reduce_retracing=True)
    def gradient(boxes, weights):
        with tf.GradientTape() as tape:
            tape.watch(image)
            regions = tf.image.crop_and_resize(image, boxes, tf.zeros_like(boxes[:, 0], tf.int32), [14, 14])
            loss = tf.reduce_sum(weights * regions)
        return tape.gradient(loss, image)

    with deterministic_ops():
        first, *others = [gradient(boxes, weights).numpy() for _ in range(8)]
    one_by_one = sum(gradient(boxes[i : i + 1], weights[i : i + 1]).numpy() for i in range(256))
    np.testing.assert_allclose(first, one_by_one, atol=1e-3)
    for other in others:
        np.testing.assert_array_equal(other, first)
    assert not config.is_op_determinism_enabled()


def test_another_version_of_keras_is_refused():
    error = refusal(check_keras, "3.12.1")
    assert error.field == "keras" and "3.15.x" in error.problem and "3.12.1" in error.problem
    check_keras("3.15.9")


def test_missing_service_of_tensorflow_is_refused(monkeypatch):
    check_service()
    monkeypatch.setattr("dupr_tf.training.workers.SERVICE", ("no_such_method",))
    assert refusal(check_service).field == "tensorflow"


def test_each_error_has_its_exit_code(capsys):
    assert verdict(RunInterrupted(2, 5))[0] == 130
    assert verdict(RunFailed("full")) == (1, "full")
    assert verdict(WorkerLost("gone")) == (WorkerLost.code, "gone")
    assert verdict(UserError("x", "It is wrong."))[0] == 2
    assert verdict(ValueError("a defect")) == (1, "ValueError: a defect")
    assert "a defect" in capsys.readouterr().err  # with its traceback
