"""Tests of the confusion of detected objects, and of the suggested threshold, on scenes counted by hand."""

import numpy as np
import pytest
from PIL import Image

from dupr_tf.detection.confusion import (
    NO_OBJECT,
    confusion_picture,
    count_confusion,
    name_confusion,
    shares_inside,
    suggest_threshold,
)
from tests.detection.test_coco_eval import detected, truth

A, B, C = (10, 10, 50, 50), (100, 100, 140, 140), (150, 10, 190, 50)
CAT, DOG = 0, 1
SCENE = truth([(CAT, A, False), (DOG, B, False)], [(CAT, A, False), (DOG, C, True)])
# By falling score: a hit, a cat called dog, a dog on ignored ground. Then: a false one, the same cat again, a hit.
FOUND = [
    detected((CAT, A, 0.9), (CAT, C, 0.6), (CAT, A, 0.5), (DOG, B, 0.4)),
    detected((DOG, A, 0.8), (DOG, C, 0.7)),
]


def test_confusion_counts_each_object_once():
    counts = count_confusion(SCENE, FOUND, min_score=0.45)
    np.testing.assert_array_equal(counts, [[1, 1, 0], [0, 0, 1], [2, 0, 0]])
    assert name_confusion(counts, SCENE.class_names) == {
        "cat": {"cat": 1, "dog": 1},
        "dog": {NO_OBJECT: 1},
        NO_OBJECT: {"cat": 2},
    }
    np.testing.assert_array_equal(count_confusion(SCENE, FOUND, 0.0), [[1, 1, 0], [0, 1, 0], [2, 0, 0]])
    np.testing.assert_array_equal(count_confusion(SCENE, FOUND, 1.0), [[0, 0, 2], [0, 0, 1], [0, 0, 0]])


def test_threshold_has_the_best_f1():
    # Three objects count. At 0.9, 1 of 1 detections is a hit (F1 2/4); at 0.4, 2 of 5 are (F1 4/8), which is no better.
    best = suggest_threshold(SCENE, FOUND)
    assert best == pytest.approx({"min_score": 0.9, "precision": 1.0, "recall": 1 / 3, "f1": 0.5})
    more = [detected((CAT, A, 0.9), (DOG, B, 0.4)), FOUND[1]]
    assert suggest_threshold(SCENE, more) == pytest.approx(
        {"min_score": 0.4, "precision": 2 / 3, "recall": 2 / 3, "f1": 2 / 3}
    )


def test_threshold_keeps_detections_of_equal_score_together():
    same = [detected((CAT, A, 0.5), (DOG, B, 0.5), (CAT, C, 0.5)), detected()]
    assert suggest_threshold(SCENE, same)["precision"] == pytest.approx(2 / 3)


@pytest.mark.parametrize("detections", [[detected(), detected()], [detected((DOG, A, 0.9)), detected()]])
def test_threshold_without_a_hit_is_none(detections):
    assert suggest_threshold(SCENE, detections) is None
    assert suggest_threshold(truth([], []), detections) is None


def test_confusion_picture_accepts_odd_names(tmp_path):
    confusion_picture(np.eye(3), ("_a$b$", "two\nlines"), "score of 0.5 or more")(tmp_path / "c.png")
    assert np.asarray(Image.open(tmp_path / "c.png")).std() > 1


def test_detections_inside_a_crowd_are_no_false_alarms():
    crowd, inside, beside = (0, 0, 100, 100), (10, 10, 40, 90), (90, 10, 130, 50)
    scene = truth([(CAT, crowd, True), (DOG, B, False)])
    found = [detected((CAT, inside, 0.9), (CAT, beside, 0.8), (DOG, inside, 0.7), (DOG, B, 0.6))]
    np.testing.assert_array_equal(count_confusion(scene, found, 0.0), [[0, 0, 0], [0, 1, 0], [1, 1, 0]])
    assert suggest_threshold(scene, found)["precision"] == pytest.approx(1 / 3)


def test_detections_on_an_ignored_object_do_not_count_whatever_their_class():
    scene = truth([(DOG, A, True), (CAT, B, False)])
    counts = count_confusion(scene, [detected((CAT, A, 0.9), (CAT, B, 0.8))], 0.0)
    np.testing.assert_array_equal(counts, [[1, 0, 0], [0, 0, 0], [0, 0, 0]])


def test_shares_inside_regions():
    boxes = np.array([[0, 0, 10, 10], [5, 0, 15, 10], [20, 20, 30, 30], [3, 3, 3, 8]], float)
    np.testing.assert_array_equal(shares_inside(boxes, np.array([[0.0, 0, 10, 40]])).ravel(), [1, 0.5, 0, 0])
    assert shares_inside(boxes, np.zeros((0, 4))).shape == (4, 0)
