"""Tests of KerasHub's RetinaNet with its repairs, and of the error where the extra is not installed."""

import importlib.util

import keras
import numpy as np
import pytest
import tensorflow as tf

from dupr_tf.config import parse_config
from dupr_tf.detection.registry import build_detector
from dupr_tf.detection.saving import export_detector
from dupr_tf.errors import UserError
from dupr_tf.models.layers import norm_layers
from dupr_tf.models.resnet import build_backbone
from tests.detection.saved_file import check_norms, check_reload

INSTALLED = importlib.util.find_spec("keras_hub") is not None
needs_kerashub = pytest.mark.skipif(not INSTALLED, reason="the extra is not installed: pip install 'dupr_tf[kerashub]'")
SIZE, NAMES = 64, ("bus", "cat", "dog")


def config(**detector):
    section = {"kind": "kerashub_retinanet", "fpn_channels": 8, "head_convs": 1, "score_threshold": 0.001}
    return parse_config(
        {
            "data": {"image_size": SIZE},
            "optimizer": {"learning_rate": 0.01},
            "detector": {**section, "max_detections": 20, **detector},
        }
    )


def make(**detector):
    keras.utils.set_random_seed(1)
    backbone = build_backbone("resnet18", width=0.125, include_normalization=True)
    return build_detector(backbone, NAMES, config(**detector))


def batch(padding=1):
    boxes = np.full((2, 2 + padding, 4), -1, np.float32)
    classes = np.full((2, 2 + padding), -1, np.float32)
    boxes[:, :2], classes[:, :2] = [[8, 8, 40, 40], [20, 4, 60, 60]], [1, 2]
    images = np.random.default_rng(0).uniform(0, 255, (2, SIZE, SIZE, 3)).astype(np.float32)
    labels = {"boxes": tf.constant(boxes), "classes": tf.constant(classes)}
    return {"images": tf.constant(images), "bounding_boxes": labels, "image_sizes": tf.constant([[64.0, 64.0]] * 2)}


@pytest.mark.skipif(INSTALLED, reason="KerasHub is installed")
def test_without_the_extra_the_error_names_it():
    (problem,) = config().finetune_problems()
    assert problem.field == "detector.kind" and "dupr_tf[kerashub]" in problem.fix
    with pytest.raises(UserError) as error:
        make()
    assert error.value.field == "detector.kind" and "dupr_tf[kerashub]" in error.value.fix


@needs_kerashub
def test_heads_start_as_in_the_paper():
    model = make(head_convs=2)
    for head, bias in ((model.box_head, 0.0), (model.classification_head, -np.log(99))):
        for layer in (*head.conv_layers, head.prediction_layer):
            assert np.std(layer.kernel) == pytest.approx(0.01, rel=0.1)
        for layer in head.conv_layers:
            assert np.abs(layer.bias).max() == 0
        np.testing.assert_allclose(head.prediction_layer.bias, bias, rtol=1e-6)
    assert np.median(tf.sigmoid(model(batch()["images"])["cls_logits"])) == pytest.approx(0.01, rel=0.1)


@needs_kerashub
@pytest.mark.parametrize(("norm", "synchronized", "frozen"), [("train", 0, 0), ("sync", 26, 0), ("frozen", 0, 20)])
def test_norms_train_as_configured_with_momentum(norm, synchronized, frozen):
    model = make(norm=norm)
    check_norms(model, 26, synchronized, frozen)
    assert {layer.momentum for layer in norm_layers(model)} == {0.9}


@needs_kerashub
def test_encoded_truth_decodes_to_itself():
    model = make(score_threshold=0.5)
    data = batch()
    boxes, classes = data["bounding_boxes"]["boxes"], data["bounding_boxes"]["classes"]
    deltas, targets = model.label_encoder(images=data["images"], gt_boxes=boxes, gt_classes=classes)
    assert (targets.numpy() >= 0).sum() > 0
    logits = tf.one_hot(tf.cast(targets, tf.int32), 3) * 20.0 - 10.0
    found = model.decode_predictions({"bbox_regression": deltas, "cls_logits": logits}, data["images"])
    for i in range(2):
        count = int(found["num_detections"][i])
        order = np.argsort(found["classes"][i, :count])
        np.testing.assert_array_equal(found["classes"][i, :count].numpy()[order], [1, 2])
        np.testing.assert_allclose(found["boxes"][i, :count].numpy()[order], boxes[i, :2], atol=1e-2)


@needs_kerashub
def test_training_starts_at_small_loss_and_ignores_padding():
    model = make()
    model.compile(keras.optimizers.SGD(0.0))
    logs = model.train_on_batch(batch(), return_dict=True)
    assert 0 < logs["loss"] < 10
    assert logs["loss"] == pytest.approx(logs["bbox_regression_loss"] + logs["cls_logits_loss"], rel=1e-4)
    model.reset_metrics()
    assert model.train_on_batch(batch(padding=4), return_dict=True)["loss"] == pytest.approx(logs["loss"], rel=0.02)


@needs_kerashub
def test_saved_and_exported_detector_detects_the_same(tmp_path):
    model, data = make(), batch()
    data["images"] = tf.round(data["images"])
    for head in (model.classification_head, model.box_head):
        kernel = head.prediction_layer.kernel
        kernel.assign(keras.random.normal(kernel.shape, stddev=0.3, seed=3))

    def detect(model):
        found = model.predict_on_batch({name: data[name] for name in ("images", "image_sizes")})
        return {name: found[name] for name in ("boxes", "classes", "num_detections")}

    _, expected = check_reload(model, detect, tmp_path)
    assert expected["num_detections"].min() > 0 and expected["boxes"].max() <= 64
    export_detector(model, tmp_path / "saved_model")
    module = tf.saved_model.load(str(tmp_path / "saved_model"))
    served = module.signatures["serving_default"](tf.cast(data["images"], tf.uint8))
    np.testing.assert_array_equal(served["classes"], expected["classes"])
