"""Tests of `convert`: every format becomes COCO and YOLO with the same boxes, and losses are counted."""

import errno

import numpy as np
import pytest

from dupr_tf.cli import main
from dupr_tf.data.labels import convert as module
from dupr_tf.data.labels.annotations import DROPPED, read_annotations
from dupr_tf.data.labels.convert import EMPTIED, HIDDEN, IGNORED, OUTLINES, convert
from dupr_tf.data.layouts import BOXES, layout_of
from dupr_tf.errors import RunFailed
from tests.data.labels.test_formats import cvat_shapes
from tests.label_formats import FORMATS, SPLITS, write_cvat, write_images, write_labelme, write_yolo
from tests.labelled_scenes import Picture, Thing, pictures, write_voc
from tests.refusals import refusal


@pytest.fixture(scope="module")
def roots(tmp_path_factory):
    folder = tmp_path_factory.mktemp("formats")
    return {name: write(folder / name, SPLITS) for name, (write, *_) in FORMATS.items()}


def contents(read):
    """Returns the boxes, classes and flags of a split, independent of image order. Ignored boxes come last."""
    return sorted(
        sorted(
            (*(round(float(side), 1) for side in box), read.class_names[label], bool(flag)) for box, label, flag in rows
        )
        for rows in (zip(*row, strict=True) for row in zip(read.boxes, read.labels, read.ignored, strict=True))
    )


@pytest.mark.parametrize("to", ["coco", "yolo"])
@pytest.mark.parametrize("name", FORMATS)
def test_converted_set_has_the_same_boxes(roots, tmp_path, name, to):
    parts = convert(roots[name], tmp_path / "new", to, "auto", 0)
    assert [part.split for part in parts] == list(SPLITS)
    for part in parts:
        assert layout_of(BOXES, tmp_path / "new", split=part.split) == to
        old, new = (read_annotations(root, part.split, max_bad_share=0) for root in (roots[name], tmp_path / "new"))
        expected = contents(old)
        if to == "yolo":
            expected = sorted([row for row in rows if not row[-1]] for rows in expected)
        assert contents(new) == expected and part.boxes == sum(map(len, new.boxes))
        assert part.lost.get(IGNORED, 0) == (sum(map(np.sum, old.ignored)) if to == "yolo" else 0)


def test_polygons_of_all_objects_stay_polygons(roots, tmp_path):
    for to in ("coco", "yolo"):
        parts = convert(roots["fiftyone"], tmp_path / to, to, "auto", 0)
        assert not any(part.lost for part in parts)
        old, new = (read_annotations(root, "train", masks=True) for root in (roots["fiftyone"], tmp_path / to))
        assert not any(map(np.any, new.ignored))
        assert sorted(map(len, old.masks)) == sorted(map(len, new.masks))


def test_areas_of_outlines_are_kept_in_coco(tmp_path):
    root = cvat_shapes(
        tmp_path, '<polygon label="cat" points="1,1;9,1;1,9"/><box label="dog" xtl="0" ytl="0" xbr="4" ybr="5"/>'
    )
    convert(root, tmp_path / "new", "coco", "auto", 0)
    np.testing.assert_array_equal(read_annotations(tmp_path / "new", "train").areas[0], [32, 20])


def test_yolo_drops_outlines_if_some_objects_have_none(roots, tmp_path):
    parts = convert(roots["labelme"], tmp_path / "new", "yolo", "auto", 0)
    assert all(part.lost[OUTLINES] > 0 for part in parts)


def test_masks_become_run_lengths_of_coco(tmp_path):
    text = '<mask label="cat" rle="0, 1, 1, 1, 1, 2" left="5" top="7" width="2" height="3"/>'
    root = cvat_shapes(tmp_path, text)
    convert(root, tmp_path / "new", "coco", "auto", 0)
    old, new = (read_annotations(each, "train", masks=True) for each in (root, tmp_path / "new"))
    assert old.masks == new.masks and not new.ignored[0].any()


def test_images_with_ignored_boxes_only_do_not_become_background(tmp_path):
    made = [Picture((60, 80), [Thing("cat", (10, 20, 40, 50), difficult=flag)]) for flag in (True, False)]
    parts = convert(write_cvat(tmp_path / "set", {"train": made}), tmp_path / "new", "yolo", "auto", 0)
    assert parts[0].images == 1 and parts[0].lost == {HIDDEN: 1, IGNORED: 1}


def test_boxes_are_clipped_and_outside_ones_counted(tmp_path):
    text = "".join(
        f'<box label="cat" xtl="{x1}" ytl="5" xbr="{x2}" ybr="9"/>'
        for x1, x2 in ((-5, 5), (90, 99), (5, 5), ("nan", 9))
    )
    root = cvat_shapes(tmp_path, text)
    assert refusal(convert, root, tmp_path / "new", "coco", "auto", 0).field == "data.max_bad_share"
    (part,) = convert(root, tmp_path / "new", "coco", "auto", 0.75)
    assert [part.read[what] for what in DROPPED] == [1, 1, 1] and part.boxes == 1


def test_images_that_share_a_stem_get_separate_files(tmp_path):
    root = write_labelme(tmp_path / "set", {"train": pictures(1)})
    write_images(root / "train", "other", pictures(1))
    (root / "train/other_0.jpg").rename(root / "train/train_0.jpeg")
    text = (root / "train/train_0.json").read_text()
    (root / "train/train_0_jpeg.json").write_text(text.replace("train_0.jpg", "train_0.jpeg"))
    convert(root, tmp_path / "new", "yolo", "auto", 0)
    assert (
        len(list((tmp_path / "new/images/train").iterdir()))
        == len(list((tmp_path / "new/labels/train").iterdir()))
        == 2
    )


def test_split_that_repeats_another_is_written_once(tmp_path, caplog):
    """VOC 07+12 has the test set of 2007 as val and as test."""
    caplog.set_level("INFO")
    write_voc(tmp_path / "set/VOC2007", {"trainval": pictures(2), "test": pictures(2, seed=2)})
    parts = convert(tmp_path / "set", tmp_path / "new", "yolo", "auto", 0)
    assert [part.split for part in parts] == ["train", "val"]
    assert not (tmp_path / "new/images/test").exists() and "test:" not in (tmp_path / "new/data.yaml").read_text()
    assert sum(line.startswith("test: the same images and labels as val") for line in caplog.messages) == 1


def test_split_of_the_same_images_with_other_labels_is_written(tmp_path):
    root = write_yolo(tmp_path / "set", {"train": pictures(2)})
    write_yolo(root, {"val": pictures(2)})
    assert len(convert(root, tmp_path / "new", "coco", "auto", 0)) == 2
    (root / "data.yaml").write_text((root / "data.yaml").read_text().replace("images/val", "images/train"))
    assert len(convert(root, tmp_path / "newer", "coco", "auto", 0)) == 1


@pytest.mark.parametrize("to", ["coco", "yolo"])
def test_images_without_a_usable_object_do_not_become_background(tmp_path, to):
    made = [Picture((60, 80), [Thing("cat", (10, 20, 40, y2))]) for y2 in (50, 20, 50)]
    made[2].things = []
    (part,) = convert(write_yolo(tmp_path / "set", {"train": made}), tmp_path / "new", to, "auto", 0.5)
    assert part.images == 2 and part.read[EMPTIED] == 1
    assert read_annotations(tmp_path / "new", "train").bare == (False, True)


def test_class_lists_that_differ_are_joined_and_counted(tmp_path):
    root = FORMATS["roboflow"][0](tmp_path / "set", SPLITS)
    file = root / "valid/_annotations.coco.json"
    file.write_text(file.read_text().replace('"dog"', '"boat"'))
    _, val = convert(root, tmp_path / "new", "coco", "auto", 0)
    assert [what for what in val.read if "lists (boat)" in what or "list (dog)" in what] == [
        "classes that only this split lists (boat)", "classes that this split does not list (dog)",
    ]  # fmt: skip
    assert read_annotations(tmp_path / "new", "val").class_names == ("bus", "cat", "dog", "boat")


def test_set_without_any_split_is_refused(tmp_path):
    assert "split train" in refusal(convert, tmp_path, tmp_path / "new", "coco", "auto", 0).problem
    assert not (tmp_path / "new").exists()


def test_command_names_its_own_flag_for_two_layouts(tmp_path, capsys):
    root = write_labelme(write_yolo(tmp_path / "set", {"train": pictures(9)}), {"train": pictures(9)})
    words = ["convert", str(root), "--output", str(tmp_path / "new"), "--to", "yolo"]
    assert main(words) == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert "--kind: labelme or yolo" in line.replace("yolo or labelme", "labelme or yolo") and "data.kind" not in line
    assert "train_1.json and 7 more" in line and "train_2.json" not in line
    assert main([*words, "--kind", "yolo"]) == 0


def test_command_prints_what_was_lost(tmp_path, capsys):
    text = '<box label="cat" xtl="30" ytl="25" xbr="50" ybr="35" rotation="9"/><tag label="cat"/>'
    words = ["convert", str(cvat_shapes(tmp_path, text)), "--output", str(tmp_path / "new"), "--to", "yolo"]
    assert main(words) == 0
    out = capsys.readouterr().out
    assert "1 images, 1 boxes" in out and "rotated" in out and "tag" in out
    assert main(words) == 2  # the folder is not empty any more


def test_failed_conversion_leaves_an_empty_folder(roots, tmp_path, monkeypatch):
    def fail(path, content):
        raise OSError(errno.ENOSPC, "full")

    root = roots["coco"]
    with monkeypatch.context() as patch, pytest.raises(RunFailed):
        patch.setattr(module, "write_whole", fail)
        convert(root, tmp_path / "out", "coco", "auto", 0.0)
    assert not (tmp_path / "out").exists()
    assert convert(root, tmp_path / "out", "coco", "auto", 0.0)
    assert refusal(convert, root, tmp_path / "out", "coco", "auto", 0.0).problem.endswith("is not empty.")
