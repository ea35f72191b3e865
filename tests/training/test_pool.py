"""Tests of a run's pool: duplicates of test images are left out, recorded, and the same on every start."""

import json
import shutil

import numpy as np
import pytest

from dupr_tf.config import parse_config
from dupr_tf.data.images.overlap import open_val
from dupr_tf.data.shards.pack import PackSettings, pack
from dupr_tf.reporting.folders import read_folders
from dupr_tf.training.pool import exclusion_changes, open_pool, overlap, read_exclusion, recorded_pool
from dupr_tf.training.run import check, record
from dupr_tf.training.run_images import images_entry
from dupr_tf.training.worker_facts import image_facts
from tests.data.images.test_duplicates import photo, save
from tests.refusals import refusal

CONFIG = parse_config({"train": {"epochs": 1}})
COPIES = {"3 [a]\n.jpg", "sub/4.jpg", "small.jpg"}  # in the pool: two files of val, and one in another size


@pytest.fixture
def folders(tmp_path):
    """Returns a pool of 9 photos of which three are in val, and val with 4 photos."""
    pool, val = tmp_path / "pool", tmp_path / "val"
    for seed in range(6):
        save(photo(seed), pool / f"{seed}.jpg")
    for seed in range(10, 14):
        save(photo(seed), val / f"{seed}.jpg", quality=95)
    (pool / "sub").mkdir()
    shutil.copy(val / "10.jpg", pool / "3 [a]\n.jpg")
    shutil.copy(val / "11.jpg", pool / "sub" / "4.jpg")
    save(photo(12).resize((200, 150)), pool / "small.jpg", quality=80)
    return pool, val


def start(run, pool, *exclude, config=CONFIG):
    """Opens the pool and records the run, as `pretrain` does."""
    opened = open_pool(config, pool, exclude, run)
    record(run, opened.config, images_entry(opened.config.data.root, opened.source), None, opened.files())
    return opened


def names(source):
    return [source.name(i) for i in range(len(source))]


def differences(run, opened):
    """Returns the fields of the differences between a run and an opened pool."""
    images = images_entry(opened.config.data.root, opened.source)
    return [e.field for e in check(run, opened.config, images, True, exclusion_changes(run, opened.exclusion))]


def test_exact_and_near_duplicates_are_left_out_and_recorded(folders, tmp_path):
    pool, val = folders
    opened = start(tmp_path / "run", pool, val)
    assert names(opened.source) == [str(pool / f"{seed}.jpg") for seed in range(6)]
    saved = read_exclusion(tmp_path / "run")
    assert saved == opened.exclusion
    assert (saved.images, saved.val_images, saved.exact, saved.near) == (9, 4, 2, 1)
    rows = [line.split("\t") for line in (tmp_path / "run" / "excluded.tsv").read_text().splitlines()]
    assert len(rows) == 4 and {len(row) for row in rows} == {4}
    assert {row[3].rpartition("/")[2] for row in rows[1:]} == {"10.jpg", "11.jpg", "12.jpg"}


def test_unreadable_images_do_not_shift_those_left_out(folders, tmp_path):
    pool, val = folders
    (pool / "0.jpg").write_text("text")
    (val / "0.jpg").write_text("text")
    opened = open_pool(CONFIG, pool, [val])
    assert names(opened.source) == [str(pool / f"{seed}.jpg") for seed in range(6)]
    assert opened.exclusion.val_images == 4


def test_resumed_run_has_the_same_pool_and_decodes_nothing(folders, tmp_path, monkeypatch):
    pool, val = folders
    run = tmp_path / "run"
    first = start(run, pool, val)
    monkeypatch.setattr("dupr_tf.data.images.hash_cache.hash_image", None)
    for exclude in ([val], []):  # the record names val
        again = open_pool(CONFIG, pool, exclude, run)
        assert names(again.source) == names(first.source) and differences(run, again) == []
        assert again.files() == first.files()


def test_moved_and_renamed_test_images_are_no_change(folders, tmp_path):
    pool, val = folders
    first = start(tmp_path / "run", pool, val)
    shutil.copytree(val, tmp_path / "moved", copy_function=shutil.copyfile)
    (tmp_path / "moved" / "10.jpg").rename(tmp_path / "moved" / "x.jpg")
    again = open_pool(CONFIG, pool, [tmp_path / "moved"], tmp_path / "run")
    assert names(again.source) == names(first.source) and differences(tmp_path / "run", again) == []


def test_changed_test_images_are_noticed(folders, tmp_path):
    pool, val = folders
    run = tmp_path / "run"
    start(run, pool, val)
    save(photo(50), val / "new.jpg")  # in no pool
    changed = open_pool(CONFIG, pool, [], run)
    assert differences(run, changed) == ["--exclude"]
    images = images_entry(changed.config.data.root, changed.source)
    refusal(check, run, changed.config, images, False, exclusion_changes(run, changed.exclusion))
    shutil.copy(pool / "5.jpg", val / "5.jpg")
    assert differences(run, open_pool(CONFIG, pool, [], run)) == ["--exclude", "data.root"]


def test_exclude_cannot_be_added_to_a_run(folders, tmp_path):
    pool, val = folders
    run = tmp_path / "run"
    plain = start(run, pool)
    assert plain.exclusion is None and len(plain.source) == 9 and not (run / "excluded.json").exists()
    assert "--exclude" in differences(run, open_pool(CONFIG, pool, [val], run))


def test_shards_lose_the_same_images_as_their_files(folders, tmp_path):
    pool, val = folders
    pack(pool, tmp_path / "shards", PackSettings(images_per_shard=4, shuffle=False))
    opened = start(tmp_path / "run", tmp_path / "shards", val)
    files = start(tmp_path / "other", pool, val)
    assert [opened.source.read(i) for i in range(6)] == [files.source.read(i) for i in range(6)]
    assert "small.jpg" in (tmp_path / "run" / "excluded.tsv").read_text()
    _, again = recorded_pool(tmp_path / "run", opened.config)
    assert names(again) == names(opened.source)
    pack(pool, tmp_path / "shuffled", PackSettings(images_per_shard=4))
    assert differences(tmp_path / "run", open_pool(CONFIG, tmp_path / "shuffled", [], tmp_path / "run"))


def test_workers_with_copies_of_the_images_agree(folders, tmp_path):
    pool, val = folders
    chief = open_pool(CONFIG, pool, [val], tmp_path / "run")
    shutil.copytree(tmp_path / "pool", tmp_path / "copy", copy_function=shutil.copyfile)
    other = open_pool(CONFIG, tmp_path / "copy", [val], tmp_path / "run", worker=1)
    assert image_facts(chief) == image_facts(other)
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == ["hashes-1.bin", "hashes.bin"]
    assert image_facts(open_pool(CONFIG, pool, [pool / "sub"])) != image_facts(chief)


def test_pool_may_contain_the_test_images_but_not_be_among_them(folders, tmp_path):
    pool, val = folders
    assert len(open_pool(CONFIG, tmp_path, [val, pool / "sub"]).source) == 6
    for exclude in (tmp_path, pool):
        assert refusal(open_pool, CONFIG, pool, [exclude]).field == "--exclude"
    assert refusal(open_pool, CONFIG, pool, [tmp_path / "none"]).field == "--exclude"


@pytest.mark.parametrize("change", [
    {"images": 1e999}, {"exact": -1}, {"distance": 99}, {"roots": "val"}, {"sha256": None}, "[" * 100_000, "{}",
])  # fmt: skip
def test_damaged_record_is_one_error_and_a_note_in_the_report(folders, tmp_path, change):
    start(tmp_path / "run", *folders)
    path = tmp_path / "run" / "excluded.json"
    path.write_text(change if isinstance(change, str) else json.dumps(json.loads(path.read_text()) | change))
    assert str(path) in refusal(read_exclusion, tmp_path / "run").problem
    (folder,) = read_folders([tmp_path / "run"])
    assert folder.excluded is None and any("excluded.json" in note for note in folder.notes)


def test_report_reads_the_record(folders, tmp_path):
    start(tmp_path / "run", *folders)
    (folder,) = read_folders([tmp_path / "run"])
    assert folder.excluded.left_out == 3 and folder.notes == [
        "There is no metrics.jsonl to draw curves from (No such file or directory)."
    ]


def test_overlap_counts_duplicates_in_the_pool_of_a_run(folders, tmp_path):
    pool, val = folders
    start(tmp_path / "plain", pool)
    start(tmp_path / "clean", pool, val)
    found = overlap(tmp_path / "plain", open_val(val))
    assert (found.images, found.val_images, found.exact, found.near, found.unknown) == (9, 4, 2, 1, "")
    found = overlap(tmp_path / "clean", open_val(val))
    assert (found.images, found.exact, found.near, found.unknown) == (6, 0, 0, "")
    found = overlap(tmp_path / "clean", [str(pool / "5.jpg")], cache=tmp_path / "hashes")
    assert (found.val_images, found.exact) == (1, 1) and (tmp_path / "hashes").exists()


def test_overlap_is_unknown_if_the_images_are_gone_or_changed(folders, tmp_path):
    pool, val = folders
    for name, exclude in {"plain": [], "clean": [val]}.items():
        start(tmp_path / name, pool, *exclude)
    (pool / "5.jpg").write_bytes(b"other")
    for name in ("plain", "clean"):
        assert "5.jpg" in overlap(tmp_path / name, open_val(val)).unknown
    (pool / "5.jpg").unlink()
    assert all(overlap(tmp_path / name, open_val(val)).unknown for name in ("plain", "clean"))
    pool.rename(tmp_path / "away")
    assert all(str(pool) in overlap(tmp_path / name, open_val(val)).unknown for name in ("plain", "clean"))
    assert overlap(tmp_path / "none", open_val(val)).unknown


@pytest.mark.parametrize("content", ["", "number\n1\n", "number\n1\nx\n3\n", "number\n1\n2\n99\n"])
def test_damaged_list_of_excluded_images_is_refused(folders, tmp_path, content):
    opened = start(tmp_path / "run", *folders)
    (tmp_path / "run" / "excluded.tsv").write_text(content)
    refusal(recorded_pool, tmp_path / "run", opened.config)
    assert np.all(overlap(tmp_path / "run", open_val(folders[1])).unknown)
