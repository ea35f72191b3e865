"""Tests of unusable images before training or evaluating a detector: few are left out, many are refused."""

import errno
import os
from pathlib import Path

import numpy as np
import pytest

from dupr_tf.config import DataConfig, load_config
from dupr_tf.data.labels import usable
from dupr_tf.data.labels.annotations import read_annotations
from dupr_tf.data.labels.segments import read_segments
from dupr_tf.data.labels.usable import leave_out_unusable
from dupr_tf.detection.task_labels import read_splits
from tests.data.bad_images import encoded, picture, png_bomb
from tests.label_formats import write_yolo
from tests.labelled_scenes import pictures, write_coco
from tests.masked_scenes import write_segments
from tests.refusals import refusal

SPLITS = {"train": pictures(10), "val": pictures(5, seed=1)}


@pytest.fixture
def root(tmp_path):
    return write_coco(tmp_path / "set", SPLITS)


def images_of(root, split):
    return sorted((root / "images").glob(f"{split}_*"))


def cut(path):
    path.write_bytes(path.read_bytes()[:-40])
    return path


@pytest.mark.parametrize("split", ["train", "val"])
def test_truncated_image_is_left_out_within_the_share(root, split, caplog):
    bad = cut(images_of(root, split)[1])
    read = read_annotations(root, split)
    kept = leave_out_unusable(read, split, DataConfig(max_bad_share=0.2))
    assert str(bad) in read.paths and len(kept) == len(read) - 1 and str(bad) not in kept.paths
    assert any(str(bad) in message for message in caplog.messages)
    place = read.paths.index(str(bad)) + 1
    np.testing.assert_array_equal(kept.boxes[place - 1], read.boxes[place])
    error = refusal(leave_out_unusable, read, split, DataConfig(max_bad_share=0.05))
    assert error.field == "data.max_bad_share" and str(bad) in error.problem
    assert f"data.max_bad_share to {1 / len(read):g}" in error.fix and "max_pixels" not in error.fix


def test_split_of_unusable_images_is_refused(root):
    read = read_annotations(root, "val")
    for path in images_of(root, "val"):
        cut(path)
    assert refusal(leave_out_unusable, read, "val", DataConfig(max_bad_share=1)).field == "data.max_bad_share"


def test_large_image_names_the_setting_with_its_value(root):
    read = read_annotations(root, "train")
    with open(read.paths[3], "wb") as file:
        file.write(png_bomb(14_000))
    error = refusal(leave_out_unusable, read, "train", DataConfig())
    assert "data.max_pixels to 196000000" in error.fix and "data.max_bad_share to 0.1" in error.fix


def test_image_with_unreadable_mask_is_left_out(tmp_path):
    root = write_segments(tmp_path / "set", SPLITS)
    read = read_segments(root, "train")
    (root / "train" / "masks" / "003.png").write_bytes(encoded(picture("L"), "PNG"))
    kept = leave_out_unusable(read, "train", DataConfig(max_bad_share=0.1))
    assert set(read.ids) - set(kept.ids) == {"003.jpg"}


def test_both_splits_are_checked_before_training(root):
    cut(images_of(root, "train")[0])
    cut(images_of(root, "val")[0])
    config = load_config("configs/retinanet_r18_small.yaml", {"data.max_bad_share": "0.2"})
    train, val, ids = read_splits(config, root, "boxes")
    assert (len(train), len(val), ids) == (9, 4, None)
    config = load_config("configs/retinanet_r18_small.yaml", {"data.max_bad_share": "0.2", "data.share": "0.9999"})
    assert len(read_splits(config, root, "boxes")[2]) == 9


def test_many_unusable_images_are_counted(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(usable, "MOST_LISTED", 1)
    root = write_coco(tmp_path / "set", {"train": pictures(4)})
    for path in list((root / "images").iterdir())[:3]:
        path.write_bytes(b"")
    leave_out_unusable(read_annotations(root, "train"), "train", DataConfig(max_bad_share=0.9))
    assert len([line for line in caplog.messages if line.startswith("skipped")]) == 1
    assert "3 of 4 images cannot be used" in caplog.text


def test_folder_that_cannot_be_listed_is_named(tmp_path, monkeypatch):
    root, scandir = write_yolo(tmp_path / "set", {"train": pictures(2)}), os.scandir

    def refusing(path):
        if Path(path) == root / "images" / "train" / "locked":
            raise PermissionError(errno.EACCES, "Permission denied", path)
        return scandir(path)

    (root / "images" / "train" / "locked").mkdir()
    monkeypatch.setattr(os, "scandir", refusing)
    assert "locked cannot be listed" in refusal(read_annotations, root, "train").problem
