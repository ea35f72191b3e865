"""Tests of the tables of layouts: complete, in step with the config, and with one choice for `auto`."""

from typing import get_args

import pytest

from dupr_tf.config import DataConfig
from dupr_tf.config.detectors import DETECTORS
from dupr_tf.data.layouts import BOXES, FOLDERS, PIXELS, SOURCES, layout_of, split_folder
from tests.refusals import refusal

TABLES = (SOURCES, FOLDERS, BOXES, PIXELS)
KINDS = {name for table in TABLES for name in table}


@pytest.mark.parametrize("table", TABLES, ids=lambda table: table.kind)
def test_every_layout_has_a_function_and_a_description(table):
    for name, entry in table.items():
        loaded = table.load(name)
        assert loaded if table is FOLDERS else callable(loaded)
        assert callable(entry.facts["shown"])
        assert entry.summary and "\n" not in entry.summary


def test_config_allows_the_layouts_of_the_tables():
    assert {"auto", *KINDS} == set(get_args(DataConfig.model_fields["kind"].annotation))
    with_masks = {kind for kind in BOXES if BOXES[kind].facts["masks"]}
    assert set(BOXES) - with_masks == {"voc", "openimages"}
    held = {"retinanet": BOXES, "faster_rcnn": BOXES, "mask_rcnn": with_masks, "fcn": PIXELS}
    for detector, kinds in held.items():
        assert {"auto", *kinds} == set(DETECTORS[detector].facts["data"])


def test_unknown_layout_is_refused_with_the_nearest(tmp_path):
    error = refusal(layout_of, BOXES, tmp_path, "coc", "train")
    assert error.field == "data.kind" and error.fix == "Did you mean coco?"
    assert "masks" in refusal(layout_of, PIXELS, tmp_path, "voc").fix


def write(root, *names):
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text("")
    return root


@pytest.mark.parametrize(
    ("names", "photos", "boxes", "pixels"),
    [
        ([], "folder", "voc", "masks"),
        (["JPEGImages/1.jpg", "Annotations/1.xml"], "voc", "voc", "masks"),
        (["JPEGImages/1.jpg"], "folder", "voc", "masks"),
        (["images/1.jpg", "annotations/instances_train2017.json"], "coco", "coco", "masks"),
        (["images/1.jpg", "annotations/instances_val.json"], "coco", "voc", "masks"),
        (["1.jpg", "annotations/instances_train.json"], "folder", "coco", "masks"),
        (["JPEGImages/1.jpg", "Annotations/1.xml", "annotations/instances_train.json"], "voc", "coco", "masks"),
        (["leftImg8bit/train/a/1.png", "gtFine/train/a/1.png"], "cityscapes", "cityscapes", "cityscapes"),
        (["leftImg8bit/train/a/1.png"], "cityscapes", "voc", "masks"),
    ],
)
def test_auto_detects_the_layout_of_the_root(tmp_path, names, photos, boxes, pixels):
    root = write(tmp_path / "set", *names)
    root.mkdir(exist_ok=True)
    assert [layout_of(table, root, split="train") for table in (FOLDERS, BOXES, PIXELS)] == [photos, boxes, pixels]


@pytest.mark.parametrize(
    ("table", "names", "both"),
    [
        (FOLDERS, ["images/1.jpg", "annotations/a.json", "JPEGImages/1.jpg", "Annotations/1.xml"], ("images", "voc")),
        (
            BOXES,
            ["annotations/instances_train.json", "ImageSets/Main/train.txt"],
            ("instances_train.json", "train.txt"),
        ),
        (
            BOXES,
            ["annotations/instances_train.json", "VOCdevkit/VOC2012/ImageSets/Main/trainval.txt"],
            ("instances_train.json", "trainval.txt"),
        ),
        (PIXELS, ["leftImg8bit/a", "gtFine/a", "train/images/1.jpg", "train/masks/1.png"], ("gtFine", "masks")),
    ],
)
def test_root_of_two_layouts_is_refused_with_both_paths(tmp_path, table, names, both):
    error = refusal(layout_of, table, write(tmp_path, *names), split="train")
    assert error.field == "data.kind" and all(path in error.problem for path in both)
    chosen = next(name for name in table if name in error.fix)
    assert layout_of(table, tmp_path, chosen, "train") == chosen


@pytest.mark.parametrize(
    ("files", "split", "folder"),
    [
        (["images/0.jpg", "val/0.jpg"], "val", "val"),
        (["images/0.jpg", "val/0.jpg"], "train", "images"),
        (["0.jpg", "images/train/0.jpg", "images/0.jpg"], "train", "images/train"),
        (["train2017/0.jpg", "images/0.jpg"], "train", "train2017"),
        (["val/0.jpg", "images/0.jpg", "images/1.jpg"], "val", "images"),
        (["0.jpg"], "val", "."),
    ],
)
def test_split_folder_is_the_fullest_then_most_specific(tmp_path, files, split, folder):
    write(tmp_path, *files)
    assert split_folder(tmp_path, split, (f"{split}2017",), ["0.jpg", "1.jpg"], "x.json") == tmp_path / folder


def test_split_in_two_equal_folders_is_refused(tmp_path):
    write(tmp_path, "val/0.jpg", "images/val/0.jpg")
    error = refusal(split_folder, tmp_path, "val", (), ["0.jpg"], "x.json")
    assert str(tmp_path / "val") in error.problem and str(tmp_path / "images" / "val") in error.problem
    (tmp_path / "val" / "0.jpg").unlink()
    (tmp_path / "val").rmdir()
    (tmp_path / "val").symlink_to(tmp_path / "images" / "val")
    assert split_folder(tmp_path, "val", (), ["0.jpg"], "x.json").samefile(tmp_path / "val")
