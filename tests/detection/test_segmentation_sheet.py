"""Tests of the sheet for segmentation: image, truth and prediction side by side, in the colours of the legend."""

import numpy as np
import pytest
from PIL import Image

from dupr_tf.data.labels.segments import read_segments
from dupr_tf.detection.pictures import CELL, GAP, HEADER, sheet_positions
from dupr_tf.detection.segmentation_sheet import NO_CLASS, class_colours, segmentation_sheet
from tests.labelled_scenes import COLOURS, Picture, Thing
from tests.masked_scenes import IGNORE, write_segments

PICTURE = Picture((60, 80), [Thing("bus", (10, 10, 50, 50))])


def sheet_of(tmp_path, count, wrong=0):
    root = write_segments(tmp_path / "set", {"val": [PICTURE] * count})
    segmented = read_segments(root, "val", class_names=("ground", "bus", "cat", "dog"), ignore_value=IGNORE)
    predictions = {i: np.full((60, 80), wrong) for i in sheet_positions(count, 4)}
    segmentation_sheet(segmented, predictions, tmp_path / "sheet.png")
    return np.asarray(Image.open(tmp_path / "sheet.png")).astype(int)


@pytest.mark.parametrize(("count", "rows"), [(1, 1), (3, 3), (9, 4)])
def test_grid_of_the_sheet_is_fixed(tmp_path, count, rows):
    sheet = sheet_of(tmp_path, count)
    assert sheet.shape[1] == 3 * (CELL + GAP) + GAP
    assert 0 < sheet.shape[0] - (HEADER + rows * (CELL * 60 // 80 + GAP)) < 60  # the legend


def test_colours_mark_their_classes(tmp_path):
    sheet, colours = sheet_of(tmp_path, 1, wrong=2), class_colours(4)

    def pixel(column, x, y):  # position in the picture, which is scaled by 4
        return sheet[HEADER + 4 * y, GAP + column * (CELL + GAP) + 4 * x]

    assert np.abs(pixel(0, 20, 20) - COLOURS["bus"]).max() < 30
    np.testing.assert_array_equal(pixel(1, 20, 20), colours[1])
    np.testing.assert_array_equal(pixel(1, 70, 40), colours[0])
    np.testing.assert_array_equal(pixel(1, 70, 1), NO_CLASS)
    for x, y in ((20, 20), (70, 40), (70, 1)):
        np.testing.assert_array_equal(pixel(2, x, y), colours[2])


@pytest.mark.parametrize("classes", [2, 12, 19, 60])
def test_every_class_has_a_different_colour(classes):
    colours = class_colours(classes)[:classes].astype(int)
    apart = np.abs(colours[:, None] - colours[None]).sum(-1) + 999 * np.eye(classes, dtype=int)
    assert apart.min() > (60 if classes <= 19 else 5)


def test_sampled_positions_are_spread():
    assert (
        sheet_positions(101, 4) == [0, 33, 67, 100] and sheet_positions(2, 4) == [0, 1] and sheet_positions(0, 4) == []
    )
