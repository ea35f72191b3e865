"""Tests of `doctor` on labelled images: class counts, box sizes at the network, duplicates, and advice."""

import dataclasses
import shutil

import numpy as np
import pytest
from PIL import Image

from dupr_tf.cli import main
from dupr_tf.config import dump_config, load_config
from dupr_tf.data.labels.annotations import read_annotations
from dupr_tf.data.labels.class_names import MOST_CLASSES
from dupr_tf.data.labels.segments import read_segments
from dupr_tf.forecast.label_checks import about_labels
from tests.label_formats import write_yolo
from tests.labelled_scenes import Picture, Thing, pictures, write_coco, write_masks
from tests.refusals import refusal


def config(**values):
    return load_config(
        "configs/retinanet_r18_small.yaml", {key.replace("__", "."): str(v) for key, v in values.items()}
    )


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Writes twelve images of train; two have no boxes and one is in val too."""
    splits = {"train": [*pictures(10), *[Picture((61, 87), [])] * 2], "val": pictures(4, seed=1)}
    root = write_yolo(tmp_path_factory.mktemp("doctor") / "set", splits)
    shutil.copy(root / "images/train/train_4.jpg", root / "images/val/val_0.jpg")
    return root


def examine(root, settings=None):
    train, val = (read_annotations(root, split) for split in ("train", "val"))
    rows, sentences = about_labels(train, val, settings or config(data__image_size=96))
    return dict(rows), sentences


def test_doctor_counts_images_boxes_and_classes(root):
    rows, _ = examine(root)
    counts = {
        name: sum(thing.name == name for p in pictures(10) for thing in p.things) for name in ("bus", "cat", "dog")
    }
    assert rows["images"] == "12 in train, 4 in val" and rows["images without boxes"].startswith("2 in train")
    assert rows["boxes"].startswith(f"{sum(counts.values())} in train (0 more ignored)")
    assert [rows[f"class {name}"].split()[0] for name in counts] == [str(count) for count in counts.values()]


def test_doctor_counts_ignored_boxes_apart(root):
    train = read_annotations(root, "train")
    ignored = tuple(np.arange(len(flags)) == 0 for flags in train.ignored)  # the first box of each image
    first = sum(len(labels) > 0 and train.class_names[labels[0]] == "bus" for labels in train.labels)
    (before, _), (after, _) = (
        about_labels(one, None, config()) for one in (train, dataclasses.replace(train, ignored=ignored))
    )
    numbers = [int(dict(rows)["class bus"].split()[0]) for rows in (before, after)]
    assert numbers[0] - numbers[1] == first > 0 and "(10 more ignored)" in dict(after)["boxes"]


def test_doctor_advises_what_to_change(root):
    rows, sentences = examine(root)
    named = ("fewer than 10 boxes", "data.background", "val_0.jpg")
    assert [sum(word in sentence for sentence in sentences) for word in named] == [1, 1, 1]
    assert rows["near duplicates"].startswith("1 of 4")
    assert not any("data.background" in one for one in examine(root, config(data__background="true"))[1])


def test_doctor_proposes_a_size_if_boxes_are_lost(root):
    rows, sentences = examine(root, config(data__image_size=32, detector__anchor_scale=8))
    assert any(one.startswith("data.image_size") for one in sentences)
    assert float(rows["boxes lost"].split("%")[0]) > 50 > float(rows["boxes with an anchor"].split("%")[0])


def test_doctor_finds_no_duplicates_in_different_images(tmp_path):
    scenes = [Picture((64, 64), [Thing("bus", (8 * k, 4, 8 * k + 20, 60))]) for k in range(5)]
    root = write_coco(tmp_path / "set", {"train": scenes[:2], "val": scenes[3:]})
    assert examine(root)[0]["near duplicates"].startswith("0 of 2")


def test_doctor_names_the_setting_for_a_missing_val(root):
    train = read_annotations(root, "train")
    assert "data.val_share" in about_labels(train, None, config())[1][0]
    assert not any("data.val_share" in one for one in about_labels(train, None, config(data__val_share=0.5))[1])


def test_doctor_groups_rare_classes_in_one_row(root):
    names = tuple(f"{k}" for k in range(MOST_CLASSES + 5))
    train = dataclasses.replace(read_annotations(root, "train"), class_names=names)
    assert dict(about_labels(train, None, config())[0])["5 more classes"] == "0 in train"


def test_doctor_refuses_training_data_without_boxes(root):
    train = read_annotations(root, "train")
    bare = dataclasses.replace(train, ignored=tuple(np.ones(len(one), bool) for one in train.ignored))
    refusal(about_labels, bare, None, config())


def test_doctor_counts_classes_of_pixels(tmp_path):
    root = write_masks(tmp_path / "set", {"train": pictures(3), "val": pictures(2, seed=1)})
    settings = load_config("configs/detection/small_fcn.yaml", {})
    train, val = (read_segments(root, split) for split in ("train", "val"))
    rows, _ = about_labels(train, val, settings)
    assert dict(rows)["images"] == "3 in train, 2 in val" and "classes" in dict(rows)["targets"]
    for number, name in enumerate(train.class_names):
        shares = [
            np.mean(np.concatenate([one.truth(index).ravel() for index in range(len(one))]) == number)
            for one in (train, val)
        ]
        text = f"{shares[0]:.2%} of the pixels in train, {shares[1]:.2%} of the pixels in val"
        assert dict(rows)[f"class {name}"] == text


def test_doctor_names_classes_without_a_pixel(tmp_path):
    root = write_masks(tmp_path / "set", {"train": pictures(3), "val": pictures(2, seed=1)})
    for file in (root / "val/masks").iterdir():
        Image.fromarray(np.minimum(np.asarray(Image.open(file)), 2)).save(file)
    settings = load_config("configs/detection/small_fcn.yaml", {})
    train, val = (read_segments(root, split) for split in ("train", "val"))
    rows, sentences = about_labels(train, dataclasses.replace(val, class_names=train.class_names), settings)
    assert dict(rows)["class 7"].endswith(", 0.00% of the pixels in val")
    assert any("classes have no pixel in the masks of val" in one for one in sentences)


def test_doctor_prints_the_labels_of_a_detector(root, tmp_path, capsys):
    (tmp_path / "c.yaml").write_text(dump_config(config(data__image_size=96)))
    assert main(["doctor", str(tmp_path / "c.yaml"), "--data", str(root)]) == 0
    out = capsys.readouterr().out
    assert "class bus" in out and "memory free" in out and "* 1 images of val are duplicates" in out


def test_doctor_names_unusable_images(root, tmp_path):
    shutil.copytree(root, tmp_path / "set")
    for path in (tmp_path / "set" / "images" / "val").iterdir():
        path.write_bytes(path.read_bytes()[:-200])  # its header can be read
    rows, sentences = examine(tmp_path / "set")
    assert rows["unusable images"] == "0 in train, 4 in val"
    assert any(one.startswith("4 of 4 images of val cannot be used, such as ") for one in sentences)
