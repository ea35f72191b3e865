"""Tests of the contact sheet: its grid, and the colours of its marks."""

import numpy as np
import pytest
from PIL import Image

from dupr_tf.data.labels.annotations import read_annotations
from dupr_tf.data.labels.run_lengths import mask_from_pixels
from dupr_tf.detection.curves import precision_recall_picture
from dupr_tf.detection.pictures import (
    CELL,
    COLUMNS,
    FOUND,
    GAP,
    HEADER,
    IGNORED,
    LABEL,
    TRUTH,
    class_colour,
    contact_sheet,
    detections_picture,
)
from tests.labelled_scenes import COLOURS, Picture, Thing, write_coco
from tests.masked_scenes import write_coco_masks

NONE = {"boxes": np.zeros((0, 4), np.float32), "classes": np.zeros(0, np.int32), "scores": np.zeros(0, np.float32)}


def sheet_of(tmp_path, detections, count):
    things = [Thing("bus", (10, 30, 40, 60)), Thing("cat", (60, 20, 90, 70), difficult=True)]
    root = write_coco(tmp_path / "set", {"val": [Picture((80, 100), things)] * count})
    contact_sheet(read_annotations(root, "val"), detections, tmp_path / "sheet.png")
    return np.asarray(Image.open(tmp_path / "sheet.png"))


@pytest.mark.parametrize(("count", "rows"), [(1, 1), (5, 2), (40, 3)])
def test_grid_of_the_sheet_is_fixed(tmp_path, count, rows):
    sheet = sheet_of(tmp_path, [NONE] * count, count)
    assert sheet.shape == (HEADER + rows * (CELL + GAP), COLUMNS * (CELL + GAP) + GAP, 3)


def test_truth_ignored_and_detected_boxes_are_drawn_in_place(tmp_path):
    found = {
        "boxes": np.array([[20, 5, 50, 25], [21, 5, 50, 25], [70, 50, 95, 75], [2, 2, 9, 9]], np.float32),
        "classes": np.array([1, 0, 2, 0], np.int32),
        "scores": np.array([0.9, 0.8, 0.5, 0.1], np.float32),
    }
    sheet = sheet_of(tmp_path, [found], 1)

    def edge(x, y):  # the colour of the sheet at a pixel of the picture, which is scaled by 3.2
        return tuple(sheet[HEADER + round(y * CELL / 100), GAP + round(x * CELL / 100)])

    assert edge(10, 40) == TRUTH and edge(60, 50) == IGNORED
    assert edge(20, 20) == FOUND and edge(70, 60) == FOUND
    assert edge(2, 5) not in (TRUTH, IGNORED, FOUND)  # below the least score


def test_true_masks_are_lines_and_detected_masks_are_areas(tmp_path):
    root = write_coco_masks(tmp_path / "set", {"val": [Picture((80, 100), [Thing("bus", (10, 10, 50, 70))])]})
    annotated = read_annotations(root, "val", masks=True)
    inside = np.zeros((80, 100))
    inside[20:60, 60:90] = 1
    found = {
        "boxes": np.array([[60, 20, 90, 60]], np.float32),
        "classes": np.array([1], np.int32),
        "scores": np.array([0.9], np.float32),
        "masks": [mask_from_pixels(inside)],
    }
    contact_sheet(annotated, [found], tmp_path / "sheet.png")
    sheet = np.asarray(Image.open(tmp_path / "sheet.png")).astype(int)

    def near(x, y, colour):
        return np.abs(sheet[HEADER + round(y * 3.2), GAP + round(x * 3.2)] - colour).max() < 12

    assert near(30 - 0.4, 55, TRUTH) and near(20, 30, COLOURS["bus"])  # the inner edge of the L, and inside it
    assert near(75, 40, np.add(FOUND, 120) // 2) and near(95, 40, (120, 120, 120))


def test_labels_of_equal_boxes_do_not_cover_each_other():
    found = {
        "boxes": np.array([[20, 30, 80, 90]] * 4, np.float32),
        "classes": np.zeros(4, np.int32),
        "scores": np.linspace(0.9, 0.5, 4),
    }
    image = np.zeros((120, 120, 3), np.uint8)
    picture = np.asarray(detections_picture(image, found, ("cat",), side=120)).astype(int)
    rows = (np.abs(picture[:, 20:70] - FOUND).max(-1) == 0).mean(1) > 0.4
    assert 4 * LABEL - 4 <= rows.sum() < 4 * LABEL + 12  # four labels, and the horizontal edges of the boxes


def test_classes_have_different_colours_for_black_text():
    colours = np.array([class_colour(label) for label in range(18)])
    assert len({tuple(colour) for colour in colours}) == 18
    light = ((colours / 255) ** 2.2) @ [0.2126, 0.7152, 0.0722]
    assert ((light + 0.05) / 0.05 > 4.5).all()  # WCAG's contrast for text


def test_class_names_are_escaped_in_pictures(tmp_path):
    name, found = "two\nlines \udce9 $_{x}$", {**NONE, "boxes": np.array([[1, 1, 30, 30]]), "classes": [0]}
    detections_picture(np.zeros((40, 40, 3), np.uint8), {**found, "scores": np.ones(1)}, (name,))
    curves = {name: (np.linspace(0, 1, 101), np.ones(101)), "_hidden $": (np.linspace(0, 1, 101), np.ones(101))}
    precision_recall_picture(curves, tmp_path / "curves.png")
    assert Image.open(tmp_path / "curves.png").size == (900, 600)
