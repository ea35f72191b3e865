"""Checks that non-finite losses or weights are logged as a loss of NaN, which ends a run before anything is saved."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from dupr_tf.models import DUPR
from dupr_tf.training.optimizers import CoupledSGD
from tests.models.random_batches import batches
from tests.models.test_golden import CHANNELS, TinyBackbone


class BrokenGradients(DUPR):
    """A DUPR with an infinite gradient in one weight, and a finite loss."""

    def query_gradients(self, *inputs):
        gradients, logs = super().query_gradients(*inputs)
        return [gradients[0] + float("inf"), *gradients[1:]], logs


def make_model(kind=DUPR, optimizer=None, groups=1):
    keras.utils.set_random_seed(1)
    model = kind(
        TinyBackbone(CHANNELS), image_weights=(0, 0, 0, 1), patch_weights=(0, 0, 1, 0), roi_sizes=(16, 8, 4, 2),
        embedding_dim=16, bank_size=67, momentum=0.9, photometric="none", micro_batches=groups,
    )  # fmt: skip
    model.compile(optimizer or CoupledSGD(0.05), jit_compile=False)
    model.optimizer.build(model.query_variables)
    return model


GOOD = {name: tf.constant(value) for name, value in next(batches(1, 8)).items()}
NAN = {**GOOD, "boxes_1": GOOD["boxes_1"] + float("nan")}


@pytest.fixture(scope="module")
def step():
    return tf.function(make_model(groups=2).train_step, autograph=False)


def test_spread_of_keys_is_logged(step):
    logs = step(GOOD)
    alike = {**GOOD, "view_2": tf.repeat(GOOD["view_2"][:1], 8, 0), "flipped_2": tf.zeros(8, tf.bool)}
    same = step(alike)
    assert 0.1 < float(logs["std/image_P5"]) <= 1
    assert float(same["std/image_P5"]) < 1e-3


def test_loss_that_is_nan_is_logged_with_its_term(step):
    """This must be the last step of the model: its weights are NaN afterwards."""
    assert np.isfinite(float(step(GOOD)["loss"]))
    logs = step(NAN)
    assert np.isnan(float(logs["loss"])) and np.isnan(float(logs["loss/patch_P4"]))
    assert np.isfinite(float(logs["loss/image_P5"]))  # the logs identify the term at fault


@pytest.mark.parametrize("kind, rate", [(BrokenGradients, 0.05), (DUPR, float("inf"))], ids=["gradient", "update"])
def test_weight_that_is_not_finite_logs_a_loss_of_nan(kind, rate):
    model = make_model(kind, CoupledSGD(rate))
    logs = tf.function(model.train_step, autograph=False)(GOOD)
    assert np.isnan(float(logs["loss"])) and np.isfinite(float(logs["loss/image_P5"]))


def test_skipped_steps_count_as_divergence_below_scale_one():
    model = make_model(BrokenGradients, keras.optimizers.LossScaleOptimizer(CoupledSGD(0.05), initial_scale=4.0))
    before = [v.numpy() for v in model.query_variables]
    step = tf.function(model.train_step, autograph=False)
    losses, scales = [], []
    for _ in range(3):
        losses.append(float(step(GOOD)["loss"]))
        scales.append(float(model.optimizer.dynamic_scale))
    assert np.isfinite(losses).tolist() == [True, True, False]
    assert scales == [2.0, 1.0, 0.5]
    assert int(model.step) == 3
    assert all(np.array_equal(a, b.numpy()) for a, b in zip(before, model.query_variables, strict=True))
