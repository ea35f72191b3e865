"""Tests of Cityscapes' AP: known answers, and the effect of groups, small objects and void pixels.

Ten random scenes with groups, void, small objects and equal scores were compared once with cityscapesScripts 2.3.0. AP
and AP50 of every class were equal to 1e-9.
"""

import dataclasses

import numpy as np
import pytest

from dupr_tf.data.labels.run_lengths import mask_from_pixels
from dupr_tf.detection.cityscapes_eval import cityscapes_ap
from dupr_tf.errors import UserError
from tests.detection.test_coco_eval import detected, truth

SIZE = (200, 200)  # numbers of the images of `truth`
A, B, SMALL = (10, 10, 60, 60), (100, 100, 180, 190), (5, 5, 14, 16)  # the last object has 99 px


def pixels(box):
    mask = np.zeros(SIZE, bool)
    x1, y1, x2, y2 = box
    mask[y1:y2, x1:x2] = True
    return mask


def masked(*images, void=None):
    """Returns truth whose masks are its boxes."""
    scene = truth(*images)
    masks = tuple([mask_from_pixels(pixels(tuple(map(int, box)))) for box in boxes] for boxes in scene.boxes)
    void = None if void is None else tuple(mask_from_pixels(pixels(box)) for box in void)
    return dataclasses.replace(scene, masks=masks, void=void)


def seen(*rows):
    return {**detected(*rows), "masks": [mask_from_pixels(pixels(box)) for _, box, _ in rows]}


def test_perfect_detections_have_ap_1_and_none_have_0():
    scene = masked([(0, A, False), (1, B, False)], [(0, B, False)])
    result = cityscapes_ap(scene, [seen((0, A, 0.9), (1, B, 0.8)), seen((0, B, 0.3))])
    assert result["AP"] == result["AP50"] == pytest.approx(1)
    assert result["per_class"] == result["per_class_AP50"] == {"cat": pytest.approx(1), "dog": pytest.approx(1)}
    nothing = cityscapes_ap(scene, [seen(), seen()])
    assert nothing["AP"] == 0 and nothing["per_class"] == {"cat": 0, "dog": 0}


def test_area_is_summed_by_the_trapezoidal_rule():
    # One of two objects is found, at a score below a false one's. By falling score: precision 0, recall 0; 1/2, 1/2.
    scene = masked([(0, A, False), (0, B, False)])
    result = cityscapes_ap(scene, [seen((0, (70, 10, 90, 30), 0.9), (0, A, 0.8))])
    # Points of (recall, precision) from the lowest score up are (1/2, 1/2), (0, 0), and the added point (0, 1).
    # The steps are (1/2 - 0)/2 at the first, (1/2 - 0)/2 at the second, and 0 at the last.
    assert result["AP50"] == pytest.approx(1 / 2 * 1 / 4)
    # In the other order the points are (1/2, 1/2), (1/2, 1), (0, 1), with steps 0, 1/4, 1/4.
    result = cityscapes_ap(scene, [seen((0, (70, 10, 90, 30), 0.7), (0, A, 0.8))])
    assert result["AP50"] == pytest.approx(1 / 2)


def test_iou_must_exceed_the_threshold():
    half = (10, 10, 60, 35)  # IoU 1/2 with A, and all of it lies on A
    scene = masked([(0, A, False)])
    assert cityscapes_ap(scene, [seen((0, half, 0.9))])["AP50"] == 0
    assert cityscapes_ap(scene, [seen((0, (10, 10, 60, 36), 0.9))])["AP50"] == pytest.approx(1)
    two_thirds = (10, 10, 60, 43)  # 0.66 exceeds 0.5, 0.55, 0.6, 0.65
    assert cityscapes_ap(scene, [seen((0, two_thirds, 0.9))])["AP"] == pytest.approx(0.4)


def test_better_of_two_detections_is_the_hit():
    # At 0.8 precision is 1/2 and recall 1. At 0.9 precision is 1 and recall 1. The steps are 0, 1/2, 1/2.
    scene = masked([(0, A, False)])
    for scores in ((0.9, 0.8), (0.8, 0.9)):
        assert cityscapes_ap(scene, [seen(*((0, A, score) for score in scores))])["AP50"] == pytest.approx(1)
    # Equal scores are one point of precision 1/2, halfway down from the added point at 1.
    assert cityscapes_ap(scene, [seen((0, A, 0.9), (0, A, 0.9))])["AP50"] == pytest.approx(3 / 4)


FALSE_FIRST = 1 / 2 * 1 / 2  # one object, at a score below a false one's: (1, 1/2), (0, 0), (0, 1)


@pytest.mark.parametrize(
    ("extra", "expected"),
    [
        ([(0, B, True)], 1),  # a group of the class
        ([(1, B, True)], FALSE_FIRST),  # a group of another class
        ([], FALSE_FIRST),
    ],
)
def test_detections_on_a_group_are_not_counted(extra, expected):
    inside = (100, 100, 140, 190)  # half of B, and all of it on B
    scene = masked([(0, A, False), *extra])
    assert cityscapes_ap(scene, [seen((0, inside, 0.9), (0, A, 0.8))])["AP50"] == pytest.approx(expected)
    assert cityscapes_ap(scene, [seen((0, A, 0.8))])["AP50"] == pytest.approx(1)  # a group need not be found


def test_objects_below_100_pixels_are_not_counted():
    scene = masked([(0, A, False), (0, SMALL, False)])
    assert cityscapes_ap(scene, [seen((0, A, 0.8))])["AP50"] == pytest.approx(1)
    assert cityscapes_ap(scene, [seen((0, SMALL, 0.9), (0, A, 0.8))])["AP50"] == pytest.approx(1)
    larger = masked([(0, A, False), (0, (5, 70, 15, 80), False)])  # objects of 100 px count
    assert cityscapes_ap(larger, [seen((0, A, 0.8))])["AP50"] == pytest.approx(1 / 2)


def test_void_share_above_the_threshold_excuses_detections():
    two_thirds_void = (70, 10, 100, 40)
    scene = masked([(0, A, False)], void=[(80, 0, 200, 50)])
    result = cityscapes_ap(scene, [seen((0, two_thirds_void, 0.9), (0, A, 0.8))])
    assert result["AP50"] == pytest.approx(1)
    # 0.667 exceeds 0.5 … 0.65, but not 0.7 … 0.95.
    assert result["AP"] == pytest.approx(0.4 * 1 + 0.6 * FALSE_FIRST)


def test_class_without_objects_has_ap_none():
    scene = masked([(0, B, True)], [(1, SMALL, False)], [])
    result = cityscapes_ap(scene, [seen((0, A, 0.5)), seen(), seen()])
    assert result["AP"] is result["AP50"] is None and result["per_class"] == {"cat": None, "dog": None}


def test_only_ignored_detections_give_ap_0():
    scene = masked([(0, A, False), (0, B, True)])
    assert cityscapes_ap(scene, [seen((0, B, 0.5))])["AP"] == 0
    empty = {**detected((0, B, 0.9)), "masks": [mask_from_pixels(np.zeros(SIZE))]}
    assert cityscapes_ap(scene, [empty])["AP"] == 0


def test_cityscapes_ap_without_masks_is_refused():
    scene = masked([(0, A, False)])
    with pytest.raises(UserError) as error:
        cityscapes_ap(dataclasses.replace(scene, masks=None), [seen()])
    assert error.value.field == "annotated"
    with pytest.raises(UserError) as error:
        cityscapes_ap(scene, [detected()])
    assert error.value.field == "detections"
