"""A step whose loss or weights are not finite leaves no trace: not in weights, statistics, banks or optimiser."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from dupr_tf.models import DUPR
from dupr_tf.training.optimizers import CoupledSGD
from tests.models.replica_run import batches
from tests.models.test_golden import CHANNELS, TinyBackbone


class BrokenGradients(DUPR):
    """A DUPR with an infinite gradient in one weight, and a finite loss."""

    def _query_gradients(self, *inputs):
        gradients, logs = super()._query_gradients(*inputs)
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


def state(model):
    return [v.numpy().copy() for v in (*model.variables, *model.optimizer.variables)]


def changed(before, after):
    return [i for i, (a, b) in enumerate(zip(before, after, strict=True)) if not np.array_equal(a, b)]


GOOD = {name: tf.constant(value) for name, value in next(batches(1, 8)).items()}
NAN = {**GOOD, "boxes_1": GOOD["boxes_1"] + float("nan")}


def test_a_loss_of_nan_takes_the_whole_step_back_and_a_good_batch_goes_on():
    model, twin = make_model(groups=2), make_model(groups=2)
    step, twin_step = (tf.function(m.train_step, autograph=False) for m in (model, twin))
    step(GOOD)  # a step that counts, so that velocities and statistics are not those of the start
    twin_step(GOOD)
    before = state(model)
    logs = step(NAN)
    assert changed(before, state(model)) == []
    assert np.isnan(float(logs["loss"])) and np.isnan(float(logs["loss/patch_P4"]))
    assert np.isfinite(float(logs["loss/image_P5"]))  # the term that is to blame can be told
    assert np.isfinite(float(step(GOOD)["loss"]))
    assert changed(before, state(model)), "a good batch is learnt from again"
    twin_step(GOOD)
    assert changed(state(twin), state(model)) == [], "as if the bad batch had never been there"


@pytest.mark.parametrize("kind, rate", [(BrokenGradients, 0.05), (DUPR, float("inf"))], ids=["gradient", "update"])
def test_a_gradient_or_an_update_that_is_not_finite_takes_the_step_back(kind, rate):
    model = make_model(kind, CoupledSGD(rate))
    before = state(model)
    logs = tf.function(model.train_step, autograph=False)(GOOD)
    assert changed(before, state(model)) == []
    assert np.isnan(float(logs["loss"])) and np.isfinite(float(logs["loss/image_P5"]))


@pytest.mark.slow
def test_a_step_taken_back_under_xla():
    model = make_model()
    before = state(model)
    step = tf.function(model.train_step, jit_compile=True, autograph=False)
    assert np.isnan(float(step(NAN)["loss"]))
    assert changed(before, state(model)) == []
    assert np.isfinite(float(step(GOOD)["loss"]))


def test_loss_scaling_may_skip_until_the_scale_is_below_one():
    model = make_model(BrokenGradients, keras.optimizers.LossScaleOptimizer(CoupledSGD(0.05), initial_scale=4.0))
    step = tf.function(model.train_step, autograph=False)
    losses, scales = [], []
    for _ in range(3):
        losses.append(float(step(GOOD)["loss"]))
        scales.append(float(model.optimizer.dynamic_scale))
    assert np.isfinite(losses).tolist() == [True, True, False]
    assert scales == [2.0, 1.0, 1.0]  # the last halving was taken back with its step
    assert int(model.step) == 2


def test_the_spread_of_the_keys_is_logged():
    step = tf.function(make_model().train_step, autograph=False)
    logs = step(GOOD)
    alike = {**GOOD, "view_2": tf.repeat(GOOD["view_2"][:1], 8, 0), "flipped_2": tf.zeros(8, tf.bool)}
    same = step(alike)
    assert 0.1 < float(logs["std/image_P5"]) <= 1
    assert float(same["std/image_P5"]) < 1e-3
