"""Tests of test images: which images of a root are taken, and the cache of their hashes."""

import os
import shutil

import numpy as np
import pytest

from dupr_tf.data.images import hash_cache
from dupr_tf.data.images.hash_cache import HashCache
from dupr_tf.data.images.listing import list_images
from dupr_tf.data.images.overlap import check_val, hash_val, open_val
from dupr_tf.data.images.source import Files, Subset
from tests.data.images.test_duplicates import photo, save
from tests.label_formats import SPLITS, write_downloaded_coco, write_roboflow
from tests.labelled_scenes import write_voc
from tests.refusals import refusal


@pytest.fixture
def photos(tmp_path):
    for seed in range(4):
        save(photo(seed), tmp_path / "photos" / f"{seed}.jpg")
    (tmp_path / "photos" / "text.jpg").write_text("text")
    return Files(list_images(tmp_path / "photos"))


@pytest.fixture
def decoded(monkeypatch):
    """Returns the numbers of the images that are decoded."""
    numbers, hash_image = [], hash_cache.hash_image
    monkeypatch.setattr(hash_cache, "hash_image", lambda s, n, most: (numbers.append(n), hash_image(s, n, most))[1])
    return numbers


def test_kept_hashes_are_not_computed_again(photos, tmp_path, decoded):
    first = HashCache(tmp_path / "h", threads=1).hashes(photos)
    assert decoded == [0, 1, 2, 3, 4] and first.index.tolist() == [0, 1, 2, 3]
    assert [number for number, _ in first.unreadable] == [4]
    save(photo(9), tmp_path / "photos" / "2.jpg")
    decoded.clear()
    second = HashCache(tmp_path / "h", threads=1).hashes(photos)
    assert decoded == [2, 4]  # the changed one, and the one that could not be read
    same = [True, True, False, True]
    assert (first.exact == second.exact).tolist() == same and (first.near == second.near).tolist() == same
    fresh = HashCache(None, threads=1).hashes(photos)
    assert (fresh.exact == second.exact).all() and (fresh.near == second.near).all()


def test_hashes_of_equal_names_in_two_folders_are_kept_apart(photos, tmp_path, decoded):
    shutil.copytree(tmp_path / "photos", tmp_path / "other")  # keeps the times
    os.replace(tmp_path / "other" / "0.jpg", tmp_path / "other" / "1.jpg")
    other = Files(list_images(tmp_path / "other"))
    cache = HashCache(tmp_path / "h", threads=1)
    hashes = cache.hashes(photos), cache.hashes(other)
    assert len(decoded) == 5 + 4
    assert (hashes[1].exact == hashes[0].exact[[0, 2, 3]]).all()


@pytest.mark.parametrize(
    "change", [lambda b: b[:-1], lambda b: b[:-1] + bytes([b[-1] ^ 1]), lambda b: b"[" * 99999, lambda b: b""]
)
def test_damaged_file_of_hashes_is_computed_again(photos, tmp_path, decoded, change):
    path = tmp_path / "h"
    before = HashCache(path, threads=1).hashes(photos)
    content = path.read_bytes()
    path.write_bytes(change(content))
    after = HashCache(path, threads=1).hashes(photos)
    assert len(decoded) == 10 and (before.near == after.near).all()
    assert path.read_bytes() == content


def test_another_limit_of_pixels_is_hashed_again(photos, tmp_path):
    HashCache(tmp_path / "h").hashes(photos)
    assert len(HashCache(tmp_path / "h", max_pixels=100).hashes(photos).index) == 0


def test_hashes_are_saved_while_they_are_computed(photos, tmp_path, monkeypatch, decoded):
    monkeypatch.setattr(hash_cache, "SAVE_EVERY", 0.0)

    def fail(source, number, most):
        raise KeyboardInterrupt if number == 3 else AssertionError

    real = hash_cache.hash_image
    monkeypatch.setattr(hash_cache, "hash_image", lambda s, n, m: real(s, n, m) if n < 3 else fail(s, n, m))
    monkeypatch.setattr(hash_cache, "map_in_order", lambda work, items, workers: map(work, items))
    with pytest.raises(KeyboardInterrupt):
        HashCache(tmp_path / "h").hashes(photos)
    assert len(HashCache(tmp_path / "h").entries) == 3


def test_unwritable_place_for_hashes_does_not_end_the_run(photos, tmp_path):
    (tmp_path / "file").write_text("")
    assert len(HashCache(tmp_path / "file" / "h").hashes(photos).index) == 4


def test_subset_reads_and_identifies_its_images(photos, tmp_path, decoded):
    part = Subset(photos, np.array([1, 3]))
    assert len(part) == 2 and part.name(1) == photos.name(3) and part.read(0) == photos.read(1)
    assert len({part.digest("/"), Subset(photos, np.array([1, 2])).digest("/"), photos.digest("/")}) == 3
    assert Subset(photos, np.array([1])).digest("/") != Subset(Files(photos.paths[:2]), np.array([1])).digest("/")
    cache = HashCache(tmp_path / "h")
    whole = cache.hashes(photos)
    decoded.clear()
    assert (cache.hashes(part).exact == whole.exact[[1, 3]]).all() and decoded == []


@pytest.mark.parametrize("write", [write_downloaded_coco, write_roboflow, write_voc])
def test_split_val_of_labelled_data_is_taken(tmp_path, write):
    root = tmp_path / "set"
    write(root, SPLITS)
    assert len(open_val(root)) == len(SPLITS["val"])
    check_val(root, root)  # a pool may be the root of its own val


def test_all_images_of_other_roots_are_taken(photos, tmp_path):
    assert len(open_val(tmp_path / "photos")) == 5


def test_labels_without_a_split_val_are_refused(tmp_path):
    write_downloaded_coco(tmp_path / "set", {"train": SPLITS["train"]})
    assert "instances_train2017.json" in refusal(open_val, tmp_path / "set").problem
    (tmp_path / "set").rename(tmp_path / "photos")
    assert len(open_val(tmp_path / "photos" / "train2017")) == len(SPLITS["train"])


def test_missing_empty_unreadable_and_equal_roots_are_refused(photos, tmp_path):
    (tmp_path / "empty").mkdir()
    for root in ("none", "empty"):
        refusal(check_val, tmp_path / root)
        refusal(open_val, tmp_path / root)
    (tmp_path / "link").symlink_to(tmp_path / "photos")
    refusal(check_val, tmp_path / "link", tmp_path / "photos")
    refusal(hash_val, [photos.select(np.array([4]))], HashCache(None))


def test_digest_of_test_images_ignores_names_and_order(photos, tmp_path):
    cache = HashCache(None)
    halves = [photos.select(np.array(numbers)) for numbers in ([3, 2], [1, 0])]
    digests = {hash_val(sources, cache).digest for sources in ([photos], halves, halves[::-1])}
    assert len(digests) == 1 and hash_val(halves[:1], cache).digest not in digests
    assert hash_val(halves, cache).name(2) == photos.name(1)
