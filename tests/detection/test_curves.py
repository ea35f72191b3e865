"""Tests of the picture of precision against recall, and of the rows of a table."""

import numpy as np
import pytest
from PIL import Image

from dupr_tf.detection.curves import class_rows, precision_recall_picture, threshold_lines

RECALL = np.linspace(0, 1, 101)


def drawn(tmp_path, curves):
    precision_recall_picture(curves, tmp_path / "curves.png", "a title")
    assert (tmp_path / "curves.png").stat().st_size < 400_000
    return np.asarray(Image.open(tmp_path / "curves.png").convert("RGB")).astype(int)


@pytest.mark.parametrize("count", [0, 1, 20, 80])
def test_curve_picture_has_a_fixed_size(tmp_path, count):
    curves = {f"class {i}": (RECALL, np.clip(1 - RECALL * (i + 1) / 40, 0, 1)) for i in range(count)}
    assert drawn(tmp_path, curves).shape == (600, 900, 3)


def test_curve_of_the_mean_lies_between_the_classes(tmp_path):
    image = drawn(tmp_path, {"good": (RECALL, np.full(101, 0.9)), "bad": (RECALL, np.full(101, 0.1))})
    column = image[40:550, 400]  # through the middle of the axes
    dark = np.mean(np.flatnonzero((column < 40).all(1)))
    blue, orange = (column[:, 2] - column[:, 0]).argmax(), (column[:, 0] - column[:, 2]).argmax()
    assert blue < dark < orange  # the better class has the first colour, and lies higher
    assert dark == pytest.approx((blue + orange) / 2, abs=2)


def test_rows_of_boxes_have_ap():
    metrics = {"AP": 0.3, "per_class": {"cat": 0.25, "dog": None}, "per_class_AP50": {"cat": 0.5, "dog": None}}
    assert class_rows(metrics) == [("class", "AP", "AP50"), ("cat", "0.250", "0.500"), ("dog", "none", "none")]


def test_rows_of_pixels_have_a_fixed_order():
    metrics = {"mIoU": 0.4, "per_class": {"road": 0.2, "car": 0.6, "sky": None, "tree": 0.0}}
    rows = class_rows(metrics)
    assert rows[0] == ("class", "IoU") and [row[0] for row in rows[1:]] == ["car", "road", "tree", "sky"]


def test_printed_threshold_keeps_the_detection_that_defines_it():
    (line,) = threshold_lines({"suggested_threshold": {"min_score": 0.42379, "precision": 0.5, "recall": 0.5}})
    assert "--min-score 0.423:" in line and threshold_lines({}) == []
