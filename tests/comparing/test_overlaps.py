"""Tests that a comparison counts the photos of each pre-training that are in val, once, and states them."""

import dataclasses
import json
import logging
import shutil

import pytest

from dupr_tf.comparing.grid import Backbone
from dupr_tf.comparing.outputs import write_outputs
from dupr_tf.comparing.overlaps import overlap_entries, overlap_sentences, with_overlaps
from dupr_tf.comparing.record import read_comparison, write_comparison
from dupr_tf.comparing.results import choose_rates, read_result
from dupr_tf.config import parse_config
from dupr_tf.data.images import hash_cache
from dupr_tf.training.pool import open_pool
from dupr_tf.training.run import record
from dupr_tf.training.run_images import images_entry
from tests.comparing.cells_by_hand import comparison
from tests.data.images.test_duplicates import photo, save


@pytest.fixture
def val(tmp_path):
    return [str(save(photo(seed), tmp_path / "val" / f"{seed}.jpg")) for seed in (10, 11)]


def pretrained(tmp_path, name, seeds, val=()):
    """Writes the record of a pre-training on photos of these seeds and copies of test images."""
    pool, run = tmp_path / f"photos_{name}", tmp_path / name
    for seed in seeds:
        save(photo(seed), pool / f"{seed}.jpg")
    for path in val:
        shutil.copy(path, pool)
    opened = open_pool(parse_config({}), pool)
    record(run, opened.config, images_entry(opened.config.data.root, opened.source), None)
    (run / "backbone.keras").touch()
    return run


@pytest.fixture
def made(tmp_path, val):
    """Returns a comparison of a clean run, two runs of which one has an image of val, and weights without a record."""
    clean = pretrained(tmp_path, "clean", range(3))
    copied = pretrained(tmp_path, "copied", range(3, 7), val[:1])
    (tmp_path / "export").mkdir()
    backbones = (
        Backbone("random", ("random",)),
        Backbone("clean", (str(clean / "backbone.keras"),)),
        Backbone("pair", (str(clean), str(copied))),
        Backbone("export", (str(tmp_path / "export"),)),
        Backbone("public", ("imagenet/resnet18",)),
    )
    return comparison(backbones=backbones)


def counts(one):
    return [(c.images, c.exact, c.near, bool(c.unknown)) for c in one.overlaps.values()]


def test_photos_of_val_are_counted_and_warned_of(made, val, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    counted = with_overlaps(made, val, tmp_path)
    assert counts(counted) == [(3, 0, 0, False), (3, 0, 0, False), (5, 1, 0, False), (0, 0, 0, True), (0, 0, 0, True)]
    lines = overlap_sentences(counted)
    assert len(lines) == 5 and {*lines[:2], *lines[3:]} <= set(caplog.messages)
    (warning,) = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
    assert lines[2] in warning
    assert "1 of 5" in lines[2] and "0 of 3" in lines[0]


def test_equal_overlaps_of_a_label_are_stated_once(made, val, tmp_path):
    backbones = list(made.backbones)
    clean = backbones[1].weights[0]
    shutil.copy(clean, tmp_path / "clean" / "again.keras")
    backbones[2] = Backbone("pair", (clean, str(tmp_path / "clean" / "again.keras")))
    counted = with_overlaps(dataclasses.replace(made, backbones=tuple(backbones)), val, tmp_path)
    assert "pair (each of 2 runs): 0 of 3 photos of its pre-training are in val." in overlap_sentences(counted)
    assert [entry["backbone"] for entry in overlap_entries(counted)][1:3] == ["pair (run 0)", "pair (run 1)"]


def test_overlaps_are_recorded_and_not_counted_again(made, val, tmp_path, monkeypatch):
    write_comparison(tmp_path / "out", with_overlaps(made, val, tmp_path))
    saved = read_comparison(tmp_path / "out")
    shutil.rmtree(tmp_path / "photos_copied")  # what an earlier call has counted stays known
    monkeypatch.setattr("dupr_tf.comparing.overlaps.overlap", None)
    again = with_overlaps(saved, val, tmp_path)
    assert again == saved and counts(again)[2] == (5, 1, 0, False)


def test_unknown_overlap_is_counted_once_it_can_be(made, val, tmp_path):
    before = with_overlaps(made, val, tmp_path)
    pretrained(tmp_path, "export", [20])
    assert counts(with_overlaps(before, val, tmp_path))[3] == (1, 0, 0, False) != counts(before)[3]


def test_val_is_hashed_once_for_all_calls(made, val, tmp_path, monkeypatch):
    with_overlaps(made, val, tmp_path)
    hashed = []
    real = hash_cache.hash_image
    monkeypatch.setattr(hash_cache, "hash_image", lambda *call: hashed.append(call[0].name(call[1])) or real(*call))
    more = pretrained(tmp_path, "more", [20])
    counted = with_overlaps(comparison(backbones=(Backbone("more", (str(more),)),), reference="more"), val, tmp_path)
    assert counts(counted) == [(1, 0, 0, False)] and hashed == [str(tmp_path / "photos_more" / "20.jpg")]


def test_overlaps_are_in_both_files(made, val, tmp_path):
    counted = with_overlaps(made, val, tmp_path)
    write_outputs(tmp_path / "out", counted, read_result(tmp_path, counted), choose_rates(tmp_path, counted))
    page = (tmp_path / "out" / "compare.md").read_text()
    assert all(f"* {sentence}" in page for sentence in overlap_sentences(counted))
    entries = json.loads((tmp_path / "out" / "compare.json").read_text())["overlaps"]
    assert [entry["exact"] for entry in entries] == [0, 0, 1, 0, 0]
    assert [entry["backbone"] for entry in entries] == ["clean", "pair (run 0)", "pair (run 1)", "export", "public"]
    assert entries[4]["weights"] == "imagenet/resnet18" and entries[4]["unknown"]
