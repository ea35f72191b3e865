"""Tests of `DUPR` as a Keras model: custom backbones, frozen layers, `evaluate`, `train_on_batch`, wrong inputs."""

import os
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf

from dupr_tf.models import DUPR, build_backbone
from dupr_tf.models.encoder import Encoder
from dupr_tf.models.layers import FusedBatchNormalization
from dupr_tf.models.multi_worker import MultiWorkerDUPR
from dupr_tf.models.terms import ImageContrast, PatchContrast
from dupr_tf.models.twins import clone_backbone, in_full_precision, layer_pairs
from dupr_tf.training.optimizers import CoupledSGD
from tests import oracles
from tests.models.random_batches import batches
from tests.refusals import refusal

ROOT = Path(__file__).resolve().parents[2]
COUNT, SIZE = 4, 64
SETTINGS = {
    "image_weights": (0, 0, 0, 1.0), "patch_weights": (0, 0, 1.0, 0), "roi_sizes": (16, 8, 4, 2),
    "embedding_dim": 8, "bank_size": 32, "momentum": 0.5, "photometric": "none",
}  # fmt: skip


@keras.saving.register_keras_serializable("dupr_tf_tests")
class Scaled(keras.layers.Layer):
    """A layer with sublayers that Keras names."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.first, self.second = keras.layers.Dense(8), keras.layers.Dense(8)

    def build(self, shape):
        self.first.build(shape)
        self.second.build((*shape[:-1], 8))
        self.built = True

    def call(self, x):
        return self.second(self.first(x))


def own_backbone(attribute="pyramid_outputs", normalise=False):
    """Returns a plain functional model with a custom layer and batch norm."""
    x = images = keras.Input((None, None, 3), name="images")
    x = keras.layers.Rescaling(1 / 255)(x) if normalise else x
    outputs = {}
    for level in ("stem", "P2", "P3", "P4", "P5"):
        x = keras.layers.Conv2D(8, 3, strides=2, padding="same", name=f"{level}_conv")(x)
        x = Scaled(name=f"{level}_scaled")(x) if level == "P4" else x
        x = outputs[level] = FusedBatchNormalization(name=level)(x)
    model = keras.Model(images, x)
    levels = ("P2", "P3", "P4", "P5")
    value = {level: level if attribute == "pyramid_level_inputs" else outputs[level] for level in levels}
    setattr(model, attribute, value)
    return model


def make_model(backbone=None, optimizer=None, eager=True, **changes):
    keras.utils.set_random_seed(0)
    model = DUPR(own_backbone() if backbone is None else backbone, **{**SETTINGS, **changes})
    model.compile(optimizer or CoupledSGD(0.1), run_eagerly=eager, jit_compile=False)
    return model


def make_batch(**changes):
    return {**next(batches(1, COUNT)), "valid": np.ones(COUNT, bool), **changes}


def dataset(**changes):
    return tf.data.Dataset.from_tensors(make_batch(**changes))


def values(variables):
    return [np.array(variable) for variable in variables]


def fit(model, *arguments, **settings):
    return model.fit(*arguments, verbose=0, **settings).history["loss"][-1]


# --- clones and frozen layers ---------------------------------------------------------------------------


@pytest.mark.parametrize("attribute", ["pyramid_outputs", "pyramid_level_inputs"])
def test_functional_backbone_trains_with_either_attribute(attribute):
    model = make_model(own_backbone(attribute))
    pairs = model.moving_average
    assert len(pairs) == len(model.query_variables) == len({id(key) for _, key in pairs})
    for query, key in pairs:
        np.testing.assert_array_equal(np.array(query), np.array(key))
    assert np.isfinite(fit(model, dataset()))


def test_clone_keeps_features_levels_and_frozen_layers():
    backbone = own_backbone()
    backbone.get_layer("P3").trainable = False
    for variable in backbone.variables:
        variable.assign(np.random.default_rng(0).uniform(0.5, 1.0, variable.shape))
    twin = clone_backbone(backbone)
    images = np.random.default_rng(1).normal(size=(1, SIZE, SIZE, 3)).astype(np.float32)
    np.testing.assert_array_equal(twin(images, training=False), backbone(images, training=False))
    assert set(twin.pyramid_outputs) == {"P2", "P3", "P4", "P5"}
    assert [layer.name for layer in twin.layers if not layer.trainable] == ["P3"]
    assert not {id(v) for v in twin.variables} & {id(v) for v in backbone.variables}


def test_layer_pairs_ignore_the_order_of_named_layers():
    a, b = own_backbone(), own_backbone()
    b._layers.reverse()
    pairs = layer_pairs(a, b)
    assert len(pairs) == len(a._flatten_layers())
    assert all(one.name == other.name for one, other in pairs[1:] if "dense" not in one.name)


def test_layer_without_config_is_refused_with_the_cause():
    class Forgetful(keras.layers.Layer):
        def __init__(self, factor, **kwargs):
            super().__init__(**kwargs)
            self.factor = lambda: factor

        def call(self, x):
            return x * self.factor()

        def get_config(self):
            return super().get_config()

    images = keras.Input((None, None, 3))
    x = keras.layers.Conv2D(4, 3, strides=32, padding="same")(Forgetful(2.0)(images))
    model = keras.Model(images, x)
    model.pyramid_outputs = {"P5": x}
    error = refusal(DUPR, model, [ImageContrast("P5", bank_size=8)])
    assert error.fields == ("backbone",) and "get_config" in error.fix


@pytest.mark.parametrize("when", ["before", "after"])
def test_frozen_layers_stay_fixed_in_both_encoders(when):
    backbone = own_backbone()
    frozen = [backbone.get_layer(name) for name in ("P2_conv", "P3")]
    if when == "before":
        for layer in frozen:
            layer.trainable = False
    model = make_model(backbone)
    for layer in frozen:
        layer.trainable = False
    both = [*frozen, *(model.key_encoder.backbone.get_layer(layer.name) for layer in frozen)]
    free = model.key_encoder.backbone.get_layer("P2")
    before, free_before = [values(layer.variables) for layer in both], values(free.variables)
    for _ in range(2):  # the key encoder changes in the second step
        fit(model, dataset())
    for layer, old in zip(both, before, strict=True):
        for variable, value in zip(layer.variables, old, strict=True):
            np.testing.assert_array_equal(np.array(variable), value, err_msg=variable.path)
    assert all((np.array(v) != old).any() for v, old in zip(free.variables, free_before, strict=True))


def test_no_variable_of_the_key_encoder_is_trainable():
    model = make_model()
    fit(model, dataset())
    assert not model.key_encoder.trainable_variables
    # Their layers stay trainable, because batch norm would use moving statistics otherwise.
    assert model.key_encoder.backbone.get_layer("P3").trainable
    numbers = sum(int(np.prod(v.shape)) for v in model.variables)
    assert model.count_params() == numbers
    lines = []
    model.summary(print_fn=lambda text, **_: lines.append(text))
    trained = sum(int(np.prod(v.shape)) for v in model.query_variables)
    assert f" {trained:,} " in "\n".join(lines)


# --- evaluate, train_on_batch --------------------------------------------------------------------------


def test_evaluate_averages_batches_and_changes_nothing():
    model = make_model()
    fit(model, dataset())
    before = values(model.variables)
    data = dataset().concatenate(dataset(view_1=make_batch()["view_2"]))
    each = [model.evaluate(data.skip(i).take(1), verbose=0, return_dict=True) for i in range(2)]
    both = model.evaluate(data, verbose=0, return_dict=True)
    assert each[0]["loss"] != each[1]["loss"]
    for name, value in both.items():
        assert value == pytest.approx((each[0][name] + each[1][name]) / 2, rel=1e-5, abs=1e-6), name
    for variable, old in zip(model.variables, before, strict=True):
        np.testing.assert_array_equal(np.array(variable), old, err_msg=variable.path)
    history = model.fit(dataset(), validation_data=data, verbose=0).history
    assert {f"val_{name}" for name in both} <= set(history)


@pytest.mark.parametrize(("ratio", "reduction", "cells"), [(1, "mean", 1), (2, "sum", 16)])
def test_evaluated_loss_is_that_of_the_oracle(ratio, reduction, cells):
    valid = np.array([True, False, True, True])
    batch = {**make_batch(), "valid": tf.constant(valid)}
    model = make_model(sampling_ratio=ratio, patch_reduction=reduction)
    measured = model.test_on_batch(batch, return_dict=True)
    sides = []
    for encoder, side in ((model.query_encoder, 1), (model.key_encoder, 2)):
        images = oracles.normalize(np.asarray(batch[f"view_{side}"], np.float64) / 255.0)
        maps = encoder.pyramid(tf.constant(images, tf.float32), training=False)["P4"].numpy().astype(np.float64)
        boxes = np.asarray(batch[f"boxes_{side}"], np.float64)[:, None]
        rois = oracles.roi_align(maps, boxes, 4, 1 / 16, ratio, flipped=batch[f"flipped_{side}"])
        weights = [np.asarray(w, np.float64) for w in encoder.projectors["patch_P4"].get_weights()]
        sides.append(oracles.patch_head(rois[:, 0], *weights).reshape(-1, 8))
    bank = np.asarray(model.banks["patch_P4"].keys, np.float64)
    each = oracles.info_nce(*sides, bank, 0.2).reshape(len(valid), -1)[valid]
    hits = oracles.contrastive_hits(*sides, bank).reshape(len(valid), -1)[valid]
    assert measured["loss/patch_P4"] == pytest.approx(cells * each.mean(), rel=1e-4)
    assert measured["accuracy/patch_P4"] == pytest.approx(hits.mean(), abs=1e-6)


@pytest.mark.parametrize("eager", [True, False])
def test_train_on_batch_takes_a_step(eager):
    model = make_model(eager=eager)
    assert np.isfinite(model.train_on_batch(make_batch(), return_dict=True)["loss"])
    assert int(model.step) == 1


def test_boxes_outside_the_view_are_clipped():
    model, batch = make_model(), make_batch(boxes_1=np.array([[-1.0, 0.0, SIZE + 1e-3, SIZE]] * COUNT, np.float32))
    boxes = model.augment({k: tf.constant(v) for k, v in batch.items()}, tf.constant(0, tf.int64))[1][1]
    np.testing.assert_array_equal(boxes, [[0.0, 0.0, SIZE, SIZE]] * COUNT)


TWO_NARROW_IMAGES = """
from tests.models.test_keras_use import build_backbone, make_batch, make_model
model = make_model(build_backbone("resnet18", width=0.125), eager=False)
rows = {name: value[:2] for name, value in make_batch().items()}
for _ in range(3):
    print(float(model.train_on_batch(rows, return_dict=True)["loss"]))
"""


@pytest.mark.slow
def test_two_narrow_images_train_with_onednn():
    """Runs in another process, since a crash in oneDNN's kernels ends it, with a traceback of all threads."""
    code = [sys.executable, "-X", "faulthandler", "-c", TWO_NARROW_IMAGES]
    environment = {**os.environ, "TF_ENABLE_ONEDNN_OPTS": "1"}
    done = subprocess.run(code, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    losses = [float(line) for line in done.stdout.split()]
    assert len(losses) == 3 and np.isfinite(losses).all()


def test_multi_worker_model_freezes_key_layers():
    backbone = own_backbone()
    model = MultiWorkerDUPR(backbone, **SETTINGS)
    model.compile(CoupledSGD(0.1))
    backbone.get_layer("P3").trainable = False
    model.make_train_function()
    twin = model.key_encoder.backbone
    assert [layer.name for layer in twin.layers if not layer.trainable] == ["P3"]


def test_multi_worker_model_refuses_to_evaluate():
    model = MultiWorkerDUPR(own_backbone(), **SETTINGS)
    model.compile(CoupledSGD(0.1))
    assert refusal(model.evaluate, dataset()).fields == ("validation_data",)


# --- refusals ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def model():
    return make_model(eager=False)


@pytest.mark.parametrize("normalise", ["own layer", "build_backbone"])
def test_backbone_that_normalises_is_refused(normalise):
    own = normalise == "own layer"
    backbone = own_backbone(normalise=True) if own else build_backbone("resnet18", 0.125, include_normalization=True)
    assert refusal(make_model, backbone).fields == ("backbone",)


def test_level_of_another_stride_is_refused():
    model = make_model(build_backbone("resnet18", 0.125, output_stride=16))
    assert refusal(fit, model, dataset()).fields == ("backbone",)


@pytest.mark.parametrize("change", [
    lambda view: view.astype(np.float32) / 255, lambda view: view[..., :1], lambda view: view[0]
])  # fmt: skip
def test_views_that_are_not_uint8_images_are_refused(model, change):
    wrong = dataset(view_2=change(make_batch()["view_2"]))
    assert refusal(fit, model, wrong).fields == ("view_2",)
    assert refusal(model.evaluate, wrong, verbose=0).fields == ("view_2",)


@pytest.mark.parametrize("data", [
    make_batch()["view_1"],
    (make_batch()["view_1"], np.zeros(COUNT)),
    {name: value for name, value in make_batch().items() if name != "boxes_1"},
], ids=["images", "labelled images", "no boxes"])  # fmt: skip
def test_batches_without_view_pairs_are_refused(model, data):
    error = refusal(fit, model, tf.data.Dataset.from_tensors(data))
    assert error.fields == ("data",) and "view_pairs(" in error.fix


def test_partial_last_batch_is_refused(model):
    data = tf.data.Dataset.from_tensor_slices(make_batch()).batch(3)
    error = refusal(fit, model, data)
    assert error.fields == ("view_1",) and "drop_remainder" in error.fix


def test_fields_of_different_lengths_are_refused(model):
    for change in ({"boxes_1": make_batch()["boxes_1"][:-1]}, {"valid": np.array(True)}):
        error = refusal(fit, model, dataset(**change))
        assert error.fields == ("data",) and f"but {next(iter(change))} has the shape" in error.problem


def test_views_of_an_odd_side_are_refused(model):
    view = np.zeros((COUNT, 80, 64, 3), np.uint8)
    error = refusal(fit, model, dataset(view_2=view))
    assert error.fields == ("view_2",) and "multiples of 32" in error.problem


def test_group_of_one_pair_is_refused_in_training_only():
    model = make_model(micro_batches=COUNT)
    assert refusal(fit, model, dataset()).fields == ("micro_batches",)
    model.evaluate(dataset(), verbose=0)


@pytest.mark.parametrize(("argument", "value"), [
    ("seed", -1), ("seed", 2**31), ("momentum", 1.5), ("momentum", 1.0), ("momentum", -0.1), ("photometric", "moco_v3"),
])  # fmt: skip
def test_wrong_arguments_are_refused(argument, value):
    assert refusal(make_model, **{argument: value}).fields == (argument,)


@pytest.mark.parametrize("argument", ["size", "sampling_ratio", "keys_per_image"])
def test_patch_term_of_nothing_is_refused(argument):
    assert refusal(PatchContrast, **{argument: 0}).fields == (argument,)


def test_config_can_be_used_twice():
    model = make_model(build_backbone("resnet18", 0.125))
    for config, kind in ((model.get_config(), DUPR), (model.query_encoder.get_config(), Encoder)):
        first, second = (kind.from_config(config).count_params() for _ in range(2))
        assert first == second


def test_logged_learning_rate_is_that_of_the_step(model):
    model.compile(CoupledSGD(keras.optimizers.schedules.PiecewiseConstantDecay([0], [0.25, 0.125])))
    rows = {name: tf.convert_to_tensor(value) for name, value in make_batch().items()}
    rates = [float(model.train_on_batch(rows, return_dict=True)["learning_rate"]) for _ in range(2)]
    assert rates == [0.25, 0.125]


def test_batch_that_groups_do_not_divide_is_refused():
    model = make_model(micro_batches=3)
    assert refusal(fit, model, dataset()).fields == ("micro_batches",)


# --- precision -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("own", [True, False])
def test_full_precision_copy_has_the_same_weights(own):
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        half = own_backbone() if own else build_backbone("resnet18", 0.125)
    finally:
        keras.config.set_dtype_policy(before)
    full = in_full_precision(half)
    assert {layer.compute_dtype for layer in full.layers} == {"float32"} and in_full_precision(full) is full
    for a, b in zip(values(half.variables), values(full.variables), strict=True):
        np.testing.assert_array_equal(a, b)


def test_encoder_does_not_round_images_under_a_global_policy():
    before = keras.config.dtype_policy()
    backbone = own_backbone()
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        model = DUPR(backbone, dtype="float32", **SETTINGS)
        images = np.random.default_rng(0).normal(size=(1, SIZE, SIZE, 3)).astype(np.float32)
        features = model.query_encoder(images, training=False)
        np.testing.assert_array_equal(features["P5"], backbone(images, training=False))
        assert model(images)["P5"].dtype == tf.float32
    finally:
        keras.config.set_dtype_policy(before)
    assert {head.compute_dtype for head in model.query_encoder.projectors.values()} == {"float32"}
