"""Tests of KerasCV's YOLOv8 with its repairs: assignment, start, a step, images without boxes, files."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras_cv.bounding_box import compute_ciou
from keras_cv.models.yolov8 import LabelEncoder

from dupr_tf.config import parse_config
from dupr_tf.detection.continuing import copy_weights
from dupr_tf.detection.parts.alignment import align
from dupr_tf.detection.parts.anchors import cell_centres
from dupr_tf.detection.parts.box_matching import ground_truth
from dupr_tf.detection.registry import build_detector
from dupr_tf.models.resnet import build_backbone
from tests.detection.saved_file import check_norms, check_reload

SIZE, NAMES = 64, ("bus", "cat", "dog")
BOXES = np.array([[[8, 8, 40, 40], [20, 4, 60, 60], [-1, -1, -1, -1]]] * 2, np.float32)
CLASSES = np.array([[1, 2, -1]] * 2, np.float32)


def make(names=NAMES, **detector):
    keras.utils.set_random_seed(1)
    section = {"kind": "yolov8", "score_threshold": 0.001, "max_detections": 20, **detector}
    config = parse_config({"data": {"image_size": SIZE}, "detector": section})
    return build_detector(build_backbone("resnet18", width=0.125, include_normalization=True), names, config)


@pytest.fixture(scope="module")
def model():
    return make()


def batch(boxes=BOXES, classes=CLASSES):
    images = np.random.default_rng(0).uniform(0, 255, (2, SIZE, SIZE, 3)).astype(np.float32)
    return tf.nest.map_structure(
        tf.constant, {"images": images, "bounding_boxes": {"boxes": boxes, "classes": classes}}
    )


def predicted(seed=0):
    """Returns scores and boxes around the cells of a square that overlap well with each other."""
    rng, (points, _) = np.random.default_rng(seed), cell_centres(SIZE, SIZE, (8, 16, 32))
    sides = rng.uniform(14, 22, (2, len(points), 4)).astype(np.float32)
    boxes = np.concatenate([points - sides[..., :2], points + sides[..., 2:]], -1)
    return rng.uniform(0.01, 0.9, (2, len(points), 3)).astype(np.float32), boxes, points


def test_cell_centres_are_those_of_kerascv():
    from keras_cv.src.models.object_detection.yolo_v8.yolo_v8_detector import get_anchors

    points, strides = cell_centres(64, 96, (8, 16, 32))
    theirs, their_strides = get_anchors((64, 96, 3))
    np.testing.assert_allclose(points / strides, theirs)
    np.testing.assert_array_equal(strides[:, 0], their_strides)


def test_assignment_is_that_of_kerascv_for_apart_boxes():
    """The two agree on boxes that share no point; IoU and complete IoU differ, so only positions are compared."""
    boxes = np.array([[[0, 0, 30, 30], [34, 34, 64, 64], [-1] * 4]] * 2, np.float32)
    scores, predictions, points = predicted()
    truth = ground_truth({"boxes": boxes, "classes": CLASSES}, 2)
    own_boxes, own_scores = align(scores, predictions, points, truth)
    encoder = LabelEncoder(num_classes=3)
    their_boxes, their_scores, _ = encoder(scores, predictions, points, CLASSES, boxes, CLASSES[..., None] >= 0)
    chosen, theirs = own_scores.numpy() > 0, their_scores.numpy() > 0
    assert chosen.sum() > 20 and (chosen == theirs).mean() > 0.98
    both = (chosen & theirs).any(-1)
    np.testing.assert_array_equal(own_boxes.numpy()[both], their_boxes.numpy()[both])


def test_targets_follow_alignment_by_hand():
    points = tf.constant([[5.0, 5.0], [6.0, 5.0], [30.0, 30.0]])
    predictions = np.array([[[0, 0, 10, 10], [0, 0, 10, 5], [0, 0, 10, 10]]], np.float32)
    scores = np.array([[[0.25, 0.9], [1.0, 0.9], [1.0, 0.9]]], np.float32)
    labels = {"boxes": np.array([[[0, 0, 10, 10]]], np.float32), "classes": np.array([[0.0]], np.float32)}
    boxes, targets = align(scores, predictions, points, ground_truth(labels, 1))
    # Alignments are 0.5 · 1 and 1 · 0.5^6, so the second point has 1/32 of the first one's; the third lies outside.
    np.testing.assert_allclose(targets[0], [[1, 0], [1 / 32, 0], [0, 0]], atol=1e-6)
    np.testing.assert_array_equal(boxes[0, :2], [[0, 0, 10, 10]] * 2)


def test_point_in_two_boxes_takes_the_greater_overlap():
    points, predictions = tf.constant([[5.0, 5.0]]), np.array([[[0, 0, 10, 10]]], np.float32)
    labels = {"boxes": np.array([[[0, 0, 40, 40], [0, 0, 10, 12]]], np.float32), "classes": np.array([[0.0, 1.0]])}
    boxes, targets = align(np.full((1, 1, 2), 0.5, np.float32), predictions, points, ground_truth(labels, 1))
    np.testing.assert_array_equal(boxes[0, 0], [0, 0, 10, 12])
    np.testing.assert_allclose(targets[0, 0], [0, 10 / 12], rtol=1e-5)


def test_start_is_small_boxes_with_low_scores(model):
    outputs = model(batch()["images"])
    assert np.median(tf.sigmoid(outputs["classes"])) == pytest.approx(0.01, rel=0.3)
    boxes, _ = model._decode(outputs["boxes"], batch()["images"])
    sides = (boxes[0, :64, 2:] - boxes[0, :64, :2]).numpy() / 8  # of P3, in strides
    assert np.median(sides) == pytest.approx(4, rel=0.15)


@pytest.mark.parametrize(("norm", "synchronized", "frozen"), [("train", 0, 0), ("sync", 58, 0), ("frozen", 0, 20)])
def test_norms_train_as_configured(norm, synchronized, frozen):
    check_norms(make(norm=norm), 58, synchronized, frozen)


def test_step_lowers_the_loss_and_padding_changes_nothing():
    model = make()
    model.compile(keras.optimizers.Adam(0.003))
    first = float(sum(model.losses(batch(), training=True).values()))
    wider = (
        np.pad(BOXES, [(0, 0), (0, 5), (0, 0)], constant_values=-1),
        np.pad(CLASSES, [(0, 0), (0, 5)], constant_values=-1),
    )
    assert float(sum(model.losses(batch(*wider), training=True).values())) == pytest.approx(first, rel=1e-5)
    for _ in range(3):
        logs = model.train_on_batch(batch(), return_dict=True)
        model.reset_metrics()
    assert logs.keys() == {"loss", "box_loss", "classification_loss"} and logs["loss"] < first


def test_losses_have_the_published_weights(model):
    data = batch()
    outputs = model(data["images"])
    boxes, points = model._decode(outputs["boxes"], data["images"])
    true_boxes, targets = align(tf.sigmoid(outputs["classes"]), boxes, points, ground_truth(data["bounding_boxes"], 2))
    strength, logits = targets.numpy().sum(-1), outputs["classes"].numpy()
    apart = 1 - compute_ciou(true_boxes, boxes, "xyxy").numpy()
    entropy = np.log1p(np.exp(logits)) - targets.numpy() * logits
    losses, total = model.losses(data, training=False), max(strength.sum(), 1)
    assert float(losses["box_loss"]) == pytest.approx(7.5 * (strength * apart).sum() / total, rel=1e-4)
    assert float(losses["classification_loss"]) == pytest.approx(0.5 * entropy.sum() / total, rel=1e-4)


@pytest.mark.parametrize("count", [0, 2])
def test_images_without_boxes_train_the_background(model, count):
    empty = batch(np.full((2, count, 4), -1, np.float32), np.full((2, count), -1, np.float32))
    for data in (empty, {"images": empty["images"]}):
        losses = model.losses(data, training=False)
        assert float(losses["box_loss"]) == 0 and 0 < float(losses["classification_loss"]) < 100


def test_gradients_are_finite_for_boxes_far_from_predictions(model):
    boxes = np.array([[[0, 0, 1, 64], [63, 63, 64, 64]]] * 2, np.float32)
    with tf.GradientTape() as tape:
        loss = tf.add_n(list(model.losses(batch(boxes, CLASSES[:, :2]), training=True).values()))
    assert all(np.isfinite(gradient).all() for gradient in tape.gradient(loss, model.trainable_variables))


def test_file_detects_the_same_at_any_size(model, tmp_path):
    rng, shapes = np.random.default_rng(1), [(2, 64, 64, 3), (1, 50, 90, 3)]
    images = [rng.uniform(0, 255, shape).astype(np.float32) for shape in shapes]
    _, expected = check_reload(model, lambda model: [model.predict_on_batch(pixels) for pixels in images], tmp_path)
    for found, shape in zip(expected, shapes, strict=True):
        assert found["num_detections"].min() > 0 and found["boxes"].max() <= max(shape[1:3])


@pytest.mark.parametrize("count", [2, 80])
def test_detector_of_any_other_classes_is_continued(model, count):
    start = make([f"class {number}" for number in range(count)])
    line = copy_weights(model, start)
    fresh = set(line.partition(": ")[2].removesuffix(" start from random weights").split(", "))
    assert len(fresh) == (3 if count == 2 else 15)  # with 80 classes: three levels of two convolutions with norms too
    for ours, theirs in zip(model.layers, start.layers, strict=True):
        if ours.name not in fresh and not isinstance(ours, keras.Model):
            for variable, value in zip(ours.variables, theirs.variables, strict=True):
                np.testing.assert_array_equal(variable.numpy(), value.numpy())
