"""Tests of annotations with masks, of VOC's two years and of Cityscapes, and of errors about wrong files."""

import json

import numpy as np
import pytest
from PIL import Image

from dupr_tf.data.labels.annotations import UNMASKED, read_annotations
from dupr_tf.data.labels.cityscapes import INSTANCE_NAMES
from dupr_tf.data.labels.run_lengths import NO_POLYGON, OTHER_MASK, area_of, pixels_of
from tests.labelled_scenes import NAMES, Picture, Thing, pictures, write_coco, write_voc
from tests.masked_scenes import CITY_NAMES, mask, write_cityscapes, write_coco_masks
from tests.refusals import refusal

SPLITS = {"train": pictures(7), "val": pictures(3, seed=1)}


@pytest.mark.parametrize("form", ["polygons", "runs", "compressed"])
def test_coco_masks_are_the_drawn_ones(tmp_path, form):
    root = write_coco_masks(tmp_path / "set", SPLITS, form)
    read = read_annotations(root, "train", masks=True)
    for i, picture in enumerate(SPLITS["train"]):
        assert [read.ids[i], len(read.masks[i])] == [str(i + 1), len(picture.things)]
        for k, thing in enumerate(picture.things):
            np.testing.assert_array_equal(pixels_of(read.masks[i][k], picture.size), mask(thing, picture.size))
            assert read.areas[i][k] == mask(thing, picture.size).sum()
    assert read.counts[UNMASKED] == 0
    assert read_annotations(root, "train").masks is None


BROKEN = [
    ([[1, 2, 3]], NO_POLYGON),
    ([[1, 2, 3, 4, float("nan"), 6]], NO_POLYGON),
    ({"size": [3, 3], "counts": [0, 9]}, OTHER_MASK),
    ({"size": [60, 60], "counts": None}, None),
    ("polygon", None),
    (None, None),
]


@pytest.mark.parametrize(("segmentation", "what"), BROKEN)
def test_box_without_a_usable_mask_is_ignored_and_counted(tmp_path, segmentation, what):
    def change(content):
        content["annotations"][1]["segmentation"] = segmentation

    root = write_coco_masks(tmp_path / "set", {"train": pictures(4)}, change=change)
    read, plain = read_annotations(root, "train", max_bad_share=0.2, masks=True), read_annotations(root, "train")
    assert read.counts[UNMASKED] == 1 and (what is None or read.counts[what] == 1)
    assert (list(read.ignored[1]), list(plain.ignored[1])) == ([True, False], [False, False])
    x1, y1, x2, y2 = read.boxes[1][0]
    assert area_of(read.masks[1][0], read.sizes[1]) == (x2 - x1) * (y2 - y1)  # the box itself


def test_more_wrong_masks_than_the_share_are_refused(tmp_path):
    def change(content):
        content["annotations"][1]["segmentation"] = [[1, 2, 3]]

    root = write_coco_masks(tmp_path / "set", {"train": pictures(4)}, change=change)
    error = refusal(read_annotations, root, "train", masks=True)
    assert error.field == "data.max_bad_share" and "1 of 7 masks" in error.problem and "train" in error.problem
    assert len(read_annotations(root, "train")) == 4  # boxes alone need no masks


def test_masks_of_dropped_boxes_are_dropped(tmp_path):
    def change(content):
        content["annotations"][3]["bbox"] = [1, 1, 0, 0]  # the first of three boxes of the third picture

    root = write_coco_masks(tmp_path / "set", {"train": pictures(4)}, change=change)
    read = read_annotations(root, "train", max_bad_share=0.2, masks=True)
    kept = pictures(4)[2].things[1:]
    assert len(read.masks[2]) == len(read.boxes[2]) == 2
    for packed, thing in zip(read.masks[2], kept, strict=True):
        np.testing.assert_array_equal(pixels_of(packed, read.sizes[2]), mask(thing, read.sizes[2]))


@pytest.mark.parametrize("writer", [write_coco, write_voc])
def test_data_without_masks_are_refused_for_masks(tmp_path, writer):
    root = writer(tmp_path / "set", SPLITS)
    assert "13 boxes" in refusal(read_annotations, root, "train", masks=True).problem
    bare = writer(tmp_path / "bare", {"train": [Picture((40, 40), [])], "val": SPLITS["val"]})
    if writer is write_coco:
        assert read_annotations(bare, "train", masks=True).masks == ([],)


def test_crowds_keep_their_masks(tmp_path):
    def change(content):
        content["annotations"][0]["iscrowd"] = 1

    read = read_annotations(write_coco_masks(tmp_path / "set", SPLITS, "runs", change), "train", masks=True)
    assert read.ignored[0][0] and read.counts[UNMASKED] == 0
    assert area_of(read.masks[0][0], read.sizes[0]) == mask(SPLITS["train"][0].things[0], read.sizes[0]).sum()


# ---- VOC 2007 and 2012 ----


@pytest.fixture(params=["", "VOCdevkit"])
def years(tmp_path, request):
    root = tmp_path / "voc"
    first = {"trainval": pictures(3), "test": pictures(2, seed=2), "train": pictures(1)}
    write_voc(root / request.param / "VOC2007", first)
    write_voc(root / request.param / "VOC2012", {"trainval": pictures(4, seed=1), "train": pictures(2, seed=1)})
    return root


def test_voc_07_and_12_train_together_and_test_on_07(years):
    train, val = read_annotations(years, "train"), read_annotations(years, "val")
    assert train.ids == tuple(f"VOC2007/trainval_{i:03d}" for i in (1, 2, 3)) + tuple(
        f"VOC2012/trainval_{i:03d}" for i in (1, 2, 3, 4)
    )
    assert [tuple(size) for size in train.sizes] == [p.size for p in pictures(3) + pictures(4, seed=1)]
    assert val.ids == ("VOC2007/test_001", "VOC2007/test_002")
    assert train.class_names == val.class_names == NAMES
    flags = [[thing.difficult for thing in picture.things] for picture in pictures(3)]
    assert [list(ignored) for ignored in train.ignored[:3]] == flags and any(map(any, flags))


def test_single_voc_year_reads_as_before(years):
    year = next(years.rglob("VOC2012"))
    assert len(read_annotations(year, "train")) == 2
    assert str(year) in refusal(read_annotations, year, "val").problem


def test_missing_list_among_voc_years_is_named(years):
    listing = next(years.rglob("VOC2007/ImageSets/Main/test.txt"))
    listing.unlink()
    assert len(read_annotations(years, "train")) == 7
    assert str(listing) in refusal(read_annotations, years, "val").problem
    assert "none of a split minival." in refusal(read_annotations, years, "minival").problem


# ---- Cityscapes ----


def city_order(made):
    return [picture for i in (0, 1) for picture in made[i::2]]  # by city


@pytest.mark.parametrize("kinds", [("instanceIds",), ("polygons",), ("instanceIds", "labelIds", "polygons")])
def test_cityscapes_gives_instances_with_masks(tmp_path, kinds):
    root = write_cityscapes(tmp_path / "set", SPLITS, kinds)
    read = read_annotations(root, "train", masks=True)
    assert read.class_names == INSTANCE_NAMES and len(read) == 7
    assert read.ids[0] == "town0/town0_000000_000019"
    for i, picture in enumerate(city_order(SPLITS["train"])):
        _check_scene(read, i, picture, slack=0 if "instanceIds" in kinds else 80)
    assert read_annotations(root, "val").masks is None and read_annotations(root, "val").void is None


def _check_scene(read, i, picture, slack):
    """Checks boxes, masks, groups and void of a scene, later things on top. Pillow draws a polygon's far edges too."""
    visible = np.full(picture.size, -1)
    for number, thing in enumerate(picture.things):
        visible[mask(thing, picture.size)] = number
    seen = [number for number in range(len(picture.things)) if (visible == number).any()]
    found = {}
    for k, label in enumerate(read.labels[i]):
        found[read.class_names[label], bool(read.ignored[i][k])] = k
    assert len(found) == len(read.labels[i]) == len(seen)
    for number in seen:
        thing, expected = picture.things[number], visible == number
        k = found[CITY_NAMES[thing.name], thing.difficult]
        assert (pixels_of(read.masks[i][k], picture.size) != expected).sum() <= slack
        rows, columns = np.flatnonzero(expected.any(1)), np.flatnonzero(expected.any(0))
        box = [columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]
        np.testing.assert_allclose(read.boxes[i][k], box, atol=1 if slack else 0)
    void = pixels_of(read.void[i], picture.size)
    assert (void != (np.arange(picture.size[0]) < 4)[:, None] * (visible < 0)).sum() <= slack


def city_file(root, ending):
    return sorted(root.glob(f"gtFine/train/*/*{ending}"))[0]


def test_wrong_cityscapes_files_are_refused_by_name(tmp_path):
    def fresh(kinds=("polygons",)):
        fresh.count = getattr(fresh, "count", 0) + 1
        return write_cityscapes(tmp_path / str(fresh.count), {"train": pictures(2)}, kinds)

    def polygons(**extra):
        root = fresh()
        content = json.loads(city_file(root, "polygons.json").read_text())
        city_file(root, "polygons.json").write_text(json.dumps(content | extra))
        return root

    thing = {"label": "car", "polygon": [[0, 0], [5, 5], [0, 5]]}
    cases = [
        (polygons(objects=[thing | {"label": "dragon"}]), "dragon"),
        (polygons(objects=[thing | {"polygon": [[0, float("nan")], [5, 5]]}]), "polygon of car"),
        (polygons(objects=[thing | {"polygon": [[0, 1, 2], [5, 5]]}]), "polygons.json"),
        (polygons(objects=[{"label": "car"}]), "'polygon'"),
        (polygons(imgHeight=10**9, imgWidth=10**9), "1000000000 x 1000000000"),
        (polygons(imgHeight=-4, imgWidth=-4), "-4 x -4"),
        (polygons(imgHeight="a"), "polygons.json"),
    ]
    coloured, gone, cut = fresh(("instanceIds",)), fresh(("instanceIds",)), fresh(("instanceIds",))
    Image.new("RGB", (9, 9)).save(city_file(coloured, "instanceIds.png"))
    city_file(gone, "instanceIds.png").unlink()
    city_file(cut, "instanceIds.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    cases += [(coloured, "mode RGB"), (gone, "instanceIds.png"), (cut, "instanceIds.png")]
    for root, named in cases:
        problem = refusal(read_annotations, root, "train").problem
        assert str(root) in problem and named in problem
    assert f"{gone}/leftImg8bit/test/" in refusal(read_annotations, gone, "test").problem


def test_image_and_truth_of_different_sizes_are_refused(tmp_path):
    root = write_cityscapes(tmp_path / "set", {"train": [Picture((40, 60), [Thing("bus", (5, 9, 30, 30))])]})
    Image.new("RGB", (30, 20)).save(next(root.rglob("*leftImg8bit.png")))
    assert "leftImg8bit.png (20 x 30, annotated 40 x 60)" in refusal(read_annotations, root, "train").problem
