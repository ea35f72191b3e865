"""Tests that each odd image has one outcome, the same in training and in a run's list."""

import os
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image

from dupr_tf.config import parse_config
from dupr_tf.data.images import bad_images
from dupr_tf.data.images.bad_images import (
    FLAGS,
    BadImages,
    advice,
    check_photos,
    check_readable,
    count_reasons,
    further_images,
    read_list,
    unusable_reason,
    warn_of_few_levels,
)
from dupr_tf.data.images.listing import list_images
from dupr_tf.data.pipeline import view_pairs
from dupr_tf.text import escape
from tests.data.bad_images import SKIPPED, USED, files, write_bad_images
from tests.refusals import refusal

FILES = files()
CONFIG = parse_config({
    "data": {"image_size": 32}, "views": {"min_overlap": 8}, "train": {"batch_size": 16, "micro_batches": 1},
})  # fmt: skip


@pytest.fixture(scope="module")
def bad_set(tmp_path_factory):
    """(folder, {path: (outcome, reason)})"""
    folder = tmp_path_factory.mktemp("bad")
    return folder, write_bad_images(folder)


def state_of(folder):
    """Returns content size and times of every file, including links and folders."""
    return {path: (os.lstat(path).st_size, os.lstat(path).st_mtime_ns) for path in sorted(folder.rglob("*"))}


def test_listing_omits_pipes_folders_and_links_to_folders(bad_set):
    folder, expected = bad_set
    assert list_images(folder) == sorted(expected)


def test_training_skips_and_lists_exactly_the_bad_images(bad_set, tmp_path):
    folder, expected = bad_set
    before = state_of(folder)
    paths = list_images(folder)
    bad = BadImages(paths, 1.0, report=tmp_path / "bad_images.tsv")
    config = CONFIG.model_copy(update={"train": CONFIG.train.model_copy(update={"batch_size": len(paths)})})
    started = time.monotonic()
    with view_pairs(paths, config, 0, 1, bad) as batches:
        (batch,) = batches
    assert time.monotonic() - started < 60
    skipped = {escape(path): group for path, group in expected.items() if group[0] == SKIPPED}
    assert {name: (SKIPPED, reason.split(":")[0]) for name, reason in bad.reasons.items()} == skipped
    shown = {paths[index] for index in batch["index"]}
    assert shown == {path for path, (outcome, _) in expected.items() if outcome == USED}
    bad.close()
    lines = [line.split("\t") for line in bad.report.read_text().splitlines()]
    assert lines == [["name", "reason"], *([name, bad.reasons[name]] for name in bad.reasons)]
    assert state_of(folder) == before


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_file_without_permission_is_listed_with_its_reason(tmp_path):
    path = tmp_path / "secret.jpg"
    path.write_bytes(FILES["plain.jpg"][0])
    path.chmod(0)
    assert unusable_reason(str(path)) == "cannot be opened: permission denied"


@pytest.mark.skipif(not os.path.exists("/proc/self/mem"), reason="needs a file that exists and cannot be read")
def test_file_with_a_read_error_is_listed_with_its_reason(tmp_path):
    (tmp_path / "a.jpg").write_bytes(FILES["plain.jpg"][0])
    (tmp_path / "unreadable.jpg").symlink_to("/proc/self/mem")
    paths = list_images(tmp_path)
    bad = BadImages(paths, 1.0)
    with view_pairs(paths, CONFIG, 0, 1, bad) as batches:
        (batch,) = batches
    assert [reason.split(":")[0] for reason in bad.reasons.values()] == ["cannot be opened"]
    assert set(batch["index"]) == {0}


def test_resumed_run_checks_listed_images_again(tmp_path):
    for i in range(200):
        (tmp_path / f"{i:03d}.jpg").write_bytes(b"" if i in (7, 8) else FILES["plain.jpg"][0])  # not in a sample
    paths, report = list_images(tmp_path), tmp_path / "bad_images.tsv"
    first = BadImages(paths, 1.0, report=report)
    first.is_bad(7), first.is_bad(8)
    first.close()
    (tmp_path / "008.jpg").write_bytes(FILES["plain.jpg"][0])  # repaired
    second = BadImages(paths, 1.0, report=report)
    check_readable(paths, second)
    assert list(second.reason_of) == [7]
    assert report.read_text().splitlines() == ["name\treason", f"{paths[7]}\tempty: 0 bytes"]


def test_bad_images_are_allowed_up_to_the_limit():
    bad = BadImages([f"{i}.jpg" for i in range(24)], max_share=0.25)
    for index in range(6):
        bad.add(index, "empty: 0 bytes")
    bad.check(), bad.check(running=True)  # 6 of 24: exactly at the limit
    bad.add(6, "empty: 0 bytes")
    assert "7 of 24" in refusal(bad.check).problem


def test_list_and_log_of_many_bad_images_stay_short(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(bad_images, "MOST_LISTED", 5)
    bad = BadImages([f"{i}.jpg" for i in range(1000)], 0.5, report=tmp_path / "bad_images.tsv")
    for _ in range(2):  # each counts once, however often it is met
        for index in range(300):
            bad.add(index, "empty: 0 bytes" if index % 3 else "cut short: JPEG")
    bad.check()
    assert bad.count == 300 and len(bad.reason_of) == len(bad.reasons) == 5 and len(caplog.messages) == 6
    assert bad.kinds == {"empty": 200, "cut short": 100} and not bad.over_budget
    listed = list(read_list(bad.report))
    assert len(listed) == 6 and [further_images(*line) for line in listed] == [0] * 5 + [295]
    for index in range(300, 501):
        bad.add(index, "empty: 0 bytes")
    error = refusal(bad.check)
    assert "501 of 1000" in error.problem and "401 empty, 100 cut short" in error.problem and "to 0.51" in error.fix
    again = BadImages([f"{i}.jpg" for i in range(1000)], 0.5, report=bad.report)
    assert again.earlier() == list(range(5))


def test_reasons_are_counted_by_kind():
    assert count_reasons(["cut short: JPEG", "empty: 0 bytes", "cut short: PNG"]) == "2 cut short, 1 empty"


def test_advice_names_the_settings_with_values():
    reasons = ["too many pixels: 14000 x 10000, see data.max_pixels", "too many pixels: 10 x 10, see data.max_pixels"]
    assert "data.max_bad_share to 0.1" in advice(reasons, 21) and "data.max_pixels to 140000000" in advice(reasons, 21)
    assert "--max-pixels to 140000000" in advice(reasons, 21, FLAGS)
    assert "data.max_bad_share" not in advice(["empty: 0 bytes"], 1)
    assert "data.depth to auto" in advice(["no defined white: pixels of 32 bits (mode F), data.depth auto"], 5)


def test_folder_without_a_usable_image_is_refused(tmp_path):
    for i in range(3):
        (tmp_path / f"{i}.jpg").write_bytes(b"text")
    paths = list_images(tmp_path)
    assert refusal(check_readable, paths, BadImages(paths, 1.0)).fix


def test_16_bit_images_that_use_few_levels_are_named_once(tmp_path, caplog):
    for name, high in (("a_dark.png", 1900), ("b_dark.png", 1900), ("c_wide.png", 60000)):
        pixels = np.linspace(700, high, 48 * 36).reshape(36, 48).astype(np.uint16)
        Image.fromarray(pixels).save(tmp_path / name)
    (tmp_path / "0.png").write_bytes(b"no image")
    paths = list_images(tmp_path)
    warn_of_few_levels(paths, "auto")
    warn_of_few_levels([path for path in paths if "dark" not in path], "full")
    assert caplog.text == ""
    warn_of_few_levels(paths, "full")
    assert len(caplog.records) == 1 and "a_dark.png" in caplog.text and "--data.depth auto" in caplog.text


def test_check_before_a_run_uses_its_depth_setting(tmp_path):
    Image.fromarray(np.ones((8, 8), np.float32)).save(tmp_path / "a.tif")
    assert "32 bits" in refusal(check_photos, tmp_path).problem
    check_photos(tmp_path, depth="auto")


def test_several_threads_can_note_bad_images(tmp_path):
    bad = BadImages([f"{i}.jpg" for i in range(1000)], 1.0, report=tmp_path / "bad_images.tsv")
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(bad.is_bad, [*range(1000), *range(1000)]))
    bad.close()
    assert len(bad.reason_of) == 1000 and len(bad.report.read_text().splitlines()) == 1001
