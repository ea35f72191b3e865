"""Tests of listing photos, masks, folders of classes and Cityscapes: what is used, left out, and reported."""

import logging

import numpy as np
import pytest
from PIL import Image

from dupr_tf.data.images.decode import kind_of
from dupr_tf.data.images.listing import HIDDEN, LINKS, MAPS, list_images, list_root
from dupr_tf.data.labels.segments import read_segments
from dupr_tf.probing.labelled import read_class_folders
from tests.data.bad_images import encoded, picture
from tests.labelled_scenes import pictures
from tests.masked_scenes import write_cityscapes, write_segments
from tests.refusals import refusal

APPLE = b"\0\5\x16\7" + bytes(100)  # start of a file that macOS writes next to another


def photos(folder, *names):
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encoded(picture()))
    return folder


def names_of(listing, root):
    return [path.removeprefix(f"{root}/") for path in listing.paths]


def hide(root):
    """Writes the files that macOS and other systems put next to every file and folder."""
    for path in list(root.rglob("*")):
        if path.is_file():
            path.with_name("._" + path.name).write_bytes(APPLE)
        elif not path.name.startswith("__"):
            photos(path / "__MACOSX", "1.jpg")
            photos(path / "@eaDir", "2.png")


def test_listing_counts_what_it_leaves_out(tmp_path):
    root = photos(
        tmp_path / "set", "a.jfif", "b/c.JPG", "d.avif", ".e.jpg", "__MACOSX/f.jpg", "plain", "g.jpx", "h.jpx"
    )
    photos(tmp_path / "elsewhere", "i.jpg")
    (root / "archive").symlink_to(tmp_path / "elsewhere")
    listing = list_root(root)
    assert names_of(listing, root) == ["a.jfif", "b/c.JPG", "d.avif"]
    assert listing.left_out.counts == {HIDDEN: 2, LINKS: 1, "": 1, ".jpx": 2}
    assert listing.left_out.examples[LINKS] == str(root / "archive")
    assert "JPEG" in listing.left_out.summary() and str(root / "g.jpx") in listing.left_out.summary()
    assert list_root(tmp_path / "elsewhere").left_out.summary() == ""


def test_folder_without_images_lists_its_contents(tmp_path):
    (tmp_path / "1.raw").write_bytes(b"x")
    assert str(tmp_path / "1.raw") in refusal(list_images, tmp_path).problem


def test_listing_is_logged_once(tmp_path, caplog):
    root = photos(tmp_path, "1.jpg", "2.x")
    with caplog.at_level(logging.INFO):
        assert list_images(root) == list_images(root)
    assert len(caplog.messages) == 2 and str(root) in caplog.messages[0] and ".x" in caplog.messages[1]


@pytest.mark.parametrize(
    ("photo", "label"),
    [
        ("train/images/1.jpg", "train/masks/1.png"),
        ("train/1.png", "trainannot/1.png"),
        ("train/1.png", "train_labels/1_L.png"),
        ("images/training/1.jpg", "annotations_all/training/1.png"),
        ("images/training/1.jpg", "labels/training/1.png"),
    ],
)
def test_label_maps_are_no_photos(tmp_path, photo, label):
    photos(tmp_path, photo, label)
    named = "all" not in label
    listing = list_root(tmp_path)
    assert names_of(listing, tmp_path) == ([photo] if named else sorted([photo, label]))
    assert listing.left_out.counts == ({MAPS: 1} if named else {})
    assert len(list_images(tmp_path, "folder")) == 2


def test_photos_in_a_folder_named_labels_are_used(tmp_path):
    photos(tmp_path, "wine/1.jpg", "labels/2.jpg")
    assert len(list_images(tmp_path)) == 2


def test_hidden_files_are_no_masks(tmp_path):
    root = write_segments(tmp_path / "set", {"train": pictures(4), "val": pictures(2)})
    before = read_segments(root, "train").paths
    hide(root)
    assert read_segments(root, "train").paths == before


def test_hidden_files_are_no_scenes_of_cityscapes(tmp_path):
    root = write_cityscapes(tmp_path / "set", {"train": pictures(3)})
    before = read_segments(root, "train").paths
    hide(root)
    assert read_segments(root, "train").paths == before
    assert list_images(root) == sorted(before)


def test_hidden_folders_are_no_classes(tmp_path):
    root = photos(tmp_path, *(f"{split}/{name}/1.jpg" for split in ("train", "val") for name in ("cat", "dog")))
    hide(root)
    for split in read_class_folders(root).values():
        assert split.class_names == ("cat", "dog") and len(split.paths) == 2


def test_two_photos_of_one_mask_are_refused(tmp_path):
    root = write_segments(tmp_path / "set", {"train": pictures(4), "val": pictures(2)})
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(root / "train" / "images" / "001.png")
    problem = refusal(read_segments, root, "train").problem
    assert "001.jpg" in problem and "001.png" in problem


def test_masks_in_two_places_are_refused(tmp_path):
    root = write_segments(tmp_path / "set", {"train": pictures(4)})
    write_segments(root, {"train": pictures(4)}, split_first=False)
    problem = refusal(read_segments, root, "train", "masks").problem
    assert str(root / "train" / "masks") in problem and str(root / "masks" / "train") in problem


@pytest.mark.parametrize("kind", ["AVIF", "JPEG"])
def test_kind_follows_from_the_contents(kind):
    assert kind_of(encoded(picture(), kind)) == kind and kind_of(b"text") is None
