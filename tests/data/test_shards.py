"""Shards as a source: the batches of the files they were packed from, damage never decoded, workers that share them."""

import hashlib
import json
import shutil

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from dupr_tf.config import parse_config
from dupr_tf.data import shards as module
from dupr_tf.data.bad_images import BadImages, check_readable
from dupr_tf.data.image_source import Files
from dupr_tf.data.images.listing import check_root, list_images
from dupr_tf.data.open_source import open_source
from dupr_tf.data.pack import PackSettings, pack
from dupr_tf.data.pipeline import WorkerRows, shuffled_index, view_pairs
from dupr_tf.data.shard_files import ENTRY, Shard, read_entries
from dupr_tf.data.shards import Shards, read_record, record_offsets
from tests.refusals import refusal

CONFIG = parse_config({"data": {"image_size": 32}, "train": {"batch_size": 8, "micro_batches": 1, "seed": 5}})
COUNT = 21


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photos")
    for i in range(COUNT):
        image = np.random.default_rng(i).integers(0, 255, (40 + i, 60, 3), np.uint8)
        Image.fromarray(image).save(folder / f"ü {i:02d}.{'jpg' if i % 3 else 'png'}")
    return folder


@pytest.fixture
def packed(photos, tmp_path):
    pack(photos, tmp_path / "shards", PackSettings(images_per_shard=8, shuffle=False), workers=2)
    return tmp_path / "shards"


def batches(source, first=0, last=4, bad=None, worker=(0, 1)):
    bad = bad or BadImages(source, 0.5)
    return [{k: v.numpy() for k, v in batch.items()} for batch in view_pairs(source, CONFIG, first, last, bad, worker)]


def assert_equal(ours, theirs):
    assert len(ours) == len(theirs)
    for a, b in zip(ours, theirs, strict=True):
        assert a.keys() == b.keys()
        for name in a:
            np.testing.assert_array_equal(a[name], b[name], err_msg=name)


def test_batches_are_those_of_the_files_bit_for_bit_and_after_a_resume(photos, packed):
    whole = batches(list_images(photos))
    assert_equal(batches(Shards(packed)), whole)
    assert_equal(batches(open_source(packed)[1], first=3), whole[3:])


def test_every_image_is_read_by_number_under_its_name(photos, packed, monkeypatch):
    monkeypatch.setattr(module, "KEPT_OPEN", 1)  # as with more shards than files that may be open
    files, source = Files(list_images(photos)), Shards(packed)
    assert len(source) == len(files) == COUNT
    for i in (0, 7, 8, 20):
        assert source.read(tf.constant(i, tf.int64)).numpy() == files.read(i).numpy()
        assert source.name(i) == f"ü {i:02d}.{'jpg' if i % 3 else 'png'} (record {i % 8} of {source.files[i // 8]})"
    block = source.read_block(tf.constant([20, 3, 8, 3], tf.int64)).numpy()
    assert block.tolist() == [files.read(i).numpy() for i in (20, 3, 8, 3)]


def flip(path, place, bit=1):
    content = bytearray(path.read_bytes())
    content[place] ^= bit
    path.write_bytes(content)


def test_a_flipped_bit_of_an_image_is_never_decoded_and_told_with_its_shard(photos, packed, caplog):
    source, whole = Shards(packed), batches(list_images(photos))
    row = source.entries[10]
    rng = np.random.default_rng(0)
    content = source.read(tf.constant(10, tf.int64)).numpy()
    for _ in range(50):
        place, bit = int(rng.integers(row["length"])), 1 << int(rng.integers(8))
        flip(packed / "shard-00001.tfrecord", int(row["record"]) + int(row["start"]) + place, bit)
        assert source.read(tf.constant(10, tf.int64)).numpy() == b""
        flip(packed / "shard-00001.tfrecord", int(row["record"]) + int(row["start"]) + place, bit)
    assert source.read(tf.constant(10, tf.int64)).numpy() == content
    flip(packed / "shard-00001.tfrecord", int(row["record"]) + int(row["start"]) + 300)
    bad = BadImages(source, 0.5)
    found = batches(source, bad=bad)
    assert list(bad.found) == [10]
    assert "record 2 of" in caplog.text and "shard-00001.tfrecord, which is damaged" in caplog.text
    for ours, theirs in zip(found, whole, strict=True):
        kept = theirs["index"] != 10
        assert 10 not in ours["index"]
        for name in ours:
            np.testing.assert_array_equal(ours[name][kept], theirs[name][kept], err_msg=name)
    check_readable(source, bad)  # reads all 21: the one is within the budget of a half


def test_a_shard_that_vanishes_counts_as_unreadable_images(packed):
    source = Shards(packed)
    (packed / "shard-00002.tfrecord").unlink()
    assert source.read(tf.constant(20, tf.int64)).numpy() == b""
    assert source.read(tf.constant(2, tf.int64)).numpy() != b""


@pytest.mark.parametrize(("name", "change"), [
    ("shards.json", lambda p: flip(p, 100)),
    ("shards.json", lambda p: p.write_text("{}")),
    ("shards.json", lambda p: p.write_text("[1")),
    ("shard-00001.index.npy", lambda p: flip(p, -3)),
    ("shard-00001.index.npy", lambda p: p.unlink()),
    ("shard-00002.tfrecord", lambda p: p.unlink()),
    ("shard-00002.tfrecord", lambda p: p.write_bytes(p.read_bytes()[:-1])),
])  # fmt: skip
def test_damaged_shards_are_refused_by_name_before_a_run(packed, name, change):
    change(packed / name)
    assert str(packed / name) in refusal(open_source, packed).problem


def test_a_folder_of_shards_is_found_and_an_unfinished_one_refused(packed, tmp_path):
    assert open_source(packed)[0] == str(packed)
    check_root(packed)
    shutil.move(packed / "shards.json", packed / "pack.jsonl")
    for opening in (check_root, open_source):
        assert "not ended" in refusal(opening, packed).problem
    assert "shards.json" in refusal(check_root, tmp_path, "tfrecord").problem


def test_records_are_found_by_their_lengths_alone_and_read_with_their_checksums(packed):
    path = packed / "shard-00000.tfrecord"
    offsets = record_offsets(path)
    assert offsets == Shards(packed).entries["record"][:8].tolist()
    expected = list(tf.data.TFRecordDataset(str(path)).as_numpy_iterator())
    assert [read_record(str(path), offset).numpy() for offset in offsets] == expected
    flip(path, offsets[3] + 50)
    with pytest.raises(tf.errors.DataLossError):
        read_record(str(path), offsets[3])
    path.write_bytes(path.read_bytes()[:-1])
    assert str(path) in refusal(record_offsets, path).problem


@pytest.mark.parametrize("shards", [1000, 10])
def test_the_index_of_a_million_images_takes_20_megabytes(tmp_path, shards):
    each = 1_000_000 // shards
    entries = np.zeros(each, ENTRY)
    np.save(tmp_path / "index.npy", entries)
    digest = hashlib.sha256((tmp_path / "index.npy").read_bytes()).hexdigest()
    listed = [Shard(number, each, 0, "", digest) for number in range(shards)]
    for shard in listed:
        (tmp_path / shard.file).touch()
        (tmp_path / shard.index).symlink_to("index.npy")
    assert read_entries(tmp_path, listed).nbytes == 20_000_000


def test_an_order_drawn_for_a_block_is_that_of_its_numbers_and_of_tensorflow():
    places = np.arange(300) % 101
    block = shuffled_index(tf.constant(places), 101, 7, tf.constant(np.arange(300) // 101)).numpy()
    for i in range(0, 300, 13):
        assert shuffled_index(places[i], 101, 7, i // 101) == block[i]
        key = tf.constant([7, i // 101], tf.int64)
        assert (
            tf.random.experimental.index_shuffle(tf.constant(places[i], tf.int64), key, tf.constant(100, tf.int64))
            == (block[i])
        )


def test_workers_read_their_rows_of_each_batch_no_others_and_every_image_once_an_epoch(packed):
    source, read = Shards(packed), []
    plain = source.contents
    source.contents = lambda indices: read.extend(indices.tolist()) or plain(indices)
    whole, parts = batches(source, 0, 4), []
    for worker in range(2):
        read.clear()
        parts.append(batches(source, 0, 4, worker=(worker, 2)))
        own = np.concatenate([batch["index"] for batch in parts[worker]])
        assert len(own) == 16 and sorted(read) == sorted(own)
    joined = [{k: np.concatenate([part[step][k] for part in parts]) for k in whole[0]} for step in range(4)]
    assert_equal(joined, whole)
    for epoch in range(2):  # of 21 images, 16 are shown in two steps of 8; the next epoch starts anew
        shown = np.concatenate([whole[2 * epoch + step]["index"] for step in range(2)])
        order = shuffled_index(np.arange(16), COUNT, CONFIG.train.seed, np.full(16, epoch)).numpy()
        assert shown.tolist() == order.tolist() and len(set(shown.tolist())) == 16
    assert_equal(batches(source, 3, 4, worker=(1, 2)), parts[1][3:])  # a worker resumes


@pytest.mark.parametrize("worker", [(0, 3), (2, 2), (-1, 2)])
def test_workers_that_do_not_share_a_batch_evenly_are_refused(worker):
    assert refusal(WorkerRows, 8, *worker).field == "train.batch_size"


def test_a_manifest_of_another_program_is_no_shards(tmp_path):
    (tmp_path / "manifest.json").write_text(json.dumps({"files": {}}))
    assert str(tmp_path) in refusal(open_source, tmp_path).problem


def forged(packed, entries=None, images=None):
    """Shards whose manifest and indices agree, and were not written by `pack`."""
    manifest = json.loads((packed / "shards.json").read_text())
    del manifest["sha256"]
    if entries is not None:
        np.save(packed / "shard-00001.index.npy", entries, allow_pickle=True)
        content = (packed / "shard-00001.index.npy").read_bytes()
        manifest["shards"][1]["index_sha256"] = hashlib.sha256(content).hexdigest()
    if images is not None:
        manifest["shards"][1]["images"] = images
    digest = hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()
    (packed / "shards.json").write_text(json.dumps({**manifest, "sha256": digest}))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"entries": np.array([print] * 8, object)}, "no index"),
        ({"entries": np.zeros(8)}, "no index"),
        ({"entries": np.full(8, 2**32 - 1, np.uint32).astype(ENTRY)}, "beyond"),
        ({"images": 10**12}, "1,000,000,000,000 images"),
        ({"images": -1}, "-1 images"),
    ],
)
def test_forged_shards_are_refused_before_they_cost_anything(packed, change, reason):
    forged(packed, **change)
    problem = refusal(Shards, packed).problem
    assert "shard-00001.index.npy" in problem and reason in problem
