"""Tests of mask folders and Cityscapes for semantic segmentation: classes, invalid values, wrong files."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dupr_tf.data.labels.cityscapes import SEMANTIC_NAMES
from dupr_tf.data.labels.segments import read_segments
from tests.labelled_scenes import pictures
from tests.masked_scenes import CITY_NAMES, IGNORE, mask, values, write_cityscapes, write_segments
from tests.refusals import refusal

CAMVID = Path(__file__).parents[4] / "shared" / "data" / "camvid"
SPLITS = {"train": pictures(6), "val": pictures(3, seed=1)}
GIVEN = ("ground", "bus", "cat", "dog")


@pytest.fixture
def root(tmp_path):
    return write_segments(tmp_path / "set", SPLITS)


def classes(root, text):
    (root / "classes.txt").write_text(text)
    return root


def expected(picture):
    made = values(picture)
    return np.where(made == IGNORE, 255, made)


@pytest.mark.parametrize("split_first", [True, False])
def test_classes_of_pixels_are_the_drawn_ones(tmp_path, split_first):
    read = read_segments(write_segments(tmp_path / "set", SPLITS, split_first), "train", ignore_value=IGNORE)
    assert read.class_names == ("0", "1", "2", "3") and len(read) == 6
    assert read.ids[:2] == ("000.jpg", "001.jpg")
    for i, picture in enumerate(SPLITS["train"]):
        assert tuple(read.sizes[i]) == picture.size
        np.testing.assert_array_equal(read.truth(i), expected(picture))


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("ground\nbus\ncat\ndog\na\nb\nc\nd\ne\nvoid\n", (*GIVEN, "a", "b", "c", "d", "e")),
        ("# mine\n\n9 Unlabelled\n0 ground\n1 bus\n2 cat\n3 dog\n", GIVEN),
        ("3 dog\n0 ground\n1 big red bus\n2 cat\n9 ignore\n", ("dog", "ground", "big red bus", "cat")),
    ],
)
def test_names_come_from_classes_txt(root, text, names):
    before = classes(root, text).stat().st_mtime_ns
    read = read_segments(root, "train")
    assert read.class_names == names
    as_named = {name: number for number, name in enumerate(names)}
    truth, drawn = read.truth(2), values(SPLITS["train"][2])
    for value, name in enumerate(("ground", "bus", "cat", "dog")):
        assert set(np.unique(truth[drawn == value])) <= {as_named.get(name, as_named.get("big red bus"))}
    assert (truth[drawn == IGNORE] == 255).all()
    assert root.stat().st_mtime_ns == before  # nothing was written


def test_given_names_keep_the_order_of_a_detector(root):
    assert read_segments(root, "train", class_names=GIVEN, ignore_value=IGNORE).class_names == GIVEN
    classes(root, "0 ground\n1 bus\n2 cat\n3 dog\n9 void\n")
    turned = read_segments(root, "val", class_names=GIVEN[::-1])
    np.testing.assert_array_equal(
        turned.truth(0), np.where(expected(SPLITS["val"][0]) == 255, 255, 3 - expected(SPLITS["val"][0]))
    )
    error = refusal(read_segments, root, "val", class_names=("ground", "cat", "dog"))
    assert error.field == "data.class_names" and "received bus" in error.problem


def test_unnamed_values_of_both_splits_become_classes(root):
    for file in (root / "val" / "masks").iterdir():
        Image.fromarray(np.where(np.asarray(Image.open(file)) == 2, 77, 0).astype(np.uint8)).save(file)
    names = ("0", "1", "2", "3", "77")
    assert read_segments(root, "train", ignore_value=IGNORE).class_names == names
    val = read_segments(root, "val", class_names=names)
    assert val.class_names == names and set(np.unique(val.truth(1))) == {0, 4}


def test_palettes_are_indices_and_255_is_never_a_class(root):
    file = root / "train" / "masks" / "000.png"
    picture = Image.fromarray(np.where(values(SPLITS["train"][0]) == IGNORE, 255, 1).astype(np.uint8))
    picture.putpalette([255, 0, 0] * 256)
    picture.save(file)
    read = read_segments(root, "train", class_names=GIVEN, ignore_value=IGNORE)
    assert set(np.unique(read.truth(0))) == {1, 255}


def damage(root, kind):
    """Returns a way to damage one mask of six."""
    file = root / "train" / "masks" / "003.png"
    if kind == "gone":
        file.unlink()
    elif kind == "text":
        file.write_bytes(b"no picture")
    elif kind == "cut":
        file.write_bytes(file.read_bytes()[:60])
    elif kind == "small":
        Image.fromarray(np.zeros((5, 5), np.uint8)).save(file)
    elif kind == "colour":
        Image.fromarray(np.zeros((*SPLITS["train"][3].size, 3), np.uint8)).save(file)
    elif kind == "deep":
        Image.fromarray(np.zeros(SPLITS["train"][3].size, np.uint16)).save(file)


@pytest.mark.parametrize(
    ("kind", "what", "named"),
    [
        ("gone", "images without a mask", "train/images/003.jpg"),
        ("text", "images or masks that cannot be read", "masks/003.png"),
        ("cut", "images or masks that cannot be read", "masks/003.png"),
        ("small", "masks of another size than their image", "003.png (5 x 5, its image"),
        ("colour", "images or masks that cannot be read", "mode RGB"),
        ("deep", "images or masks that cannot be read", "mode I;16"),
    ],
)
def test_few_broken_masks_are_counted_and_many_refused(root, kind, what, named):
    damage(root, kind)
    read = read_segments(root, "train", ignore_value=IGNORE, max_bad_share=0.2)
    assert len(read) == 5 and read.counts == {what: 1} and "003.jpg" not in read.ids
    assert f"1 {what}" in read.summary()
    error = refusal(read_segments, root, "train", ignore_value=IGNORE)
    assert error.field == "data.max_bad_share" and "1 of 6" in error.problem and named in error.problem


@pytest.mark.parametrize("share", [0.2, 0.0])
@pytest.mark.parametrize(
    ("name", "what", "words"),
    [
        ("003_L.png", "images whose mask has another name", ["masks/003_L.png, where 003.png is expected", "Rename"]),
        ("003 mask.png", "images whose mask has another name", ["masks/003 mask.png, where 003.png", "Rename"]),
        ("003.jpg", "images whose mask is no PNG", ["masks/003.jpg", "JPEG changes values"]),
        ("0031.png", "images without a mask", ["images/003.jpg", "Add the masks"]),
    ],
)
def test_mask_under_another_name_is_named(root, name, what, words, share):
    file = root / "train/masks/003.png"
    Image.open(file).save(file.with_name(name))
    file.unlink()
    if share:
        read = read_segments(root, "train", ignore_value=IGNORE, max_bad_share=share)
        assert read.counts == {what: 1} and f"1 {what}, such as" in read.summary()
    else:
        error = refusal(read_segments, root, "train", ignore_value=IGNORE)
        assert f"1 of 6 images cannot be used: 1 {what}" in error.problem
        assert all(word in str(error) for word in words) and "data.max_bad_share" in error.fix


def test_masks_of_numbers_with_a_suffix_are_all_recognised(tmp_path):
    root = write_segments(tmp_path / "set", {"train": pictures(12)})
    files = sorted((root / "train/masks").iterdir())
    for number, file in enumerate(files):
        file.rename(file.with_name(f"{number}_mask.png"))
        image = next((root / "train/images").glob(f"{file.stem}.*"))
        image.rename(image.with_name(f"{number}{image.suffix}"))
    assert "12 images whose mask has another name" in refusal(read_segments, root, "train").problem


def test_ending_of_a_mask_may_be_in_capitals(root):
    for file in (root / "train/masks").iterdir():
        file.rename(file.with_suffix(".PNG"))
    assert len(read_segments(root, "train", ignore_value=IGNORE, max_bad_share=0)) == 6


def test_advice_about_a_value_keeps_the_ignored_one(root):
    classes(root, "a\nb\nc\n")
    assert f"set data.ignore_value to {IGNORE}" in refusal(read_segments, root, "train").fix
    fix = refusal(read_segments, root, "train", ignore_value=IGNORE).fix
    assert "`3 void`" in fix and f"data.ignore_value is {IGNORE}" in fix and "to 3" not in fix


def test_split_without_any_mask_is_always_refused(root):
    for mask_file in (root / "train" / "masks").iterdir():
        mask_file.unlink()
    assert refusal(read_segments, root, "train", max_bad_share=1).field == "data.max_bad_share"


@pytest.mark.parametrize(
    ("text", "field", "named"),
    [
        ("0 a\nb\n", None, "classes.txt"),
        ("0 a\n0 b\n", None, "each once"),
        ("300 a\n", None, "0 to 255"),
        ("", None, "0 to 255"),
        ("0 a\n1 a\n2 b\n3 c\n9 void", "data.class_names", "a, a, b, c"),
        ("0 void\n1 ignore\n2 void\n3 void\n9 void", "data.class_names", "none"),
        ("0 a\n1 b\n9 void", "data.ignore_value", "0, 1, 9, 255, received 2 in"),
        ("0 a\n1 b\n9 void", "data.ignore_value", "4 of 6"),
    ],
)
def test_wrong_classes_are_refused(root, text, field, named):
    error = refusal(read_segments, classes(root, text), "train")
    assert error.field == field and named in error.problem


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_byte_order_mark_belongs_to_no_class(root, encoding):
    text = "void\nroad\ncar\nbus\n"
    plain = read_segments(classes(root, text), "train", ignore_value=9)
    (root / "classes.txt").write_bytes(text.encode(encoding))
    read = read_segments(root, "train", ignore_value=9)
    assert read.class_names == plain.class_names == ("road", "car", "bus")


def test_wrong_roots_are_refused(root, tmp_path):
    (root / "classes.txt").write_bytes(b"\xff\xfe")
    (tmp_path / "empty").mkdir()
    cases = [
        ((tmp_path / "none", "train"), None, "none"),
        ((tmp_path / "empty", "train"), None, "train/images"),
        ((root, "test"), None, "none of a split test"),
        ((root, "train", "coco"), "data.kind", "'coco'"),
        ((root, "train", "cityscapes"), None, "leftImg8bit"),
        ((root, "train"), None, "classes.txt"),
    ]
    for arguments, field, named in cases:
        error = refusal(read_segments, *arguments)
        assert error.field == field and named in error.problem


def test_cityscapes_skips_few_images_without_a_header(tmp_path):
    root = write_cityscapes(tmp_path / "set", SPLITS, ("labelIds",))
    read = read_segments(root, "train")
    Path(read.paths[1]).write_bytes(b"")
    kept = read_segments(root, "train", max_bad_share=0.5)
    assert kept.ids == read.select([i for i in range(len(read)) if i != 1]).ids and sum(kept.counts.values()) == 1
    error = refusal(read_segments, root, "train")
    assert error.field == "data.max_bad_share" and read.paths[1] in error.problem


@pytest.mark.parametrize("kinds", [("labelIds",), ("instanceIds",), ("polygons",)])
def test_cityscapes_has_nineteen_classes(tmp_path, kinds):
    read = read_segments(write_cityscapes(tmp_path / "set", SPLITS, kinds), "train")
    assert read.class_names == SEMANTIC_NAMES and len(read.class_names) == 19
    by_city = SPLITS["train"][::2] + SPLITS["train"][1::2]
    for i, picture in enumerate(by_city):
        made = np.full(picture.size, SEMANTIC_NAMES.index("road"))
        made[:4] = 255
        for thing in picture.things:
            made[mask(thing, picture.size)] = SEMANTIC_NAMES.index(CITY_NAMES[thing.name])
        wrong = (read.truth(i) != made).mean()
        assert wrong < 0.03 if kinds == ("polygons",) else wrong == 0  # Pillow draws a polygon's far edges too
    names = SEMANTIC_NAMES[::-1]
    assert read_segments(tmp_path / "set", "val", class_names=names).truth(0)[6, 0] == names.index("road")
    error = refusal(read_segments, tmp_path / "set", "val", class_names=SEMANTIC_NAMES[:-1])
    assert error.field == "data.class_names" and error.problem.endswith("bicycle.")


@pytest.mark.data
@pytest.mark.skipif(not CAMVID.is_dir(), reason="the CamVid photographs are not in ../shared/data/camvid")
def test_camvid_is_read():
    names = ["sky", "building", "pole", "road", "pavement", "tree", "sign", "fence", "vehicle", "person", "bicycle"]
    read = read_segments(CAMVID, "val", class_names=names, ignore_value=11)
    assert len(read) == 101 and (read.sizes == (240, 320)).all() and "101 images, 11 classes" in read.summary()
    assert set(np.unique(read.truth(0))) <= {*range(11), 255}
