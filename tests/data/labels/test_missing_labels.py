"""Tests of the message about missing labels: what the root has, which name is expected, and what to do."""

import json
import shutil

import pytest

from dupr_tf.cli import main
from dupr_tf.data.labels.annotations import read_annotations
from dupr_tf.data.labels.convert import convert
from dupr_tf.data.labels.segments import read_segments
from dupr_tf.data.labels.split import MissingSplit
from tests.label_formats import FORMATS, ONE, SPLITS, dump, write_images, write_yolo
from tests.labelled_scenes import pictures, write_coco
from tests.masked_scenes import write_segments
from tests.refusals import refusal

YOLO = {"yolo": "labels", "roboflow_yolo": "train/labels", "fiftyone_yolo": "labels"}


def without_yaml(root):
    write_yolo(root, SPLITS)
    (root / "data.yaml").unlink()


def with_empty_yaml(root):
    write_yolo(root, SPLITS)
    dump(root / "data.yaml", "")


def with_other_place(root):
    write_yolo(root, SPLITS)
    dump(root / "data.yaml", "names: [bus, cat, dog]\ntrain: pictures\n")


def with_capitals(root):
    write_yolo(root, SPLITS)
    for name in ("images", "labels"):
        (root / name).rename(root / name.capitalize())


def with_other_coco_names(root):
    write_coco(root, SPLITS)
    for file in (root / "annotations").iterdir():
        file.rename(file.with_name(file.name.removeprefix("instances_")))


def with_voc_elsewhere(root):
    FORMATS["voc"][0](root, SPLITS)
    shutil.rmtree(root / "ImageSets")
    (root / "Annotations").rename(root / "xmls")


def with_a_table(root):
    write_images(root / "images", "a", pictures(2))
    dump(root / "labels.csv", "image,class\n")


def with_images_alone(root):
    write_images(root / "photos", "a", pictures(2))


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (without_yaml, ["YOLO labels (labels/train/train_0.txt)", "data.yaml"]),
        (with_empty_yaml, ["data.yaml, which has no `names`"]),
        (with_other_place, ["data.yaml, whose train is pictures"]),
        (with_capitals, ["Images/ (expected: images/), Labels/ (expected: labels/)"]),
        (with_other_coco_names, ["(annotations/train.json)", "annotations/instances_train.json is expected"]),
        (with_voc_elsewhere, ["VOC annotations (xmls/train_001.xml)", "ImageSets/Main/train.txt"]),
        (with_a_table, ["a CSV file (labels.csv)", "train-annotations-bbox.csv", "XMin"]),
        (with_images_alone, ["images (photos/a_0.jpg), and no label file", "photos/"]),
    ],
)
def test_message_says_what_was_found_and_what_is_expected(tmp_path, make, words):
    root = tmp_path / "set"
    make(root)
    error = refusal(read_annotations, root, "train")
    assert isinstance(error, MissingSplit) and f"{root} has no labels of a split train" in error.problem
    assert [word for word in words if word not in error.problem] == []


@pytest.mark.parametrize("name", FORMATS)
def test_folder_above_or_below_is_named(tmp_path, name):
    root = FORMATS[name][0](tmp_path / "above/set", ONE)
    for passed in (root.parent, root / "empty"):
        passed.mkdir(exist_ok=True)
        assert refusal(read_annotations, passed, "train").fix == f"Pass {root}."


def test_labels_beside_the_root_are_not_those_of_the_root(tmp_path):
    for path in (FORMATS["labelme"][0](tmp_path / "theirs", ONE) / "train").iterdir():
        path.rename(tmp_path / "theirs" / path.name)
    with_other_coco_names(mine := tmp_path / "mine")
    assert "(annotations/train.json)" in refusal(read_annotations, mine, "train").problem
    with_images_alone(tmp_path / "photos")
    assert "no label file of a layout" in refusal(read_annotations, tmp_path / "photos", "train").problem


@pytest.mark.parametrize("name", FORMATS)
def test_missing_split_names_the_split_that_is_there(tmp_path, name):
    root = FORMATS[name][0](tmp_path / "set", ONE)
    for kind in ("auto", FORMATS[name][1]):
        problem = refusal(read_annotations, root, "val", kind).problem
        assert f"{root} has labels of a split train (" in problem and "none of a split val (or valid" in problem


def test_misnamed_val_is_named(tmp_path, capsys, caplog):
    root = write_coco(tmp_path / "set", SPLITS)
    (root / "annotations/instances_val.json").rename(root / "annotations/val.json")
    assert "Found COCO annotations (annotations/val.json)" in refusal(read_annotations, root, "val").problem
    assert main(["doctor", "configs/retinanet_r18_small.yaml", "--data", str(root)]) == 0
    assert "There is no split val. Found COCO annotations (annotations/val.json)" in capsys.readouterr().out
    convert(root, tmp_path / "new", "coco", "auto", 0)
    assert "val: not converted. Found COCO annotations (annotations/val.json)" in caplog.text


def test_masks_and_boxes_are_told_apart(tmp_path):
    masks = write_segments(tmp_path / "masks", SPLITS)
    problem = refusal(read_annotations, masks, "train").problem
    assert "It has masks of classes (masks, by train/masks), where boxes of objects are needed." in problem
    error = refusal(read_segments, FORMATS["yolo"][0](tmp_path / "boxes", SPLITS), "train")
    assert "It has boxes (yolo, by data.yaml), where masks of classes are needed." in error.problem
    assert "detector.kind retinanet" in error.fix


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("train/masks", "train/Masks", "train/Masks/ (expected: masks/)"),
        ("train/masks", "trainannot", "Found train/images, but no train/masks."),
        ("train", "Train", "Train/ (expected: train/)"),
    ],
)
def test_folders_of_masks_under_other_names_are_named(tmp_path, old, new, words):
    root = write_segments(tmp_path / "set", SPLITS)
    (root / old).rename(root / new)
    problem = refusal(read_segments, root, "train").problem
    assert "has labels of a split val" in problem and words in problem


@pytest.mark.parametrize("name", YOLO)
def test_yolo_without_label_files_is_refused(tmp_path, name):
    root = FORMATS[name][0](tmp_path / "set", SPLITS)
    for folder in list(root.rglob("labels")):
        shutil.rmtree(folder)
    for call in ((read_annotations, root, "train"), (convert, root, tmp_path / "new", "coco", "auto", 0)):
        error = refusal(*call)
        assert "None of the 9 images of the split train" in error.problem and "train_0.txt" in error.fix


def test_yolo_split_without_label_files_is_left_out(tmp_path, caplog):
    root = write_yolo(tmp_path / "set", SPLITS)
    shutil.rmtree(root / "labels/val")
    assert [part.split for part in convert(root, tmp_path / "new", "coco", "auto", 0)] == ["train"]
    assert "val: not converted. None of the 3 images" in caplog.text
    assert isinstance(refusal(read_annotations, root, "val"), MissingSplit)


def test_yolo_with_empty_label_files_has_no_objects(tmp_path):
    root = write_yolo(tmp_path / "set", {"train": pictures(3)})
    for file in (root / "labels/train").iterdir():
        file.write_text("")
    assert read_annotations(root, "train").bare == (True,) * 3


def test_labels_without_any_box_are_not_converted(tmp_path):
    root = write_coco(tmp_path / "coco", SPLITS)
    for file in (root / "annotations").iterdir():
        file.write_text(json.dumps(json.loads(file.read_text()) | {"annotations": []}))
    error = refusal(convert, root, tmp_path / "new", "coco", "auto", 0)
    assert "None of the 12 images" in error.problem and not (tmp_path / "new").exists()
