"""Tests of COCO annotations, and of what COCO and VOC share: what is read, and the errors about wrong files."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dupr_tf.data.labels.annotations import DROPPED, MERGED, NO_FILE, OTHER_SIZE, read_annotations
from dupr_tf.data.labels.split import MissingSplit
from tests.data.bad_images import with_orientation
from tests.labelled_scenes import NAMES, pictures, write_coco, write_voc
from tests.refusals import refusal

VOC07 = Path(__file__).parents[4] / "shared" / "data" / "voc07"
SPLITS = {"train": pictures(9), "val": pictures(3, seed=1)}


@pytest.fixture(scope="module")
def coco(tmp_path_factory):
    return write_coco(tmp_path_factory.mktemp("coco") / "set", SPLITS)


@pytest.fixture(scope="module")
def voc(tmp_path_factory):
    return write_voc(tmp_path_factory.mktemp("voc") / "set", SPLITS)


def edited(tmp_path, change):
    """Returns a COCO set whose training annotations were edited by `change`."""
    root = write_coco(tmp_path / "set", {"train": pictures(4)})
    _change(root, change)
    return root


def _change(root, change):
    file = root / "annotations" / "instances_train.json"
    content = json.loads(file.read_text())
    change(content)
    file.write_text(json.dumps(content))


def test_coco_boxes_are_the_drawn_ones(coco):
    read = read_annotations(coco, "train")
    assert read.class_names == NAMES and len(read) == 9
    assert sum(read.counts[what] for what in (*DROPPED, NO_FILE)) == 0
    for i, picture in enumerate(SPLITS["train"]):
        assert tuple(read.sizes[i]) == picture.size
        np.testing.assert_array_equal(read.boxes[i], [thing.box for thing in picture.things])
        assert [NAMES[label] for label in read.labels[i]] == [thing.name for thing in picture.things]
        assert list(read.ignored[i]) == [thing.difficult for thing in picture.things]


def test_coco_and_voc_layouts_give_the_same_boxes(coco, voc):
    for split in SPLITS:
        one, other = read_annotations(coco, split), read_annotations(voc, split)
        assert one.class_names == other.class_names
        for name in ("sizes", "boxes", "labels", "ignored", "areas"):
            for a, b in zip(getattr(one, name), getattr(other, name), strict=True):
                np.testing.assert_array_equal(a, b)


def test_classes_keep_the_order_of_the_trained_detector(coco):
    read = read_annotations(coco, "val", class_names=("dog", "bus", "cat"))
    names = [[read.class_names[label] for label in labels] for labels in read.labels]
    assert names == [[thing.name for thing in picture.things] for picture in SPLITS["val"]]
    error = refusal(read_annotations, coco, "val", class_names=("dog", "bus"))
    assert "2 of 6 objects" in error.problem and "(cat; known are dog, bus)" in error.problem
    read = read_annotations(coco, "val", class_names=("dog", "bus"), max_bad_share=0.5)
    assert sum(map(len, read.boxes)) == 4 and read.class_names == ("dog", "bus")
    assert [what for what in read.counts if "only this split" in what] == ["classes that only this split lists (cat)"]


def test_boxes_are_clipped_and_empty_ones_counted_and_dropped(tmp_path):
    def change(content):
        width, height = content["images"][0]["width"], content["images"][0]["height"]
        boxes = [[-5, -5, 20, 20], [width - 4, 0, 10, 10], [3, 3, 0, 9], [5, 5, -2, 9], [width + 1, 2, 5, 5]]
        template = content["annotations"][0]
        content["annotations"] = [{**template, "image_id": 1, "bbox": box} for box in [*boxes, [1, 2, 3, height]]]

    read = read_annotations(edited(tmp_path, change), "train", max_bad_share=0.5)
    height, width = read.sizes[0]
    np.testing.assert_array_equal(read.boxes[0], [[0, 0, 15, 15], [width - 4, 0, width, 10], [1, 2, 4, height]])
    assert [read.counts[what] for what in DROPPED] == [1, 2, 0]
    assert read.with_boxes() == [0]


@pytest.mark.parametrize("flag", ["iscrowd", "ignore", "difficult"])
def test_every_ignore_flag_is_recognised(tmp_path, flag):
    def change(content):
        for annotation in content["annotations"]:
            annotation.update(iscrowd=0, difficult=0)
            annotation[flag] = 1

    assert all(ignored.all() for ignored in read_annotations(edited(tmp_path, change), "train").ignored)


def test_missing_sizes_are_read_from_the_files(tmp_path):
    def change(content):
        for image in content["images"]:
            del image["height"], image["width"]

    read = read_annotations(edited(tmp_path, change), "train")
    assert [tuple(size) for size in read.sizes] == [picture.size for picture in pictures(4)]


def test_images_of_unannotated_size_are_refused(tmp_path):
    def change(content):
        for image in content["images"]:
            image["width"] *= 2

    problem = refusal(read_annotations, edited(tmp_path, change), "train").problem
    assert "4 of 4" in problem and "train_001.png" in problem


@pytest.mark.parametrize("period", [2, 3, 7])
def test_wrong_sizes_at_any_stride_are_refused(tmp_path, period):
    def change(content):
        for image in content["images"][1::period]:
            image["width"] *= 2

    root = write_coco(tmp_path / "set", {"train": pictures(210)})
    _change(root, change)
    assert f"{len(range(1, 210, period))} of 210" in refusal(read_annotations, root, "train").problem


def test_few_images_of_wrong_size_keep_their_real_size(tmp_path):
    def change(content):
        content["images"][0].update(width=4000, height=10)

    root = write_coco(tmp_path / "set", {"train": pictures(21)})
    _change(root, change)
    read = read_annotations(root, "train")
    assert read.counts[OTHER_SIZE] == 1
    assert [tuple(size) for size in read.sizes] == [picture.size for picture in pictures(21)]


def test_changed_image_is_measured_again(tmp_path):
    root = edited(tmp_path, lambda content: None)
    read_annotations(root, "train")
    Image.new("RGB", (7, 9)).save(root / "images" / "train_001.png")
    assert "1 of 4" in refusal(read_annotations, root, "train").problem


# ---- one file, one image ----


@pytest.mark.parametrize("spelling", ["train_001.png", "./train_001.png", "link.png", "hard.png"])
def test_file_under_two_ids_is_one_image(tmp_path, spelling):
    def change(content):
        first = content["images"][0]
        content["images"].append({**first, "id": 99, "file_name": spelling})
        template = content["annotations"][0]
        content["annotations"] += [
            {**template, "id": 98, "image_id": 99},
            {**template, "id": 99, "image_id": 99, "bbox": [1, 2, 20, 30]},
        ]

    root = edited(tmp_path, change)
    (root / "images" / "link.png").symlink_to(root / "images" / "train_001.png")
    os.link(root / "images" / "train_001.png", root / "images" / "hard.png")
    plain, read = (
        read_annotations(write_coco(tmp_path / "plain", {"train": pictures(4)}), "train"),
        read_annotations(root, "train"),
    )
    assert (read.ids, read.counts[MERGED]) == (plain.ids, 1)
    np.testing.assert_array_equal(read.boxes[0], [*plain.boxes[0], [1, 2, 21, 32]])
    np.testing.assert_array_equal(read.boxes[1], plain.boxes[1])


# ---- flags, ids and names ----


@pytest.mark.parametrize("flag", ["iscrowd", "ignore", "difficult"])
@pytest.mark.parametrize(
    ("value", "ignored"), [("0", False), ("1", True), (False, False), ("false", False), (1.0, True)]
)
def test_flags_of_any_type_keep_their_meaning(tmp_path, flag, value, ignored):
    def change(content):
        for annotation in content["annotations"]:
            annotation.update({"iscrowd": 0, "difficult": 0, flag: value})

    read = read_annotations(edited(tmp_path, change), "train")
    assert {bool(one) for flags in read.ignored for one in flags} == {ignored}


def test_ids_as_text_equal_ids_as_numbers(tmp_path, coco):
    def change(content):
        for annotation in content["annotations"]:
            annotation.update(image_id=str(annotation["image_id"]), category_id=float(annotation["category_id"]))
        for category in content["categories"]:
            category.update(id=str(category["id"]), name=f" \ufeff{category['name']} ")

    root = write_coco(tmp_path / "set", {"train": SPLITS["train"]})
    _change(root, change)
    plain, read = read_annotations(coco, "train"), read_annotations(root, "train")
    assert read.class_names == plain.class_names
    for one, other in zip(plain.boxes + plain.labels, read.boxes + read.labels, strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("class_names", [None, NAMES])
def test_two_classes_of_one_name_are_refused(tmp_path, class_names):
    root = edited(tmp_path, lambda content: content["categories"][1].update(name=content["categories"][0]["name"]))
    assert "several classes of the name" in refusal(read_annotations, root, "train", class_names=class_names).problem


def test_key_that_occurs_twice_is_refused(tmp_path):
    root = edited(tmp_path, lambda content: None)
    file = root / "annotations" / "instances_train.json"
    file.write_text(f'{file.read_text().rstrip()[:-1]}, "annotations": []}}')
    assert "the key 'annotations' twice" in refusal(read_annotations, root, "train").problem


def test_other_folders_and_names_are_recognised(coco, tmp_path):
    root = tmp_path / "renamed"
    (root / "annotations").mkdir(parents=True)
    content = (coco / "annotations" / "instances_train.json").read_text()
    (root / "annotations" / "instances_train2017.json").write_text(content)
    (root / "train2017").symlink_to(coco / "images")
    assert len(read_annotations(root, "train")) == 9


@pytest.mark.parametrize("write", [write_coco, write_voc])
@pytest.mark.parametrize("name, split", [("default", "train"), ("Train", "train"), ("Validation", "val")])
def test_subsets_of_cvat_are_splits(tmp_path, write, name, split):
    root = write(tmp_path / "set", {name: pictures(3)})
    assert len(read_annotations(root, split)) == 3
    with pytest.raises(MissingSplit):
        read_annotations(root, {"train": "val", "val": "train"}[split])


def test_named_split_is_taken_before_default(tmp_path):
    root = write_coco(tmp_path / "set", {"train": pictures(3), "default": pictures(4)})
    assert len(read_annotations(root, "train")) == 3


def test_few_missing_images_are_skipped_and_many_refused(tmp_path):
    root = write_coco(tmp_path / "set", {"train": pictures(9)})
    (root / "images" / "train_002.png").unlink()
    read = read_annotations(root, "train", max_bad_share=0.2)
    assert (len(read), read.counts[NO_FILE]) == (8, 1)
    error = refusal(read_annotations, root, "train")
    assert error.field == "data.max_bad_share" and "1 of 9" in error.problem and "train_002.png" in error.problem


def test_split_without_any_image_is_always_refused(tmp_path):
    root = write_voc(tmp_path / "set", {"train": pictures(2)})
    for path in (root / "JPEGImages").iterdir():
        path.unlink()
    assert refusal(read_annotations, root, "train", max_bad_share=1).field == "data.max_bad_share"


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda c: c["annotations"][0].update(category_id=77), "category 77 on image 1"),
        (lambda c: c["annotations"][0].update(image_id=99), "category 5 on image 99"),
        (lambda c: c.update(images=[], annotations=[]), "'train'"),
        (lambda c: c.pop("categories"), "KeyError 'categories'"),
        (lambda c: c["annotations"][0].update(bbox=None), "instances_train.json"),
        (lambda c: c["images"][0].update(file_name="../secret.png"), "../secret.png"),
        (lambda c: [i.update(file_name=f"no/{i['id']}.png") for i in c["images"]], "no/1.png"),
        (lambda c: c["categories"][1].update(name="bus"), "several classes of the name bus"),
        (lambda c: c["images"][1].update(id=1), "two images have the id 1"),
        (lambda c: c["categories"][1].update(id=5), "two categories have the id 5"),
        (lambda c: [a.update(category_id=9) for a in c["annotations"]], "7 of 7"),
        (lambda c: c["annotations"][0].update(bbox=[1, 2, 3]), "id 1, image_id 1, bbox [1, 2, 3]"),
        (lambda c: c["annotations"][1].update(id="a7", bbox=[]), "id 'a7', image_id 2, bbox []"),
        (lambda c: c["annotations"][0].update(iscrowd="perhaps"), "'perhaps'"),
        (lambda c: c["annotations"][0].update(image_id="01"), "image '01'"),
        (lambda c: c["images"][1].update(id="1"), "(1 and '1')"),
        (lambda c: c["images"][1].update(id=None), "received None"),
        (lambda c: c["categories"][1].update(name=False), "received False"),
        (lambda c: c["annotations"][0].update(bbox=["a", 2, 3, 4]), "could not convert"),
        (lambda c: c["annotations"][0].update(bbox=[10**400, 2, 3, 4]), "OverflowError"),
        (lambda c: c["annotations"][0].update(area="large"), "could not convert"),
        (lambda c: c.update(annotations=[["a"]]), "AttributeError"),
        (lambda c: c.update(images=7), "TypeError"),
        (lambda c: c["images"][0].update(file_name=5), "TypeError"),
    ],
)
def test_wrong_coco_files_are_refused(tmp_path, change, named):
    assert named in refusal(read_annotations, edited(tmp_path, change), "train").problem


def test_wrong_roots_and_files_are_refused(tmp_path, coco, voc):
    (tmp_path / "empty").mkdir()
    broken = write_voc(tmp_path / "broken", {"train": pictures(3)})
    (broken / "Annotations" / "train_002.xml").write_text("<annotation><object>")
    gone = write_voc(tmp_path / "gone", {"train": pictures(3)})
    (gone / "Annotations" / "train_003.xml").unlink()
    (coco / "annotations" / "instances_odd.json").write_text("{")
    cases = [
        ((tmp_path / "absent", "train"), None, "absent"),
        ((tmp_path / "empty", "train"), None, "empty"),
        ((coco, "test"), None, "of a split test"),
        ((voc, "train", "coco"), None, "instances_train.json"),
        ((voc, "train", "folder"), "data.kind", "'folder'"),
        ((coco, "odd"), None, "instances_odd.json"),
        ((broken, "train"), None, "train_002.xml"),
        ((gone, "train"), None, "train_003.xml"),
    ]
    for arguments, field, named in cases:
        error = refusal(read_annotations, *arguments)
        assert error.field == field and named in error.problem


@pytest.mark.data
@pytest.mark.skipif(not VOC07.is_dir(), reason="the VOC 2007 photographs are not in ../shared/data/voc07")
def test_voc07_counts_and_layouts():
    read = {kind: read_annotations(VOC07, "val", kind) for kind in ("coco", "voc")}
    for one in read.values():
        assert (len(one), sum(map(len, one.boxes)), sum(int(i.sum()) for i in one.ignored)) == (850, 2624, 467)
        assert len(one.class_names) == 20
    for a, b in zip(read["coco"].boxes, read["voc"].boxes, strict=True):
        np.testing.assert_allclose(a, b, atol=0.51)  # VOC's are the same, rounded to whole pixels


# ---- odd contents: each has one outcome and is counted ----


def first_image(content):
    """Returns a template of an annotation on the first image, and the image's sides."""
    image = content["images"][0]
    return {**content["annotations"][0], "image_id": image["id"]}, image["width"], image["height"]


def with_boxes(*boxes, **extra):
    def change(content):
        template, _, _ = first_image(content)
        content["annotations"] += [{**template, "id": 100 + i, "bbox": box, **extra} for i, box in enumerate(boxes)]

    return change


def remove_all_boxes(content):
    content["annotations"] = []


def twice(content):
    content["annotations"] += content["annotations"][:2]


@pytest.mark.parametrize(
    ("change", "what", "count"),
    [
        (with_boxes([500, 500, 20, 20], [-30, 5, 20, 20]), "boxes outside their image", 2),
        (with_boxes([3, 3, 0, 9], [5, 5, -2, 9]), "boxes without area", 2),
        (with_boxes([float("nan"), 3, 4, 9], [1, 1, float("inf"), 4]), "boxes that are not finite", 2),
        (with_boxes([-5, -5, 20, 20], [0, 0, 20.4, 20]), "boxes cut to their image by half a pixel or more", 1),
        (with_boxes([2, 2, 20, 20], iscrowd=1), "boxes ignored (crowd, difficult)", 2),  # one is difficult already
        (twice, "annotations that repeat another, left out", 2),
        (remove_all_boxes, "images without boxes", 4),
        (lambda content: None, "images without boxes", 0),
    ],
)
def test_odd_coco_contents_are_counted_and_reported(tmp_path, caplog, change, what, count):
    caplog.set_level("INFO")
    read = read_annotations(edited(tmp_path, change), "train", max_bad_share=0.3)
    assert read.counts[what] == count
    assert (f"{count} {what}" in caplog.messages[-1]) == (count > 0)
    assert caplog.messages[-1].startswith(f"train: {len(read)} images, {sum(map(len, read.boxes))} boxes")
    assert all(np.isfinite(boxes).all() and (boxes[:, 2:] > boxes[:, :2]).all() for boxes in read.boxes)


def test_id_of_two_different_boxes_keeps_both(tmp_path):
    def change(content):
        for annotation in content["annotations"]:
            annotation["id"] = 1

    assert sum(map(len, read_annotations(edited(tmp_path, change), "train").boxes)) == 1 + 2 + 3 + 1


@pytest.mark.parametrize("value", [float("nan"), -3, "100", None, 10**30])
def test_invalid_sizes_are_read_from_the_files_or_refused(tmp_path, value):
    root = edited(tmp_path, lambda c: [image.update(height=value) for image in c["images"]])
    if value == 10**30:
        assert "4 of 4" in refusal(read_annotations, root, "train").problem
    else:
        assert [tuple(size) for size in read_annotations(root, "train").sizes] == [p.size for p in pictures(4)]


@pytest.mark.parametrize("text", ["[" * 200_000, '{"images": ' + "9" * 5000 + "}", "\ud800", "[]", ""])
def test_broken_json_is_refused_in_a_short_line(tmp_path, text):
    root = edited(tmp_path, lambda content: None)
    (root / "annotations" / "instances_train.json").write_bytes(text.encode("utf-8", "surrogatepass"))
    error = refusal(read_annotations, root, "train")
    assert "instances_train.json" in error.problem and len(str(error)) < 600


def test_huge_file_is_refused_without_reading(tmp_path):
    root = edited(tmp_path, lambda content: None)
    os.truncate(root / "annotations" / "instances_train.json", 1 << 40)  # a sparse file: no disk is used
    problem = refusal(read_annotations, root, "train").problem
    assert "4,294,967,296" in problem and "1,099,511,627,776" in problem
    voc = write_voc(tmp_path / "voc", {"train": pictures(2)})
    os.truncate(voc / "Annotations" / "train_001.xml", 1 << 40)
    assert "16,777,216" in refusal(read_annotations, voc, "train").problem


@pytest.mark.parametrize("with_size", [True, False])
def test_boxes_refer_to_the_upright_image(tmp_path, with_size):
    def change(content):
        for image in content["images"] if not with_size else ():
            del image["height"], image["width"]

    root = edited(tmp_path, change)
    for value, path in zip((6, 8, 5, 3), sorted((root / "images").iterdir()), strict=True):
        with Image.open(path) as image:
            path.write_bytes(with_orientation(image, value, "PNG"))
    read = read_annotations(root, "train")
    assert [tuple(size) for size in read.sizes] == [picture.size for picture in pictures(4)]
    assert read.counts["images of another size than annotated, of those looked at"] == 0


def test_annotations_of_unrotated_images_are_refused(tmp_path):
    def change(content):
        for image in content["images"]:
            image["height"], image["width"] = image["width"], image["height"]

    root = edited(tmp_path, change)
    for path in (root / "images").iterdir():
        with Image.open(path) as image:
            path.write_bytes(with_orientation(image, 6, "PNG"))
    error = refusal(read_annotations, root, "train")
    assert "4 of 4" in error.problem and "EXIF" in error.fix
