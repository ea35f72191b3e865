"""Tests of VOC annotations: what is read, what is counted, and the errors about wrong files."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dupr_tf.data.labels.annotations import read_annotations
from dupr_tf.data.labels.voc import EXTRA_BOXES
from tests.labelled_scenes import Picture, Thing, pictures, write_voc
from tests.refusals import refusal


def test_voc_class_in_only_one_split_gets_a_number(tmp_path):
    alone = {name: [Picture((40, 40), [Thing(name, (2, 2, 30, 30))])] for name in ("cat", "bus")}
    root = write_voc(tmp_path / "set", {"train": alone["cat"], "val": alone["bus"]})
    assert read_annotations(root, "train").class_names == ("bus", "cat")


def changed_voc(tmp_path, old, new):
    """Returns a VOC set of three whose second file has one text replaced by another."""
    root = write_voc(tmp_path / "voc", {"train": pictures(3)})
    file = root / "Annotations" / "train_002.xml"
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, new, 1))
    return root


@pytest.mark.parametrize(
    ("old", "new", "what"),
    [
        ("<xmin>", "<xmin>5000", "boxes without area"),
        ("<xmin>", "<xmin>nan</xmin><xmin>", "boxes that are not finite"),
        ("<difficult>0", "<difficult>1", "boxes ignored (crowd, difficult)"),
        ("<xmax>", "<xmax>9", "boxes of which more than half lies outside their image, cut to it"),
    ],
)
def test_odd_voc_contents_are_counted(tmp_path, old, new, what):
    before = read_annotations(write_voc(tmp_path / "as_drawn", {"train": pictures(3)}), "train").counts
    read = read_annotations(changed_voc(tmp_path, old, new), "train", max_bad_share=0.2)
    assert read.counts[what] == before[what] + 1


@pytest.mark.parametrize("suffix", [".png", ".JPG", ".webp"])
def test_voc_images_may_have_any_known_ending(tmp_path, suffix):
    root = write_voc(tmp_path / "voc", {"train": pictures(3)})
    plain = read_annotations(root, "train")
    for path in (root / "JPEGImages").iterdir():
        Image.open(path).save(path.with_suffix(".tmp"), {".JPG": "jpeg"}.get(suffix, suffix[1:]))
        path.unlink()
        path.with_suffix(".tmp").rename(path.with_suffix(suffix))
    read = read_annotations(root, "train")
    assert [Path(path).suffix for path in read.paths] == [suffix] * 3
    np.testing.assert_array_equal(np.concatenate(read.boxes), np.concatenate(plain.boxes))


def test_two_voc_images_of_one_stem_need_a_filename(tmp_path):
    root = write_voc(tmp_path / "voc", {"train": pictures(3)})
    other = root / "JPEGImages" / "train_002.png"
    Image.open(other.with_suffix(".jpg")).save(other)
    problem = refusal(read_annotations, root, "train").problem
    assert "train_002.jpg" in problem and "train_002.png" in problem
    file = root / "Annotations" / "train_002.xml"
    file.write_text(file.read_text().replace("<annotation>", "<annotation><filename>train_002.png</filename>"))
    assert read_annotations(root, "train").paths[1] == str(other)


def test_every_box_of_a_voc_object_is_read(tmp_path):
    more = "<bndbox><xmin>3</xmin><ymin>4</ymin><xmax>20</xmax><ymax>30</ymax></bndbox></object>"
    root = changed_voc(tmp_path, "</object>", more)
    before = read_annotations(write_voc(tmp_path / "as_drawn", {"train": pictures(3)}), "train")
    read = read_annotations(root, "train")
    np.testing.assert_array_equal(read.boxes[1][1], [2, 3, 20, 30])
    assert len(read.boxes[1]) == len(before.boxes[1]) + 1 and read.labels[1][0] == read.labels[1][1]
    assert read.counts[EXTRA_BOXES] == 1


def test_voc_object_without_a_box_is_refused(tmp_path):
    problem = refusal(read_annotations, changed_voc(tmp_path, "bndbox>", "box>"), "train").problem
    assert "train_002.xml" in problem


ENTITIES = "".join(f'<!ENTITY a{i} "{f"&a{i - 1};" * 10 if i else "ha"}">' for i in range(12))


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        ("<annotation>", f"<!DOCTYPE lolz [{ENTITIES}]><annotation>&a11;", "DOCTYPE"),
        ("<annotation>", '<!DOCTYPE a [<!ENTITY f SYSTEM "file:///etc/passwd">]><annotation>&f;', "DOCTYPE"),
        ("<annotation>", "<annotation>&lol;", "undefined entity"),
        ("<xmin>", "<xmin>a", "could not convert"),
        ("<name>", "<name><b/>", "expected a name"),
        ("<width>", "<width>inf</width><width>", None),
        ("<width>", "<width>nan</width><width>", None),
    ],
)
def test_wrong_voc_files_are_refused_by_name(tmp_path, old, new, reason):
    root = changed_voc(tmp_path, old, new)
    if reason is None:  # the size is read from the image
        assert [tuple(size) for size in read_annotations(root, "train").sizes] == [p.size for p in pictures(3)]
        return
    problem = refusal(read_annotations, root, "train").problem
    assert "train_002.xml" in problem and reason in problem


def test_voc_lists_stay_in_the_root_and_count_repeats(tmp_path):
    root = write_voc(tmp_path / "voc", {"train": pictures(3)})
    listing = root / "ImageSets" / "Main" / "train.txt"
    text = listing.read_text()
    listing.write_text(text + "train_001\n")
    read = read_annotations(root, "train")
    assert len(read) == 3 and read.counts["images listed twice, used once"] == 1
    listing.write_text(text + "../../secret\n")
    assert "../../secret" in refusal(read_annotations, root, "train").problem
