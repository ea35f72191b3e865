"""Tests of shards as a source: packed bytes are returned by threads and processes, and damage is noticed."""

import json
import multiprocessing
import os
import pickle
import shutil
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image

from dupr_tf.config import parse_config
from dupr_tf.data.images.bad_images import BadImages
from dupr_tf.data.images.decode import Unusable
from dupr_tf.data.images.listing import check_root, list_images, resolved_kind
from dupr_tf.data.images.source import Files
from dupr_tf.data.pipeline import view_pairs
from dupr_tf.data.shards import read as module
from dupr_tf.data.shards.index import find_damage, list_names, seal
from dupr_tf.data.shards.pack import PackSettings, pack
from dupr_tf.data.shards.read import ShardSource, open_shards
from tests.refusals import refusal

COUNT = 21


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photos")
    for i in range(COUNT):
        image = np.random.default_rng(i).integers(0, 255, (40 + i, 60, 3), np.uint8)
        Image.fromarray(image).save(folder / f"ü {i:02d}.{'jpg' if i % 3 else 'png'}")
    return folder


@pytest.fixture(scope="module")
def expected(photos):
    files = Files(list_images(photos))
    return [files.read(i) for i in range(COUNT)]


@pytest.fixture(scope="module")
def original(photos, tmp_path_factory):
    folder = tmp_path_factory.mktemp("packed") / "shards"
    pack(photos, folder, PackSettings(images_per_shard=8, shuffle=False), workers=2)
    return folder


@pytest.fixture
def packed(original, tmp_path):
    return shutil.copytree(original, tmp_path / "shards")


def read_all(source):
    return [source.read(i) for i in range(len(source))]


def batches(source, first=0, bad=None, **data):
    settings = {"data": {"image_size": 32, **data}, "train": {"batch_size": 8, "micro_batches": 1, "seed": 5}}
    bad = bad or BadImages(source, 0.0)
    with view_pairs(source, parse_config(settings), first, 4, bad) as reader:
        return list(reader)


def assert_equal(ours, theirs, rows=slice(None)):
    assert len(ours) == len(theirs)
    for a, b in zip(ours, theirs, strict=True):
        kept = rows(b) if callable(rows) else rows
        assert a.keys() == b.keys()
        for name in a:
            np.testing.assert_array_equal(a[name][kept], b[name][kept], err_msg=name)


@pytest.mark.parametrize("processes", [0, 1])
def test_batches_equal_those_of_files_also_after_resume(photos, packed, processes):
    whole = batches(Files(list_images(photos)))
    assert_equal(batches(ShardSource(packed), processes=processes), whole)
    assert_equal(batches(ShardSource(packed), 3), whole[3:])


def test_damaged_image_is_replaced_and_no_other_row_changes(photos, packed, expected, caplog):
    path = packed / "shard-00001.array_record"
    flip(path, path.read_bytes().index(expected[10]) + 300)
    source, whole = ShardSource(packed), batches(Files(list_images(photos)))
    bad = BadImages(source, 0.1)
    found = batches(source, bad=bad)
    assert list(bad.reason_of) == [10] and bad.reason_of[10].startswith("damaged: ")
    assert "ü 10.jpg (record 2 of" in caplog.text
    assert all(10 not in batch["index"] for batch in found)
    assert_equal(found, whole, rows=lambda batch: batch["index"] != 10)


def flip(path, place, bit=1):
    content = bytearray(path.read_bytes())
    content[place] ^= bit
    path.write_bytes(content)


@pytest.mark.parametrize("most_open", [module.MOST_OPEN, 1])
def test_source_reads_every_image_by_number_and_names_it(packed, expected, monkeypatch, most_open):
    monkeypatch.setattr(module, "MOST_OPEN", most_open)
    source = ShardSource(packed)
    before = len(os.listdir("/proc/self/fd")) if sys.platform == "linux" else None
    assert read_all(source) == expected
    assert before is None or len(os.listdir("/proc/self/fd")) <= before  # files beyond the limit are closed
    for i in (0, 7, 8, 20, 3):
        file = packed / f"shard-{i // 8:05d}.array_record"
        assert source.name(i) == f"ü {i:02d}.{'jpg' if i % 3 else 'png'} (record {i % 8} of {file})"
    assert list(list_names(packed)) == [f"ü {i:02d}.{'jpg' if i % 3 else 'png'}" for i in range(COUNT)]


def test_threads_share_a_source(packed, expected):
    source = ShardSource(packed)
    numbers = np.random.default_rng(0).integers(0, COUNT, 4000).tolist()
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(source.read, numbers)) == [expected[i] for i in numbers]


def test_source_pickles_small_and_reads_in_a_new_process(packed, expected):
    source = ShardSource(packed)
    assert source.read(3) == expected[3] and source.name(3)
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        assert pool.map(source.read, range(COUNT)) == expected
    assert len(pickle.dumps(source)) < 2000


def test_digest_does_not_depend_on_the_folder(packed, original, photos, tmp_path):
    digest = ShardSource(packed).digest("")
    assert ShardSource(original).digest("elsewhere") == digest
    pack(photos, tmp_path / "other", PackSettings(images_per_shard=8))
    assert ShardSource(tmp_path / "other").digest("") != digest


def test_flipped_bits_are_noticed_and_other_images_stay(packed, expected):
    path = packed / "shard-00001.array_record"
    first, source, rng = path.read_bytes().index(expected[10]), ShardSource(packed), np.random.default_rng(0)
    for _ in range(60):
        place, bit = first + int(rng.integers(len(expected[10]))), 1 << int(rng.integers(8))
        flip(path, place, bit)
        with pytest.raises(Unusable, match=r"^damaged: "):
            source.read(10)
        assert source.read(9) == expected[9]
        flip(path, place, bit)
    assert read_all(source) == expected


def test_flipped_bit_anywhere_in_a_shard_is_noticed(packed, expected):
    """Reading returns the packed bytes or refuses; `find_damage` refuses."""
    path, rng, refused = packed / "shard-00002.array_record", np.random.default_rng(0), 0
    structure = [i for i, byte in enumerate(path.read_bytes()) if byte]
    for place in [*rng.choice(structure, 40).tolist(), *structure[-40:], *structure[:10]]:
        flip(path, place, 4)
        try:
            source = ShardSource(packed)
        except ValueError:
            refused += 1
        else:
            for i in range(16, COUNT):
                try:
                    assert source.read(i) == expected[i]
                except Unusable:
                    refused += 1
        assert [wrong is None for wrong in find_damage(packed)] == [True, True, False]
        flip(path, place, 4)
    assert refused > 60


def test_images_of_a_shard_deleted_in_a_run_are_unusable(packed, monkeypatch):
    monkeypatch.setattr(module, "MOST_OPEN", 0)
    source = ShardSource(packed)
    (packed / "shard-00002.array_record").unlink()
    (packed / "shard-00002.jsonl").unlink()
    with pytest.raises(Unusable):
        source.read(20)
    assert source.name(20) == f"record 4 of {packed / 'shard-00002.array_record'}"
    assert source.read(2)


@pytest.mark.parametrize(("name", "change"), [
    ("shards.json", lambda p: flip(p, 100)),
    ("shards.json", lambda p: p.write_text("{}")),
    ("shards.json", lambda p: p.write_text("[1")),
    ("shards.json", lambda p: p.write_text("[" * 100_000)),
    ("shards.json", lambda p: p.write_bytes(seal({"format": "another", "shards": []})[0])),
    ("shard-00001.jsonl", lambda p: flip(p, -3)),
    ("shard-00001.jsonl", lambda p: flip(p, 20)),
    ("shard-00001.jsonl", lambda p: p.unlink()),
    ("shard-00001.jsonl", lambda p: shutil.copy(p.with_name("shard-00000.jsonl"), p)),
    ("shard-00002.array_record", lambda p: p.unlink()),
    ("shard-00002.array_record", lambda p: p.write_bytes(p.read_bytes()[:-1])),
    ("shard-00001.array_record", lambda p: p.write_bytes(bytes(p.stat().st_size))),
])  # fmt: skip
def test_damaged_shards_are_refused_by_name_when_opened(packed, name, change):
    change(packed / name)
    assert str(packed / name) in refusal(open_shards, packed).problem


def test_folder_of_shards_is_recognised_and_refused_if_partial(packed, tmp_path):
    assert open_shards(packed)[0] == str(packed)
    check_root(packed)
    assert resolved_kind(packed) == "shards"
    shutil.move(packed / "shards.json", packed / "pack.json")
    assert resolved_kind(packed) == "shards"
    for opening in (check_root, open_shards):
        refusal(opening, packed)
    assert "shards.json" in refusal(check_root, tmp_path, "shards").problem


def test_old_shards_and_missing_array_record_are_refused(packed, monkeypatch):
    error = refusal(parse_config, {"data": {"kind": "tfrecord"}})
    assert error.field == "data.kind" and "shards" in error.fix
    monkeypatch.setitem(sys.modules, "array_record.python", None)
    assert "array_record" in refusal(open_shards, packed).problem


def forge(packed, **changes):
    """Seals a manifest again after a change to the second shard."""
    facts = json.loads((packed / "shards.json").read_text())
    del facts["seal"]
    facts["shards"][1] |= changes
    (packed / "shards.json").write_bytes(seal(facts)[0])


@pytest.mark.parametrize("changes", [
    {"images": 10**6},
    {"images": 10**12},
    {"images": -1},
    {"images": 7},
    {"images": 8.0},
    {"bytes": 10**30},
    {"more": 1},
    {"seal": "0"},
])  # fmt: skip
def test_forged_manifests_are_refused(packed, changes):
    forge(packed, **changes)
    refusal(ShardSource, packed)


def test_forged_names_are_refused_with_a_printable_message(packed):
    sealed, digest = seal({}, b"[5, 1, 1]\n" * 8)
    (packed / "shard-00001.jsonl").write_bytes(sealed)
    forge(packed, seal=digest)
    refusal(list, list_names(packed))
    assert ShardSource(packed).name(9).startswith("record 1 of")
