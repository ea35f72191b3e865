"""COCO's AP: the ends of its range, and what ignored boxes do to it."""

import numpy as np
import pytest

from dupr_tf.data.annotations import AnnotatedImages
from dupr_tf.detection.coco_eval import coco_ap


def truth(*rows, classes=("cat", "dog")):
    """Annotated images from rows of (label, box, ignored), one list an image."""
    boxes = tuple(np.array([box for _, box, _ in image], np.float32).reshape(-1, 4) for image in rows)
    return AnnotatedImages(
        paths=tuple(f"{i}.jpg" for i in range(len(rows))),
        sizes=np.full((len(rows), 2), 200, np.int32),
        boxes=boxes,
        labels=tuple(np.array([label for label, _, _ in image], np.int32) for image in rows),
        ignored=tuple(np.array([ignored for _, _, ignored in image], bool) for image in rows),
        areas=tuple((table[:, 2:] - table[:, :2]).prod(1) for table in boxes),
        class_names=classes,
    )


def found(*rows):
    """Detections of an image from rows of (class, box, score)."""
    return {
        "boxes": np.array([box for _, box, _ in rows], np.float32).reshape(-1, 4),
        "classes": np.array([label for label, _, _ in rows], np.int32),
        "scores": np.array([score for _, _, score in rows], np.float32),
    }


A, B = (10, 10, 60, 60), (100, 100, 180, 190)
SCENE = truth([(0, A, False), (1, B, False)], [(0, B, False)])


def test_perfect_detections_have_an_ap_of_1():
    result = coco_ap(SCENE, [found((0, A, 0.9), (1, B, 0.8)), found((0, B, 0.3))])
    assert result["AP"] == result["AP50"] == result["AP75"] == pytest.approx(1.0)
    assert result["per_class"] == {"cat": pytest.approx(1.0), "dog": pytest.approx(1.0)}
    assert result["AP_small"] is None and result["AP_large"] is None  # there are none
    assert result["AP_medium"] == pytest.approx(1.0)


def test_no_detections_have_an_ap_of_0():
    result = coco_ap(SCENE, [found(), found()])
    assert result["AP"] == result["AP50"] == 0.0
    assert result["per_class"] == {"cat": 0.0, "dog": 0.0}


def test_a_shifted_box_counts_up_to_its_iou():
    # A moved by 10 of 50 px: IoU 40 / 60 = 0.667, right at the thresholds 0.5, 0.55, 0.6 and 0.65 of ten.
    scene, shifted = truth([(0, A, False)]), (20, 10, 70, 60)
    result = coco_ap(scene, [found((0, shifted, 0.9))])
    assert (result["AP50"], result["AP75"]) == (pytest.approx(1.0), 0.0)
    assert result["AP"] == pytest.approx(0.4)


def test_wrong_class_and_missing_class():
    scene = truth([(0, A, False)])
    result = coco_ap(scene, [found((1, A, 0.9))])
    assert result["per_class"] == {"cat": 0.0, "dog": None} and result["AP"] == 0.0


@pytest.mark.parametrize(
    ("second", "expected"),
    [
        ([(0, B, True)], 1.0),  # B is difficult: finding it is no mistake
        ([], 0.5),  # B is background: the better score is a false positive
        ([(0, B, False)], 1.0),  # B counts, and was found
    ],
)
def test_a_detection_of_an_ignored_box_is_not_counted(second, expected):
    scene = truth([(0, A, False), *second])
    result = coco_ap(scene, [found((0, B, 0.9), (0, A, 0.8))])
    assert result["AP50"] == pytest.approx(expected)


def test_missing_an_ignored_box_costs_nothing():
    scene = truth([(0, A, False), (0, B, True)])
    assert coco_ap(scene, [found((0, A, 0.9))])["AP"] == pytest.approx(1.0)


def test_every_image_needs_its_detections():
    with pytest.raises(ValueError, match="Expected detections of 2 images, received 1"):
        coco_ap(SCENE, [found()])
