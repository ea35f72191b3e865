"""Tests the drawn training pictures of a detector: pixels, boxes and anchors of its batches."""

import numpy as np
import pytest

from dupr_tf.cli import main
from dupr_tf.config import load_config
from dupr_tf.data.detection import train_batches
from dupr_tf.data.inspection import matched_boxes
from dupr_tf.data.labels.annotations import read_annotations
from dupr_tf.probing.box_sheet import SIDE, box_sheet, training_pictures
from dupr_tf.probing.drawing import BOX, GAP, LINE, RIGHT, WRONG
from tests.labelled_scenes import NAMES, pictures, write_coco


def config(**values):
    values = {"data.image_size": "96", "train.batch_size": "4", **values}
    return load_config("configs/retinanet_r18_small.yaml", values)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return write_coco(tmp_path_factory.mktemp("sheet") / "set", {"train": pictures(6)})


@pytest.mark.parametrize("sizes", [{}, {"detector.short_sides": "[64, 96]"}])
def test_training_pictures_show_the_first_batch(root, sizes):
    annotated, settings = read_annotations(root, "train"), config(**sizes)
    made = training_pictures(annotated, settings, 4)
    with train_batches(annotated, settings, 1) as batches:
        batch = next(iter(batches))
    for number, picture in enumerate(made):
        height, width = picture.pixels.shape[:2]
        np.testing.assert_array_equal(batch["images"][number][:height, :width], picture.pixels)
        count = len(picture.boxes)
        np.testing.assert_array_equal(batch["bounding_boxes"]["boxes"][number][:count], picture.boxes)
        assert (batch["bounding_boxes"]["classes"][number][count:] == -1).all()
        labels = batch["bounding_boxes"]["classes"][number][:count].astype(int)
        assert picture.classes == [NAMES[label] for label in labels]


def test_anchors_overlap_their_box_by_half(root):
    settings = config()
    for picture in training_pictures(read_annotations(root, "train"), settings, 6):
        box = picture.boxes[picture.owners]
        shared = np.minimum(box[:, 2:], picture.anchors[:, 2:]) - np.maximum(box[:, :2], picture.anchors[:, :2])
        shared = shared.clip(0).prod(1)
        areas = [(one[:, 2:] - one[:, :2]).prod(1) for one in (box, picture.anchors)]
        assert len(shared) and (shared / (sum(areas) - shared) >= 0.5).all()
        matched = matched_boxes(picture.boxes, (96, 96), settings.detector.anchor_scale or 4.0, 0.5)
        assert set(np.flatnonzero(matched)) == set(picture.owners)


def test_sheet_draws_boxes_and_anchors_in_their_colours(root):
    (picture,) = training_pictures(read_annotations(root, "train"), config(), 1)
    drawn = np.asarray(box_sheet([picture], 2))
    assert drawn.shape == (SIDE + 2 * GAP + LINE, SIDE + 2 * GAP, 3)
    x1, y1, _, y2 = picture.boxes[0] * SIDE / 96
    middle = drawn[round(GAP + LINE + (y1 + y2) / 2), round(GAP + x1 + 1)]
    assert tuple(middle) in (BOX, RIGHT) and (drawn == RIGHT).all(-1).any()
    lost = picture._replace(anchors=picture.anchors[:0], owners=picture.owners[:0])
    drawn = np.asarray(box_sheet([lost], 1))
    assert (drawn == WRONG).all(-1).any() and not (drawn == BOX).all(-1).any()


def test_two_stage_detectors_have_boxes_only(root):
    settings = load_config("configs/detection/small_faster_rcnn_fpn.yaml", {})
    (picture,) = training_pictures(read_annotations(root, "train"), settings, 1)
    assert not picture.anchored and len(picture.anchors) == 0
    assert not (np.asarray(box_sheet([picture], 1)) == WRONG).all(-1).any()


def test_views_of_a_detector_config_writes_the_sheet(root, tmp_path, capsys):
    words = ["views", "configs/retinanet_r18_small.yaml", "--data", str(root), "--pairs", "4"]
    assert main([*words, "--output", str(tmp_path / "v.png")]) == 0
    assert (tmp_path / "v.png").stat().st_size > 1000 and "4 pictures" in capsys.readouterr().out
