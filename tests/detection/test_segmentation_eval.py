"""Tests of the IoU of pixels: known answers, streaming, and ignored or absent classes."""

import numpy as np
import pytest

from dupr_tf.detection.segmentation_eval import ConfusionMatrix
from dupr_tf.errors import UserError

NAMES = ("road", "car", "sky")


def scores(*images):
    matrix = ConfusionMatrix(3)
    for truth, predicted in images:
        matrix.add(np.array(truth), np.array(predicted))
    return matrix.scores(NAMES)


def test_iou_agrees_with_known_answers():
    result = scores(([[0, 0, 1, 1], [2, 2, 2, 2]], [[0, 1, 1, 1], [2, 2, 0, 0]]))
    # Hits, true and predicted pixels: road 1, 2, 3. Car 2, 2, 3. Sky 2, 4, 2.
    assert result["per_class"] == {"road": 1 / 4, "car": 2 / 3, "sky": 1 / 2}
    assert result["mIoU"] == pytest.approx((1 / 4 + 2 / 3 + 1 / 2) / 3)
    assert result["pixel_accuracy"] == 5 / 8


def test_pixels_are_counted_over_all_images():
    one, other = ([[0, 0]], [[0, 1]]), ([[1, 1, 1, 1]], [[1, 1, 1, 0]])
    assert scores(one, other)["per_class"] == {"road": 1 / 3, "car": 3 / 5, "sky": None}
    big = np.zeros((2, 3, 5), np.uint8)
    assert scores((big, big))["mIoU"] == 1


def test_ignored_pixels_are_never_counted():
    result = scores(([[0, 255, 255]], [[0, 1, 2]]))
    assert result == {"mIoU": 1.0, "pixel_accuracy": 1.0, "per_class": {"road": 1.0, "car": None, "sky": None}}


def test_class_predicted_but_absent_counts_as_0():
    assert scores(([[0, 0]], [[0, 1]]))["per_class"] == {"road": 1 / 2, "car": 0.0, "sky": None}
    assert scores(([[0, 0]], [[0, 1]]))["mIoU"] == 1 / 4


def test_iou_without_counted_pixels_is_none():
    nothing = {"mIoU": None, "pixel_accuracy": None, "per_class": dict.fromkeys(NAMES)}
    assert scores() == scores(([[255, 255]], [[1, 2]])) == nothing


def test_iou_agrees_with_a_loop():
    rng = np.random.default_rng(0)
    truth, predicted = rng.integers(0, 4, (9, 11)), rng.integers(0, 3, (9, 11))
    truth = np.where(truth == 3, 255, truth)
    result = scores((truth.astype(np.uint8), predicted.astype(np.int32)))
    for number, name in enumerate(NAMES):
        pairs = [(t, p) for t, p in zip(truth.flat, predicted.flat, strict=True) if t != 255]
        hits = sum(t == p == number for t, p in pairs)
        union = sum(number in (t, p) for t, p in pairs)
        assert result["per_class"][name] == pytest.approx(hits / union)


@pytest.mark.parametrize(
    ("truth", "predicted", "field", "named"),
    [
        ([[0, 1]], [[0]], "predicted", "(1, 1)"),
        ([[0, 3]], [[0, 0]], "truth", "3"),
        ([[0, 1]], [[0, 7]], "predicted", "7"),
        ([[0, 1]], [[0, -1]], "predicted", "-1"),
    ],
)
def test_arrays_of_wrong_shape_or_class_are_refused(truth, predicted, field, named):
    with pytest.raises(UserError) as error:
        scores((truth, predicted))
    assert error.value.field == field and named in error.value.problem
