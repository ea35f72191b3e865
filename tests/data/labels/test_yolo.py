"""Tests of YOLO's label files, lists and class names."""

import numpy as np
import pytest

from dupr_tf.data.labels import yolo
from dupr_tf.data.labels.annotations import NO_FILE, read_annotations
from dupr_tf.data.labels.shapes import FLAT
from tests.label_formats import ONE, SCENE, SPLITS, check_boxes, dump, write_darknet, write_yolo
from tests.labelled_scenes import NAMES, pictures
from tests.refusals import refusal


def yolo_lines(tmp_path, *lines, head=""):
    """A YOLO set of one image with the lines."""
    root = write_yolo(tmp_path / "set", {"train": [SCENE]})
    dump(root / "labels/train/train_0.txt", "\n".join(lines))
    (root / "data.yaml").write_text((root / "data.yaml").read_text() + head)
    return root


def test_empty_and_missing_yolo_files_are_background(tmp_path):
    root = write_yolo(tmp_path / "set", {"train": pictures(3)})
    (root / "labels/train/train_0.txt").write_text("\n")
    (root / "labels/train/train_1.txt").unlink()
    read = read_annotations(root, "train")
    assert read.bare == (True, True, False) and read.counts[yolo.UNLABELLED] == 1


def test_yolo_label_without_image_counts_as_missing(tmp_path):
    root = write_yolo(tmp_path / "set", {"train": pictures(4)})
    (root / "images/train/train_3.jpg").unlink()
    assert refusal(read_annotations, root, "train").field == "data.max_bad_share"
    assert read_annotations(root, "train", max_bad_share=0.25).counts[NO_FILE] == 1


def test_yolo_keypoints_are_counted_and_their_boxes_read(tmp_path):
    root = yolo_lines(tmp_path, "1 .5 .5 .2 .2 .4 .4 2 .6 .6 1", head="kpt_shape: [2, 3]\n")
    read = read_annotations(root, "train")
    np.testing.assert_allclose(read.boxes[0], [[32, 24, 48, 36]], atol=1e-4)
    assert read.counts[yolo.KEYPOINTS] == 1


def test_yolo_polygons_of_four_points_and_flat_ones_are_counted(tmp_path):
    root = yolo_lines(tmp_path, "0 .1 .1 .5 .2 .4 .6 .1 .5", "1 .1 .1 .2 .2 .3 .3")
    assert f"1 {FLAT}" in refusal(read_annotations, root, "train").problem
    read = read_annotations(root, "train", max_bad_share=0.5)
    assert len(read.boxes[0]) == 1 and read.counts[yolo.FOUR] == 1 and read.counts[FLAT] == 1


@pytest.mark.parametrize(
    "line", ["7 .5 .5 .1 .1", "cat .5 .5 .1 .1", "0 .5 .5 .1", "0 .5 .5 .1 .1 .9", "0 320 240 64 48", "nan .5 .5 .1 .1"]
)
def test_wrong_yolo_lines_are_refused_with_their_file(tmp_path, line):
    assert "train_0.txt" in refusal(read_annotations, yolo_lines(tmp_path, line), "train").problem


@pytest.mark.parametrize("head", ["nc: 5\n", "names: {0: a}\n", "kpt_shape: x\n", "val: *a\n"])
def test_wrong_data_yaml_is_refused(tmp_path, head):
    assert "data.yaml" in refusal(read_annotations, yolo_lines(tmp_path, "", head=head), "train").problem


def test_yolo_lists_may_have_paths_of_another_machine(tmp_path):
    root = write_darknet(tmp_path / "set", ONE)
    (root / "train.txt").write_text("C:\\data\\set\\obj_train_data\\train_0.jpg\n/home/a/obj_train_data/train_0.jpg")
    assert len(read_annotations(root, "train", max_bad_share=0)) == 1


def test_yolo_lists_cannot_lead_out_of_the_root(tmp_path):
    root = write_darknet(tmp_path / "set", ONE)
    (root / "train.txt").write_text("../secret.jpg")
    (tmp_path / "secret.jpg").write_bytes((root / "obj_train_data/train_0.jpg").read_bytes())
    assert "secret" in refusal(read_annotations, root, "train").problem


def test_classes_file_stands_for_data_yaml(tmp_path):
    root = write_yolo(tmp_path / "set", SPLITS)
    (root / "data.yaml").unlink()
    (root / "classes.txt").write_text("\ufeff" + "\r\n".join(NAMES))
    read = read_annotations(root, "val")
    check_boxes(read, SPLITS["val"])
