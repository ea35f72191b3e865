"""Tests of paths in labels as other systems write them: backslashes, other case, endings and folders in lists."""

import json

import pytest

from dupr_tf.data.labels import labelme
from dupr_tf.data.labels.annotations import NO_FILE, read_annotations
from dupr_tf.data.labels.finding import OTHER_FORMAT, ImageIndex
from tests.data.labels.test_yolo import yolo_lines
from tests.label_formats import FORMATS, ONE, check_boxes, write_darknet
from tests.labelled_scenes import pictures
from tests.refusals import refusal

MADE = {"train": pictures(4)}


def replace(root, pattern, *pairs):
    """Replaces text in the files of a pattern."""
    for file in root.rglob(pattern):
        text = file.read_text()
        for old, new in pairs:
            text = text.replace(old, new)
        file.write_text(text)


@pytest.mark.parametrize("name", [name for name in FORMATS if name not in ("yolo", "roboflow_yolo", "fiftyone_yolo")])
def test_image_whose_name_differs_in_case_is_found(tmp_path, name):
    root = FORMATS[name][0](tmp_path / "set", MADE)
    for path in list(root.rglob("train_*.jpg")):
        path.rename(path.with_name(path.name.upper().replace("TRAIN", "train")))
    check_boxes(read_annotations(root, "train", max_bad_share=0), MADE["train"])


def test_image_of_the_same_case_comes_first(tmp_path):
    root = write_darknet(tmp_path / "set", ONE)
    other = root / "obj_train_data/TRAIN_0.jpg"
    other.write_bytes((root / "obj_train_data/train_0.jpg").read_bytes())
    assert read_annotations(root, "train").paths[0].endswith("train_0.jpg")


def test_folder_decides_between_images_of_another_case(tmp_path):
    for name in ("train/IMG_1.JPG", "val/IMG_1.JPG", "val/img_2.jpg"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    index = ImageIndex(tmp_path)
    assert index.find("train/IMG_1.jpg") == tmp_path / "train/IMG_1.JPG"
    assert index.find("Train/img_1.jpg") == tmp_path / "train/IMG_1.JPG"
    assert index.find("train/img_1.jpg", "img_2.jpg") == tmp_path / "val/img_2.jpg"  # of the same case
    assert "may be" in refusal(index.find, "IMG_1.jpg").problem


def test_labelme_image_of_another_machine_is_used_once(tmp_path):
    root = FORMATS["labelme"][0](tmp_path / "set", MADE)
    replace(root, "*.json", ('"imagePath": "', '"imagePath": "C:\\\\photos\\\\'), (".jpg", ".JPG"))
    read = read_annotations(root, "train", max_bad_share=0)
    check_boxes(read, MADE["train"])
    assert not (read.counts[NO_FILE] or read.counts[labelme.UNLABELLED] or read.counts[OTHER_FORMAT])


@pytest.mark.parametrize(("name", "ending"), [("labelme", "json"), ("roboflow_voc", "xml")])
def test_missing_image_makes_no_other_of_another_format(tmp_path, name, ending):
    root = FORMATS[name][0](tmp_path / "set", {"train": pictures(4, size=(64, 64))})
    folder = root / "train"
    (folder / f"train_1.{ending}").write_text((folder / f"train_1.{ending}").read_text().replace("train_1", "gone"))
    (folder / f"train_1.{ending}").rename(folder / f"x.{ending}")
    (folder / f"train_2.{ending}").write_text((folder / f"train_2.{ending}").read_text().replace("train_2", "train_1"))
    counts = read_annotations(root, "train", max_bad_share=0.5).counts
    assert counts[NO_FILE] == 1 and not counts[OTHER_FORMAT]


def test_backslashes_in_coco_names_separate_folders(tmp_path):
    root = FORMATS["coco"][0](tmp_path / "set", MADE)
    file = root / "annotations/instances_train2017.json"
    content = json.loads(file.read_text())
    for row in content["images"]:
        row["file_name"] = f"train2017\\{row['file_name']}"
    file.write_text(json.dumps(content))
    check_boxes(read_annotations(root, "train", max_bad_share=0), MADE["train"])
    content["images"][0]["file_name"] = "C:\\data\\train_0.jpg"
    file.write_text(json.dumps(content))
    assert "C:\\data\\train_0.jpg, which is outside" in refusal(read_annotations, root, "train").problem


@pytest.mark.parametrize("line", ["{}.jpg", "{}.JPG 1", "JPEGImages\\{}.jpg", "VOC2007/Annotations/{}.xml", "{}"])
def test_voc_lists_may_have_endings_and_folders(tmp_path, line):
    root = FORMATS["voc"][0](tmp_path / "set", MADE)
    file = root / "ImageSets/Main/train.txt"
    file.write_text("".join(line.format(name) + "\n" for name in file.read_text().split()))
    read = read_annotations(root, "train", max_bad_share=0)
    check_boxes(read, MADE["train"])
    assert read.ids[0] == "train_001"


@pytest.mark.parametrize("line", ["1 0,5 0,5 0,1 0,1", "cat .5 .5 .1 .1"])
def test_yolo_line_with_text_is_refused_with_its_number(tmp_path, line):
    root = yolo_lines(tmp_path, "0 .5 .5 .1 .1", line)
    problem = refusal(read_annotations, root, "train").problem
    assert f"line 2 has {line.split()[0 if 'cat' in line else 1]!r}, where a number with a decimal point" in problem
