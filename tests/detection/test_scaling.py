"""Checks that a SavedModel preprocesses as the batches do: pixels to two grey levels, AP to a thousandth."""

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from dupr_tf.data import placing
from dupr_tf.data.detection import image_rows, read_image
from dupr_tf.data.labels.annotations import read_annotations
from dupr_tf.data.placing import pad_batch, scaled
from dupr_tf.detection.coco_eval import coco_scores
from dupr_tf.detection.predictions import detect
from dupr_tf.detection.saving import export_detector
from dupr_tf.detection.scaling import letterbox, nearest_pixels, scaled_batch
from tests.labelled_scenes import COLOURS, NAMES, pictures, write_coco

SIZES = [(333, 501), (97, 41), (500, 375), (64, 64), (1, 300), (213, 640), (31, 31)]


def photo(size):
    """Returns (H, W, 3) uint8: smooth areas, edges and noise, at full contrast."""
    rng = np.random.default_rng(size[0])
    smooth = Image.fromarray(rng.integers(0, 256, (6, 7, 3), np.uint8)).resize(size[::-1], Image.Resampling.BICUBIC)
    noisy = np.clip(np.asarray(smooth, int) + rng.integers(-60, 60, (*size, 3)), 0, 255)
    noisy[size[0] // 3 : size[0] // 2, size[1] // 4 :] = [255, 0, 128]
    return noisy.astype(np.uint8)


def check(image, place, side, padded, size):
    expected = pad_batch([image_rows(image, place)], side)["images"]
    assert size.numpy().tolist() == list(place.size) and padded.shape == expected.shape
    assert np.abs(padded - expected).max() <= 2
    height, width = place.size
    for part in (np.s_[:, height:], np.s_[:, :, width:]):
        np.testing.assert_array_equal(padded[part], expected[part])


@pytest.mark.parametrize("size", SIZES)
def test_pixels_agree_with_those_of_the_batches(size):
    image = photo(size)
    for side in (64, 256, 608):
        check(image, placing.letterbox(size, side), side, *letterbox(tf.constant(image[None]), side))
    for short_side, longest in ((32, 200), (100, 1333), (375, 600), (None, 100)):
        batch = scaled_batch(tf.constant(image[None]), short_side, longest)
        check(image, scaled(size, short_side, longest), None, *batch)


def test_sides_round_as_in_the_batches():
    """Includes ties and near ties. Both sides are computed without intermediate rounding."""
    serve = tf.function(
        lambda images: (letterbox(images, 64)[1], scaled_batch(images, 48, 100)[1]),
        input_signature=[tf.TensorSpec((1, None, None, 3), tf.uint8)],
        autograph=False,
    )
    rng = np.random.default_rng(0)
    for size in [(33, 128), (128, 3), *rng.integers(1, 400, (60, 2)).tolist()]:
        size = tuple(size)
        square, other = serve(np.zeros((1, *size, 3), np.uint8))
        assert square.numpy().tolist() == list(placing.letterbox(size, 64).size), size
        assert other.numpy().tolist() == list(scaled(size, 48, 100).size), size


@pytest.mark.parametrize("scale", [lambda images: letterbox(images, 64), lambda images: scaled_batch(images, 48, 100)])
def test_scaling_has_no_operation_that_tensorflow_lite_lacks(scale):
    spec = tf.TensorSpec((None, None, None, 3), tf.uint8)
    graph = tf.function(scale, input_signature=[spec], autograph=False).get_concrete_function().graph
    assert "ScaleAndTranslate" not in {operation.type for operation in graph.get_operations()}


@pytest.mark.parametrize(("length", "source"), [(45, 30), (30, 45), (7, 500), (9, 9)])
def test_nearest_pixels_are_those_of_numpy(length, source):
    np.testing.assert_array_equal(nearest_pixels(length, source), placing.nearest_pixels(length, source))


class ColourDetector:
    """Finds the spot of each class's colour by moments of how near every pixel is to it, so that all pixels count."""

    class_names, variables, max_long_side = NAMES, (), 100

    def __init__(self, image_size):
        self.image_size, self.test_short_side = image_size, None if image_size else 41

    def predict_step(self, data):
        images, colours = tf.cast(data["images"], tf.float32), tf.constant(list(COLOURS.values()), tf.float32)
        distance = tf.reduce_sum(tf.abs(images[:, None] - colours[:, None, None]), -1)  # (b, classes, H, W)
        near = tf.maximum(1 - distance / 150, 0)  # zero at the mean colour around pictures
        area = tf.maximum(tf.reduce_sum(near, [2, 3]), 1e-3)
        edges = []
        for axis in (3, 2):  # x, y
            at = tf.reshape(tf.range(tf.cast(tf.shape(near)[axis], tf.float32)) + 0.5, [-1, 1] if axis == 2 else [-1])
            mean = tf.reduce_sum(near * at, [2, 3]) / area
            deviation = tf.sqrt(tf.maximum(tf.reduce_sum(near * at**2, [2, 3]) / area - mean**2, 0.01))
            edges.append((mean - 3**0.5 * deviation, mean + 3**0.5 * deviation))
        boxes = tf.stack([edges[0][0], edges[1][0], edges[0][1], edges[1][1]], -1)
        classes = tf.ones_like(area) * tf.range(3.0)
        return {
            "boxes": boxes,
            "classes": classes,
            "confidence": area / tf.reduce_prod(boxes[..., 2:] - boxes[..., :2], -1),
            "num_detections": tf.fill(tf.shape(area)[:1], 3),
        }

    predict_on_batch = predict_step


@pytest.mark.parametrize("image_size", [None, 64])
def test_saved_model_has_the_average_precision_of_the_batches(tmp_path, monkeypatch, image_size):
    root = write_coco(tmp_path / "set", {"val": pictures(24, seed=4)})
    annotated, detector = read_annotations(root, "val"), ColourDetector(image_size)
    monkeypatch.setattr("dupr_tf.detection.saving.task_of", lambda _: "boxes")
    export_detector(detector, tmp_path / "saved_model")
    served = tf.saved_model.load(str(tmp_path / "saved_model")).serve
    found = []
    for path in annotated.paths:
        one = {name: value[0].numpy() for name, value in served(tf.constant(read_image(path)[None])).items()}
        found.append({name: one[name] for name in ("boxes", "classes", "scores")})
    expected, received = (coco_scores(annotated, rows)[0] for rows in (detect(detector, annotated), found))
    assert expected["AP"] > 0.2 and len(expected) == len(received)
    for name in ("AP", "AP50", "AP75"):
        assert received[name] == pytest.approx(expected[name], abs=1e-3)
