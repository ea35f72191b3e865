"""Tests of VOC's AP: known answers, the slow twin, pycocotools where both must agree, and `difficult` objects."""

import numpy as np
import pytest

from dupr_tf.data.boxes import box_ious
from dupr_tf.detection.coco_eval import coco_ap
from dupr_tf.detection.voc_eval import voc_ap
from dupr_tf.errors import UserError
from tests import oracles_voc
from tests.detection.test_coco_eval import SCENE, A, B, detected, truth

SHIFTED = (20, 10, 70, 60)  # A moved by 10 of 50 px: IoU 2/3
FAR = (150, 10, 190, 60)


def both(scene, detections):
    return [voc_ap(scene, detections, metric)["AP50"] for metric in ("area", "11_point")]


def test_perfect_detections_have_ap_1_and_none_have_0():
    perfect = [detected((0, A, 0.9), (1, B, 0.8)), detected((0, B, 0.3))]
    for metric in ("area", "11_point"):
        result = voc_ap(SCENE, perfect, metric)
        assert result["AP"] == result["AP50"] == result["AP75"] == pytest.approx(1.0)
        assert result["per_class"] == result["per_class_AP50"] == {"cat": pytest.approx(1.0), "dog": pytest.approx(1.0)}
        nothing = voc_ap(SCENE, [detected(), detected()], metric)
        assert nothing["AP"] == nothing["AP75"] == 0.0 and nothing["per_class"] == {"cat": 0.0, "dog": 0.0}


def test_ap_with_half_of_the_boxes_detected():
    scene = truth([(0, A, False)], [(0, B, False)])
    # Recall is 0.5 at precision 1: half of the area, and six of the eleven recalls 0, 0.1 … 0.5.
    assert both(scene, [detected((0, A, 0.9)), detected()]) == [pytest.approx(1 / 2), pytest.approx(6 / 11)]
    # A false detection before it gives precision 1/2.
    assert both(scene, [detected((0, FAR, 0.95), (0, A, 0.9)), detected()]) == [
        pytest.approx(1 / 4),
        pytest.approx(3 / 11),
    ]


def test_shifted_box_counts_up_to_its_iou():
    result = voc_ap(truth([(0, A, False)]), [detected((0, SHIFTED, 0.9))])
    assert (result["AP50"], result["AP75"], result["AP"]) == (1.0, 0.0, pytest.approx(0.4))


def test_iou_equal_to_the_threshold_is_a_hit():
    half = (10, 10, 60, 35)  # part of A
    assert both(truth([(0, A, False)]), [detected((0, half, 0.9))]) == [1.0, 1.0]


def test_second_detection_of_a_box_is_always_false():
    near = (12, 10, 62, 60)
    scene = truth([(0, A, False), (0, near, False)])
    detections = [detected((0, A, 0.9), (0, (10, 10, 60.5, 60), 0.8))]  # both overlap A most
    assert voc_ap(scene, detections)["AP50"] == pytest.approx(0.5)
    assert coco_ap(scene, detections)["AP50"] == pytest.approx(1.0)  # COCO assigns the other box to the second one


@pytest.mark.parametrize(
    ("second", "expected"),
    [([(0, B, True)], 1.0), ([], 0.5), ([(0, B, False)], 1.0)],
)
def test_detection_of_a_difficult_box_is_not_counted(second, expected):
    scene = truth([(0, A, False), *second])
    assert voc_ap(scene, [detected((0, B, 0.9), (0, A, 0.8))])["AP50"] == pytest.approx(expected)


def test_all_detections_of_a_difficult_box_are_ignored():
    scene = truth([(0, A, False), (0, B, True)])
    assert voc_ap(scene, [detected((0, B, 0.9), (0, B, 0.85), (0, A, 0.8))])["AP50"] == 1.0
    # Unlike with COCO's crowds, a small piece of it is no detection of it.
    piece = (100, 100, 120, 120)
    assert voc_ap(scene, [detected((0, piece, 0.9), (0, A, 0.8))])["AP50"] == pytest.approx(0.5)
    assert coco_ap(scene, [detected((0, piece, 0.9), (0, A, 0.8))])["AP50"] == pytest.approx(1.0)


def test_class_without_objects_has_ap_none():
    empty = truth([], [(0, A, True)])
    result = voc_ap(empty, [detected((0, A, 0.9)), detected((1, B, 0.5))])
    assert result["AP"] is result["AP50"] is result["AP75"] is None
    assert result["per_class"] == {"cat": None, "dog": None}
    one = voc_ap(truth([(0, A, False)]), [detected((0, A, 0.9), (1, B, 0.99))])
    assert one["AP"] == 1.0 and one["per_class"]["dog"] is None  # an absent class does not count


def test_voc_ap_refuses_unknown_metrics_and_missing_images():
    with pytest.raises(UserError) as error:
        voc_ap(SCENE, [detected(), detected()], "coco")
    assert error.value.field == "metric"
    with pytest.raises(UserError) as error:
        voc_ap(SCENE, [])
    assert error.value.field == "detections"


def test_ious_of_boxes_without_area_are_0():
    np.testing.assert_array_equal(
        box_ious([[1, 1, 1, 5], [0, 0, 2, 2]], [[1, 1, 1, 5], [0, 0, 2, 4]]), [[0, 0], [0, 0.5]]
    )


def random_scene(seed, images=8, classes=2):
    """Returns objects and detections with integer boxes as VOC's, from 1 with both ends inside; scores all differ."""
    rng = np.random.default_rng(seed)
    objects, detections, scores = [], [], iter(rng.permutation(10_000) / 10_000)
    for _ in range(images):
        rows = []
        for _ in range(rng.integers(0, 5)):
            x, y, w, h = *rng.integers(1, 100, 2), *rng.integers(10, 60, 2)
            rows.append((int(rng.integers(classes)), (x, y, x + w, y + h), bool(rng.random() < 0.25)))
        objects.append(rows)
        made = []
        for label, box, _ in rows * 2:
            moved = np.array(box) + rng.integers(-9, 10, 4)
            made.append(
                (label if rng.random() < 0.9 else 1 - label, np.maximum(moved, [1, 1, *moved[:2]]), next(scores))
            )
        for _ in range(rng.integers(0, 3)):
            x, y, w, h = *rng.integers(1, 100, 2), *rng.integers(10, 60, 2)
            made.append((int(rng.integers(classes)), np.array([x, y, x + w, y + h]), next(scores)))
        detections.append(made)
    return objects, detections


@pytest.mark.parametrize("seed", range(6))
def test_voc_ap_agrees_with_the_slow_twin(seed):
    objects, detections = random_scene(seed)
    first = np.array([1, 1, 0, 0])  # VOC's pixels include the ends: its last pixel is where our box ends
    scene = truth(*[[(label, np.array(box) - first, difficult) for label, box, difficult in rows] for rows in objects])
    ours = [detected(*[(label, box - first, score) for label, box, score in rows]) for rows in detections]
    ours = [
        {**one, "scores": np.array([score for *_, score in rows])} for one, rows in zip(ours, detections, strict=True)
    ]
    results, seen = {metric: voc_ap(scene, ours, metric) for metric in ("area", "11_point")}, []
    for label, name in enumerate(scene.class_names):
        boxes = {i: [(box, hard) for k, box, hard in rows if k == label] for i, rows in enumerate(objects)}
        guesses = [(s, i, tuple(map(int, b))) for i, rows in enumerate(detections) for k, b, s in rows if k == label]
        curves = [oracles_voc.precision_recall(boxes, guesses, iou) for iou in np.linspace(0.5, 0.95, 10)]
        for metric, average in (("area", oracles_voc.average_area), ("11_point", oracles_voc.average_11_point)):
            aps = [average(*curve) for curve in curves]
            seen.append(aps[0])
            assert results[metric]["per_class"][name] == pytest.approx(np.mean(aps), abs=1e-9)
            assert results[metric]["per_class_AP50"][name] == pytest.approx(aps[0], abs=1e-9)
    assert 0.1 < max(seen) < 1


def test_voc_ap_agrees_with_pycocotools_in_common_cases():
    """Boxes lie far apart with one detection each, all found. The envelope is then the same at every recall up to 1."""
    scene = truth(*[[(0, (10, 10, 60, 60), False), (0, (100, 10, 180, 90), False)] for _ in range(50)])
    ours = [
        detected((0, (10, 10, 60, 60), 0.99 - i / 1000), (0, (100, 10, 180, 90), 0.9 - i / 1000)) for i in range(50)
    ]
    assert voc_ap(scene, ours)["AP"] == pytest.approx(coco_ap(scene, ours)["AP"]) == pytest.approx(1)
    # One false detection of the best score in each image makes precision a half throughout.
    false = [detected((0, FAR, 1 - i / 1e4), *[(0, one["boxes"][0], 1 - i / 1e4 - 1e-5)]) for i, one in enumerate(ours)]
    halves = [voc_ap(truth(*[[(0, (10, 10, 60, 60), False)]] * 50), false, "area")["AP50"]]
    halves.append(coco_ap(truth(*[[(0, (10, 10, 60, 60), False)]] * 50), false)["AP50"])
    assert halves == [pytest.approx(0.5, abs=1e-6)] * 2
    # A random scene, without difficult boxes or boxes that share a detection: 101 recalls against the whole area.
    rng = np.random.default_rng(0)
    grid = [(x, y, x + 30, y + 30) for x in (5, 65, 125) for y in (5, 65, 125)]
    scene = truth(*[[(0, box, False) for box in grid] for _ in range(30)])
    ours = [
        detected(*[(0, np.array(b) + np.tile(rng.integers(-6, 7, 2), 2), rng.random()) for b in grid])
        for _ in range(30)
    ]
    mine, theirs = voc_ap(scene, ours), coco_ap(scene, ours)
    assert 0.05 < mine["AP75"] < mine["AP50"] < 1
    for name in ("AP", "AP50", "AP75"):
        assert mine[name] == pytest.approx(theirs[name], abs=0.01)
