"""Cityscapes' AP: known answers, and what groups, small objects and void pixels do to it.

Ten random scenes with groups, void, small objects and equal scores were compared once with cityscapesScripts 2.3.0:
AP and AP50 of every class were equal to 1e-9.
"""

import dataclasses

import numpy as np
import pytest

from dupr_tf.data.labels.run_lengths import mask_from_pixels
from dupr_tf.detection.cityscapes_eval import cityscapes_ap
from dupr_tf.errors import UserError
from tests.detection.test_coco_eval import found, truth

SIZE = (200, 200)  # of the images of `truth`
A, B, SMALL = (10, 10, 60, 60), (100, 100, 180, 190), (5, 5, 14, 16)  # the last has 99 px


def pixels(box):
    mask = np.zeros(SIZE, bool)
    x1, y1, x2, y2 = box
    mask[y1:y2, x1:x2] = True
    return mask


def masked(*images, void=None):
    """Truth whose masks are its boxes."""
    scene = truth(*images)
    masks = tuple([mask_from_pixels(pixels(tuple(map(int, box)))) for box in boxes] for boxes in scene.boxes)
    void = None if void is None else tuple(mask_from_pixels(pixels(box)) for box in void)
    return dataclasses.replace(scene, masks=masks, void=void)


def seen(*rows):
    return {**found(*rows), "masks": [mask_from_pixels(pixels(box)) for _, box, _ in rows]}


def test_perfect_detections_and_none():
    scene = masked([(0, A, False), (1, B, False)], [(0, B, False)])
    result = cityscapes_ap(scene, [seen((0, A, 0.9), (1, B, 0.8)), seen((0, B, 0.3))])
    assert result["AP"] == result["AP50"] == pytest.approx(1)
    assert result["per_class"] == result["per_class_AP50"] == {"cat": pytest.approx(1), "dog": pytest.approx(1)}
    nothing = cityscapes_ap(scene, [seen(), seen()])
    assert nothing["AP"] == 0 and nothing["per_class"] == {"cat": 0, "dog": 0}


def test_the_area_is_summed_by_the_trapezoidal_rule():
    # Of two objects one is found, at a score below a false one's. By falling score: precision 0, recall 0; 1/2, 1/2.
    scene = masked([(0, A, False), (0, B, False)])
    result = cityscapes_ap(scene, [seen((0, (70, 10, 90, 30), 0.9), (0, A, 0.8))])
    # Points of (recall, precision) from the lowest score up: (1/2, 1/2), (0, 0), and the made-up (0, 1).
    # Steps: (1/2 - 0)/2 at the first, (1/2 - 0)/2 at the second, 0 at the last.
    assert result["AP50"] == pytest.approx(1 / 2 * 1 / 4)
    # The other way about: (1/2, 1/2), (1/2, 1), (0, 1): steps 0, 1/4, 1/4.
    result = cityscapes_ap(scene, [seen((0, (70, 10, 90, 30), 0.7), (0, A, 0.8))])
    assert result["AP50"] == pytest.approx(1 / 2)


def test_the_iou_has_to_be_above_the_threshold():
    half = (10, 10, 60, 35)  # of A: IoU 1/2, and all of it on A
    scene = masked([(0, A, False)])
    assert cityscapes_ap(scene, [seen((0, half, 0.9))])["AP50"] == 0
    assert cityscapes_ap(scene, [seen((0, (10, 10, 60, 36), 0.9))])["AP50"] == pytest.approx(1)
    two_thirds = (10, 10, 60, 43)  # 0.66: above 0.5, 0.55, 0.6, 0.65
    assert cityscapes_ap(scene, [seen((0, two_thirds, 0.9))])["AP"] == pytest.approx(0.4)


def test_of_two_detections_of_an_object_the_better_is_the_hit():
    # At 0.8 precision 1/2, recall 1; at 0.9 precision 1, recall 1; steps 0, 1/2, 1/2.
    scene = masked([(0, A, False)])
    for scores in ((0.9, 0.8), (0.8, 0.9)):
        assert cityscapes_ap(scene, [seen(*((0, A, score) for score in scores))])["AP50"] == pytest.approx(1)
    # Equal scores are one point: precision 1/2 there, and half of the way down from the made-up point at 1.
    assert cityscapes_ap(scene, [seen((0, A, 0.9), (0, A, 0.9))])["AP50"] == pytest.approx(3 / 4)


FALSE_FIRST = 1 / 2 * 1 / 2  # one object, found at a score below a false one's: (1, 1/2), (0, 0), (0, 1)


@pytest.mark.parametrize(
    ("extra", "expected"),
    [
        ([(0, B, True)], 1),  # a group of the class
        ([(1, B, True)], FALSE_FIRST),  # of another
        ([], FALSE_FIRST),
    ],
)
def test_what_lies_on_a_group_is_not_counted(extra, expected):
    inside = (100, 100, 140, 190)  # half of B, all of it on B
    scene = masked([(0, A, False), *extra])
    assert cityscapes_ap(scene, [seen((0, inside, 0.9), (0, A, 0.8))])["AP50"] == pytest.approx(expected)
    assert cityscapes_ap(scene, [seen((0, A, 0.8))])["AP50"] == pytest.approx(1)  # a group need not be found


def test_objects_of_less_than_100_pixels_are_neither_missed_nor_wrong():
    scene = masked([(0, A, False), (0, SMALL, False)])
    assert cityscapes_ap(scene, [seen((0, A, 0.8))])["AP50"] == pytest.approx(1)
    assert cityscapes_ap(scene, [seen((0, SMALL, 0.9), (0, A, 0.8))])["AP50"] == pytest.approx(1)
    larger = masked([(0, A, False), (0, (5, 70, 15, 80), False)])  # 100 px count
    assert cityscapes_ap(larger, [seen((0, A, 0.8))])["AP50"] == pytest.approx(1 / 2)


def test_void_pixels_forgive_up_to_the_threshold():
    two_thirds_void = (70, 10, 100, 40)
    scene = masked([(0, A, False)], void=[(80, 0, 200, 50)])
    result = cityscapes_ap(scene, [seen((0, two_thirds_void, 0.9), (0, A, 0.8))])
    assert result["AP50"] == pytest.approx(1)
    # 0.667 is above 0.5 … 0.65 and not above 0.7 … 0.95.
    assert result["AP"] == pytest.approx(0.4 * 1 + 0.6 * FALSE_FIRST)


def test_nothing_to_find_is_none():
    scene = masked([(0, B, True)], [(1, SMALL, False)], [])
    result = cityscapes_ap(scene, [seen((0, A, 0.5)), seen(), seen()])
    assert result["AP"] is result["AP50"] is None and result["per_class"] == {"cat": None, "dog": None}


def test_only_ignorable_detections_are_an_ap_of_0_and_empty_masks_are_nothing():
    scene = masked([(0, A, False), (0, B, True)])
    assert cityscapes_ap(scene, [seen((0, B, 0.5))])["AP"] == 0
    empty = {**found((0, B, 0.9)), "masks": [mask_from_pixels(np.zeros(SIZE))]}
    assert cityscapes_ap(scene, [empty])["AP"] == 0


def test_cityscapes_ap_without_masks_is_refused():
    scene = masked([(0, A, False)])
    with pytest.raises(UserError) as error:
        cityscapes_ap(dataclasses.replace(scene, masks=None), [seen()])
    assert error.value.field == "annotated"
    with pytest.raises(UserError) as error:
        cityscapes_ap(scene, [found()])
    assert error.value.field == "detections"
