"""Tests of COCO's AP: the ends of its range, and the effect of ignored boxes."""

import dataclasses

import numpy as np
import pytest

from dupr_tf.data.labels.annotations import AnnotatedImages
from dupr_tf.data.labels.run_lengths import mask_from_pixels
from dupr_tf.detection.coco_eval import coco_ap, coco_scores
from dupr_tf.errors import UserError


def truth(*rows, classes=("cat", "dog")):
    """Returns annotated images from rows of (label, box, ignored), one list an image."""
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


def detected(*rows):
    """Returns detections of an image from rows of (class, box, score)."""
    return {
        "boxes": np.array([box for _, box, _ in rows], np.float32).reshape(-1, 4),
        "classes": np.array([label for label, _, _ in rows], np.int32),
        "scores": np.array([score for _, _, score in rows], np.float32),
    }


A, B = (10, 10, 60, 60), (100, 100, 180, 190)
SCENE = truth([(0, A, False), (1, B, False)], [(0, B, False)])


def test_perfect_detections_have_an_ap_of_1():
    result = coco_ap(SCENE, [detected((0, A, 0.9), (1, B, 0.8)), detected((0, B, 0.3))])
    assert result["AP"] == result["AP50"] == result["AP75"] == pytest.approx(1.0)
    assert result["per_class"] == {"cat": pytest.approx(1.0), "dog": pytest.approx(1.0)}
    assert result["AP_small"] is None and result["AP_large"] is None  # no objects exist
    assert result["AP_medium"] == pytest.approx(1.0)


def test_no_detections_have_an_ap_of_0():
    result = coco_ap(SCENE, [detected(), detected()])
    assert result["AP"] == result["AP50"] == 0.0
    assert result["per_class"] == {"cat": 0.0, "dog": 0.0}


def test_shifted_box_counts_up_to_its_iou():
    # A is moved by 10 of 50 px: IoU 40 / 60 = 0.667, a hit at 0.5, 0.55, 0.6 and 0.65 of ten thresholds.
    scene, shifted = truth([(0, A, False)]), (20, 10, 70, 60)
    result = coco_ap(scene, [detected((0, shifted, 0.9))])
    assert (result["AP50"], result["AP75"]) == (pytest.approx(1.0), 0.0)
    assert result["AP"] == pytest.approx(0.4)


def test_wrong_and_missing_classes_lower_the_ap():
    scene = truth([(0, A, False)])
    result = coco_ap(scene, [detected((1, A, 0.9))])
    assert result["per_class"] == {"cat": 0.0, "dog": None} and result["AP"] == 0.0


@pytest.mark.parametrize(
    ("second", "expected"),
    [
        ([(0, B, True)], 1.0),  # B is difficult: a detection of it is no mistake
        ([], 0.5),  # B is background: the detection with the better score is a false positive
        ([(0, B, False)], 1.0),  # B counts, and was detected
    ],
)
def test_detection_of_an_ignored_box_is_not_counted(second, expected):
    scene = truth([(0, A, False), *second])
    result = coco_ap(scene, [detected((0, B, 0.9), (0, A, 0.8))])
    assert result["AP50"] == pytest.approx(expected)


def test_missing_an_ignored_box_costs_nothing():
    scene = truth([(0, A, False), (0, B, True)])
    assert coco_ap(scene, [detected((0, A, 0.9))])["AP"] == pytest.approx(1.0)


SMALL, LARGE = (10, 10, 20, 20), (30, 30, 180, 180)  # 10² and 150² px; COCO's limits are 32² and 96²


def test_ap_by_size_counts_objects_of_that_size():
    result = coco_ap(truth([(0, SMALL, False), (0, LARGE, False)]), [detected((0, SMALL, 0.9))])
    assert result["AP_small"] == pytest.approx(1.0)
    assert result["AP_medium"] is None and result["AP_large"] == 0.0


def test_size_of_an_object_is_its_given_area():
    scene = truth([(0, LARGE, False)])
    thin = dataclasses.replace(scene, areas=(np.array([500.0]),))  # like a mask's that fills little of its box
    assert coco_ap(scene, [detected((0, LARGE, 0.9))])["AP_large"] == pytest.approx(1.0)
    result = coco_ap(thin, [detected((0, LARGE, 0.9))])
    assert result["AP_small"] == pytest.approx(1.0)
    assert result["AP_medium"] is None and result["AP_large"] is None


def test_detections_of_too_few_images_are_refused():
    with pytest.raises(UserError) as error:
        coco_ap(SCENE, [detected()])
    assert error.value.field == "detections" and "2 images" in error.value.problem


# ---- masks, curves, degenerate splits ----


def half(box, side):
    """Returns a (200, 200) mask of the left or the right half of a box."""
    x1, y1, x2, y2 = box
    mask, middle = np.zeros((200, 200), bool), (x1 + x2) // 2
    mask[y1:y2, slice(x1, middle) if side == "left" else slice(middle, x2)] = True
    return mask_from_pixels(mask)


def with_masks(scene, side="left"):
    masks = tuple([half(tuple(map(int, box)), side) for box in boxes] for boxes in scene.boxes)
    return dataclasses.replace(scene, masks=masks, areas=tuple(areas / 2 for areas in scene.areas))


def detected_masks(side, *rows):
    return {**detected(*rows), "masks": [half(box, side) for _, box, _ in rows]}


def test_masks_are_compared_as_masks():
    scene = with_masks(SCENE)
    right = [detected_masks("left", (0, A, 0.9), (1, B, 0.8)), detected_masks("left", (0, B, 0.3))]
    wrong = [detected_masks("right", (0, A, 0.9), (1, B, 0.8)), detected_masks("right", (0, B, 0.3))]
    assert coco_ap(scene, right, masks=True)["AP"] == pytest.approx(1.0)
    assert coco_ap(scene, wrong, masks=True)["AP"] == 0.0 and coco_ap(scene, wrong)["AP"] == pytest.approx(1.0)
    assert coco_ap(scene, right, masks=True)["AP_medium"] == pytest.approx(1.0)


def test_mask_within_an_ignored_mask_is_not_counted():
    scene = with_masks(truth([(0, A, False), (0, B, True)]))
    inside = detected_masks("left", (0, (100, 100, 150, 150), 0.9), (0, A, 0.8))
    outside = detected_masks("right", (0, B, 0.9), (0, A, 0.8))
    outside["masks"][1] = half(A, "left")
    assert coco_ap(scene, [inside], masks=True)["AP50"] == pytest.approx(1.0)
    assert coco_ap(scene, [outside], masks=True)["AP50"] == pytest.approx(0.5)


def test_ap_without_masks_is_0_or_refused():
    scene, nothing = with_masks(SCENE), detected_masks("left")
    assert coco_ap(scene, [nothing, nothing], masks=True)["AP"] == 0.0
    with pytest.raises(UserError) as error:
        coco_ap(SCENE, [nothing, nothing], masks=True)
    assert error.value.field == "annotated"
    with pytest.raises(UserError) as error:
        coco_ap(scene, [detected(), detected()], masks=True)
    assert error.value.field == "detections"


@pytest.mark.parametrize("images", [[[]], [[(0, A, True)]], [[], [(1, B, True)]]])
@pytest.mark.parametrize("rows", [[], [(0, A, 0.9)]])
def test_split_without_objects_has_ap_none(images, rows):
    scene = truth(*images)
    result = coco_ap(scene, [detected(*rows)] * len(images))
    assert result["AP"] is result["AP50"] is result["AP_small"] is None
    assert result["per_class"] == result["per_class_AP50"] == {"cat": None, "dog": None}
    assert coco_scores(scene, [detected(*rows)] * len(images))[1] == {}


def test_curves_have_the_expected_precision():
    scene = truth([(0, A, False)], [(0, B, False)])
    detections = [detected((0, (150, 10, 190, 60), 0.8), (0, A, 0.9)), detected((0, B, 0.7))]
    curves = coco_scores(scene, detections)[1]
    recall, precision = curves.pop("cat")
    np.testing.assert_allclose(recall, np.linspace(0, 1, 101))
    np.testing.assert_allclose(precision, [1.0] * 51 + [2 / 3] * 50)
    assert curves == {}


def test_each_class_has_its_ap50():
    result = coco_ap(truth([(0, A, False)]), [detected((0, (20, 10, 70, 60), 0.9))])
    assert result["per_class_AP50"] == {"cat": pytest.approx(1.0), "dog": None}
    assert result["per_class"]["cat"] == pytest.approx(0.4)


def test_ap_counts_at_most_the_allowed_detections():
    boxes = [(0, (x, y, x + 15, y + 15), False) for x in range(0, 200, 16) for y in range(0, 200, 16)][:150]
    scene, detections = truth(boxes), [detected(*((label, box, 0.9) for label, box, _ in boxes))]
    assert coco_ap(scene, detections)["AP"] == pytest.approx(67 / 101)  # recall 100 / 150
    assert coco_ap(scene, detections, most=150)["AP"] == pytest.approx(1.0)
    assert coco_ap(scene, detections, most=30)["AP50"] == pytest.approx(21 / 101)
