"""Tests of a val split drawn from train (seed, size, duplicates on one side) and of files in two splits."""

import json
import shutil

import numpy as np
import pytest
from PIL import Image

from dupr_tf.config import load_config
from dupr_tf.data.labels.annotations import read_annotations
from dupr_tf.data.labels.partition import divide_train, group_duplicates, warn_of_overlap
from dupr_tf.detection.task_labels import layout_of, read_evaluated, read_splits
from tests.labelled_scenes import pictures, write_coco, write_masks, write_voc
from tests.refusals import refusal


def config(**data):
    values = {"data.max_bad_share": "0"} | {f"data.{name}": str(value) for name, value in data.items()}
    return load_config("configs/retinanet_r18_small.yaml", values)


def scenes(folder, count=20):
    """Returns images of coarse noise, whose hashes differ in many bits."""
    folder.mkdir()
    for i in range(count):
        cells = np.random.default_rng(i).integers(0, 256, (8, 8, 3), np.uint8)
        Image.fromarray(cells).resize((160, 160), Image.BICUBIC).save(folder / f"{i:02}.png")
    return sorted(map(str, folder.iterdir()))


@pytest.fixture(scope="module")
def coco(tmp_path_factory):
    """Makes a COCO root with only a train split of 20, whose images 4, 5 and 6 are one picture."""
    folder = tmp_path_factory.mktemp("partition")
    root, paths = write_coco(folder / "set", {"train": pictures(20, size=(160, 160))}), scenes(folder / "scenes")
    for number, path in enumerate(paths, 1):
        shutil.copy(path, root / "images" / f"train_{number:03}.png")
    shutil.copy(paths[4], root / "images/train_006.png")
    Image.open(paths[4]).resize((150, 150)).resize((160, 160)).save(root / "images/train_007.png")
    return root


def test_duplicates_and_near_duplicates_are_one_group(coco):
    groups = group_duplicates(read_annotations(coco, "train").paths, config().data)
    assert groups.tolist() == [0, 1, 2, 3, 4, 4, 4, *range(7, 20)]


def test_unreadable_images_are_groups_of_one(tmp_path):
    paths = scenes(tmp_path / "scenes", 3)
    for path in paths[1:]:
        (tmp_path / "scenes" / path).write_bytes(b"nothing")
    assert group_duplicates(paths, config().data).tolist() == [0, 1, 2]


def test_val_is_drawn_by_seed_and_share(coco):
    read = read_annotations(coco, "train")
    drawn = {
        (seed, share): divide_train(read, None, config(val_share=share, share_seed=seed).data)
        for seed in range(20)
        for share in (0.1, 0.3)
    }
    for (_, share), (train, val) in drawn.items():
        assert sorted(train.ids + val.ids, key=int) == list(read.ids)
        assert share * 20 - 2 <= len(val) <= share * 20
        assert len({"5", "6", "7"} & set(val.ids)) in (0, 3)
    for seeds in ({"share_seed": 7}, {"share_seed": 3, "val_seed": 7}):
        again = divide_train(read, None, config(val_share=0.3, **seeds).data)[1]
        assert again.ids == drawn[7, 0.3][1].ids
    assert len({val.ids for _, val in drawn.values()}) > 20


def test_held_out_images_are_drawn_from_what_val_leaves(coco):
    read = read_annotations(coco, "train")
    rest, val = divide_train(read, None, config(val_share=0.3).data)
    train, held_out = divide_train(read, None, config(val_share=0.3, held_out=0.25, share_seed=1, val_seed=0).data)
    assert sorted(train.ids + held_out.ids, key=int) == list(rest.ids) and not set(held_out.ids) & set(val.ids)
    assert divide_train(rest, val, config().data) == (rest, val)
    drawn = [divide_train(read, None, config(held_out=0.25, share_seed=seed).data)[1].ids for seed in range(5)]
    assert len(set(drawn)) > 1


def test_small_share_still_gives_one_image(coco):
    train, val = divide_train(read_annotations(coco, "train"), None, config(val_share=0.001).data)
    assert (len(train), len(val)) == (19, 1)


def test_images_of_one_picture_cannot_be_divided(tmp_path):
    root = write_coco(tmp_path / "set", {"train": pictures(3, size=(80, 80))})
    for path in (root / "images").iterdir():
        Image.new("RGB", (80, 80), (9, 9, 9)).save(path)
    read = read_annotations(root, "train")
    assert refusal(divide_train, read, None, config(val_share=0.5).data).field == "data.val_share"
    assert refusal(divide_train, read, None, config(held_out=0.5).data).field == "data.held_out"


@pytest.mark.parametrize("writer", [write_coco, write_voc, write_masks])
def test_root_without_val_names_the_setting(tmp_path, writer):
    root = writer(tmp_path / "set", {"train": pictures(4)})
    task = "segments" if writer is write_masks else "boxes"
    error = refusal(read_splits, config(), root, task)
    assert error.field == "data.val_share" and "--data.val_share" in error.fix
    train, val, _ = read_splits(config(val_share=0.5), root, task)
    assert len(train) + len(val) == 4 and train.class_names == val.class_names and not set(train.paths) & set(val.paths)
    assert layout_of(root, "val", "auto", task) == {write_coco: "coco", write_masks: "auto"}.get(writer, "voc")


def test_val_share_is_refused_if_val_exists(tmp_path):
    root = write_coco(tmp_path / "set", {"train": pictures(4), "val": pictures(2, seed=1)})
    assert refusal(read_splits, config(val_share=0.5), root, "boxes").field == "data.val_share"


def test_evaluation_uses_the_part_that_was_drawn(coco):
    settings = config(val_share=0.25)
    val = read_splits(settings, coco, "boxes")[1]
    again = read_evaluated(coco, "val", settings.data, "boxes", val.class_names)
    assert again.ids == val.ids and 0 < len(val) < 20
    assert refusal(read_evaluated, coco, "test", settings.data, "boxes", val.class_names)


def test_files_in_both_splits_are_reported(tmp_path, caplog):
    root = write_coco(tmp_path / "set", {"train": pictures(4), "val": pictures(3, seed=1)})
    shutil.copy(root / "images/train_002.png", root / "images/val_003.png")
    content = json.loads((root / "annotations/instances_val.json").read_text())
    for image in content["images"]:
        del image["width"], image["height"]
    (root / "annotations/instances_val.json").write_text(json.dumps(content))
    train, val = (read_annotations(root, split) for split in ("train", "val"))
    assert warn_of_overlap(train, val) == [(train.paths[1], val.paths[2])]
    assert "1 of the 3" in caplog.text and "train_002.png" in caplog.text
    caplog.clear()
    assert warn_of_overlap(train, val.select([0, 1])) == [] and not caplog.records
