"""Tests of mixed precision: which parts use 16 bits, how close a step is to float32, and float32 in saved files."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from dupr_tf.config import parse_config
from dupr_tf.config.detectors import DETECTORS
from dupr_tf.detection.registry import build_detector
from dupr_tf.detection.saving import load_detector, save_detector
from dupr_tf.detection.training import detector_optimizer
from dupr_tf.models.resnet import build_backbone
from dupr_tf.training.checkpoints import RunCheckpoints
from dupr_tf.training.optimizers import CoupledSGD, LossScaling
from tests.detection.detector_run import NAMES, batches

SMALL = {"fpn_channels": 8, "head_channels": 8, "head_convs": 1, "box_head_width": 16, "rois_per_image": 16}
RCNN = {"rpn_pre_nms": [100, 50], "rpn_post_nms": [50, 20]}
KINDS = [
    ("fcn", {}),
    ("retinanet", {"short_sides": [64]}),
    ("kerashub_retinanet", {"head_channels": 256}),
    ("yolov8", {"short_sides": [64]}),
    ("kerashub_dfine", {}),
    ("faster_rcnn", {"short_sides": [64], **RCNN}),
    ("mask_rcnn", {"short_sides": [64], "neck": "c4", **RCNN}),
]
TOLERANCE = {"bfloat16": 0.1, "float16": 0.02}  # of each loss
# Of the losses of R-CNN's regions: a rounded score changes which are drawn. It is 0.19 on CPUs that compute bfloat16.
REGIONS_TOLERANCE = 0.25


def build(kind, settings, precision):
    if DETECTORS[kind].missing:
        pytest.skip(f"{kind} needs {DETECTORS[kind].missing}")
    sections = {"detector": {**SMALL, "kind": kind, **settings}, "data": {"image_size": 64}}
    config = parse_config({**sections, "train": {"precision": precision}, "optimizer": {"learning_rate": 0.01}})
    keras.utils.set_random_seed(1)
    detector = build_detector(build_backbone("resnet18", width=0.125, include_normalization=True), NAMES, config)
    detector.compile(detector_optimizer(config, 10, detector.backbone))
    return detector


def batch(kind):
    values = next(batches())
    if kind.startswith("kerashub"):
        values["images"], values["image_sizes"] = values["images"][:, :64, :64], np.full((4, 2), 64, np.float32)
    labels = values["bounding_boxes"]
    labels["masks"] = np.ones((*labels["classes"].shape, 28, 28), np.float32)
    if kind != "mask_rcnn":
        del labels["masks"]
    del values["bounding_boxes" if kind == "fcn" else "segments"]
    return tf.nest.map_structure(tf.constant, values)


@pytest.mark.parametrize("precision", ["bfloat16", pytest.param("float16", marks=pytest.mark.slow)])
@pytest.mark.parametrize(("kind", "settings"), KINDS, ids=[kind for kind, _ in KINDS])
def test_step_in_16_bits_is_close_to_float32(kind, settings, precision, tmp_path):
    data, tolerance = batch(kind), TOLERANCE[precision]
    full = build(kind, settings, "float32")
    expected = {name: float(value) for name, value in full.train_step(data).items()}
    detector = build(kind, settings, precision)
    before = [variable.numpy() for variable in detector.trainable_variables]
    count = 4 if precision == "float16" else 1  # large losses overflow until the loss scale has fallen
    losses, *_ = [detector.train_step(data) for _ in range(count)]
    for name, value in losses.items():
        regional = kind.endswith("_rcnn") and name in ("box_loss", "classification_loss", "mask_loss")
        most = REGIONS_TOLERANCE if regional else tolerance
        assert float(value) == pytest.approx(expected[name], rel=most, abs=most), name
    after = [variable.numpy() for variable in detector.trainable_variables]
    moved = [not np.array_equal(a, b) for a, b in zip(before, after, strict=True)]
    assert np.mean(moved) > 0.9 and all(np.isfinite(value).all() for value in after)
    assert {variable.dtype for variable in detector.weights} <= {"float32", "int32", "int64", "uint32"}
    convolutions = [one for one in detector._flatten_layers() if isinstance(one, keras.layers.Conv2D)]
    assert {one.compute_dtype for one in convolutions} == {precision}
    outputs = tf.nest.flatten(detector(data if kind.endswith("rcnn") else data["images"], training=False))
    assert {one.dtype for one in outputs if one.dtype.is_floating} == {tf.float32}
    save_detector(detector, tmp_path / "detector.keras")
    loaded = load_detector(tmp_path / "detector.keras")
    assert {layer.compute_dtype for layer in loaded._flatten_layers()} == {"float32"}
    for a, b in zip(detector.get_weights(), loaded.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


def test_pixels_are_not_rounded():
    """Two images that are equal in bfloat16 have different features."""
    detector = build("fcn", {}, "bfloat16")
    images = np.full((1, 64, 64, 3), 200.0, np.float32)
    normalised = [detector.features.get_layer("normalization")(images + shift).numpy() for shift in (0.0, 0.25)]
    assert normalised[0].dtype == np.float32 and (normalised[1] > normalised[0]).all()
    assert detector.features.compute_dtype == "float32"


def test_skipped_step_counts_as_a_step(tmp_path):
    model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1)])
    model.compile(LossScaling(CoupledSGD(0.1)), loss="mse")
    model.optimizer.build(model.trainable_variables)
    weights = [variable.numpy() for variable in model.trainable_variables]
    checkpoints = RunCheckpoints(model, tmp_path)
    model.optimizer.apply([tf.fill(w.shape, np.inf) for w in weights], model.trainable_variables)
    assert checkpoints.save().name == "ckpt-1"
    for before, variable in zip(weights, model.trainable_variables, strict=True):
        np.testing.assert_array_equal(variable.numpy(), before)
    model.optimizer.apply([tf.ones(w.shape) for w in weights], model.trainable_variables)
    assert int(model.optimizer.iterations) == 2 and int(model.optimizer.inner_optimizer.iterations) == 1
