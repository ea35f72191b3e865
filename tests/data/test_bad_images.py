"""Every kind of odd image has one outcome, the same in training, in `dupr-tf scan` and in what a run lists."""

import os
import subprocess
import sys
import time

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from dupr_tf.cli import main
from dupr_tf.config import ViewsConfig, parse_config
from dupr_tf.data.bad_images import BadImages, check_readable, unusable_content, unusable_reason
from dupr_tf.data.decoding import read_image, read_pair
from dupr_tf.data.images.listing import list_images
from dupr_tf.data.pipeline import view_pairs
from dupr_tf.data.scan import scan_images
from dupr_tf.text import escape
from tests.data.bad_images import (
    ORIENTATIONS,
    SIZE,
    SKIPPED,
    USED,
    encoded,
    files,
    picture,
    png_bomb,
    sixteen_bits,
    with_orientation,
    write_bad_images,
)  # fmt: skip
from tests.refusals import refusal

FILES = files()
VIEWS = ViewsConfig(min_overlap=8)
SEED = tf.constant([3, 1], tf.int64)
CONFIG = parse_config({
    "data": {"image_size": 32}, "views": {"min_overlap": 8}, "train": {"batch_size": 16, "micro_batches": 1},
})  # fmt: skip


@pytest.fixture(scope="module")
def bad_set(tmp_path_factory):
    """(folder, {path: (outcome, reason)})"""
    folder = tmp_path_factory.mktemp("bad")
    return folder, write_bad_images(folder)


def state_of(folder):
    """Every file with its content's size and times, links and folders included."""
    return {path: (os.lstat(path).st_size, os.lstat(path).st_mtime_ns) for path in sorted(folder.rglob("*"))}


def test_the_files_are_listed_and_pipes_links_to_folders_and_folders_are_not(bad_set):
    folder, expected = bad_set
    assert list_images(folder) == sorted(expected)


def test_a_scan_says_what_becomes_of_each(bad_set):
    folder, expected = bad_set
    looks = list(scan_images(list_images(folder), 10**8, workers=2))
    assert {look.name: look.group for look in looks} == {escape(path): group for path, group in expected.items()}


def test_training_skips_the_same_ones_by_name_and_reason_and_touches_nothing(bad_set, tmp_path):
    folder, expected = bad_set
    before = state_of(folder)
    paths = list_images(folder)
    bad = BadImages(paths, 1.0, report=tmp_path / "bad_images.tsv")
    config = CONFIG.model_copy(update={"train": CONFIG.train.model_copy(update={"batch_size": len(paths)})})
    started = time.monotonic()
    (batch,) = view_pairs(paths, config, 0, 1, bad)
    assert time.monotonic() - started < 60
    skipped = {escape(path): group for path, group in expected.items() if group[0] == SKIPPED}
    assert {name: (SKIPPED, reason.split(":")[0]) for name, reason in bad.reasons.items()} == skipped
    shown = {paths[index] for index in batch["index"].numpy()}
    assert shown == {path for path, (outcome, _) in expected.items() if outcome == USED}
    bad.close()
    lines = [line.split("\t") for line in bad.report.read_text().splitlines()]
    assert lines == [["name", "reason"], *([name, bad.reasons[name]] for name in bad.reasons)]
    assert state_of(folder) == before


@pytest.mark.parametrize("name", [name for name in FILES if FILES[name][1] == SKIPPED])
def test_what_is_skipped_fails_in_every_window(name):
    content = FILES[name][0]
    for i in range(5):
        with pytest.raises(tf.errors.InvalidArgumentError):
            read_pair(tf.constant(content), tf.constant([i, i], tf.int64), 16, VIEWS)


@pytest.mark.parametrize("left_out", [2, 500])
def test_a_cut_jpeg_fails_also_where_the_crops_lie_above_the_cut(left_out):
    content = tf.constant(encoded(picture(size=(100, 900)), quality=95)[:-left_out])
    for i in range(12):
        with pytest.raises(tf.errors.InvalidArgumentError):
            read_pair(content, tf.constant([i, i], tf.int64), 16, VIEWS)


@pytest.mark.parametrize("kind, tolerance", [("JPEG", 40), ("PNG", 0), ("WEBP", 0), ("TIFF", 0)])
@pytest.mark.parametrize("value", range(1, 9))
def test_an_image_is_seen_upright(kind, tolerance, value):
    options = {"WEBP": {"lossless": True}, "JPEG": {"quality": 95, "subsampling": 0}}.get(kind, {})
    for endian in "<>" if kind == "JPEG" else "<":
        content = with_orientation(picture(), value, kind, endian, **options)
        seen = read_image(content).numpy()
        assert seen.shape == (SIZE[1], SIZE[0], 3)
        assert np.abs(seen.astype(int) - np.asarray(picture(), int)).max() <= tolerance


@pytest.mark.parametrize("size", [(90, 130), (700, 500)])  # decoded at 1/1, and at 1/2 to 1/8
@pytest.mark.parametrize("value", ORIENTATIONS)
def test_views_of_a_turned_jpeg_are_those_of_the_upright_one(value, size):
    image = picture(size=size)
    upright, turned = (with_orientation(image, v, quality=95, subsampling=0) for v in (1, value))
    for i in range(4):
        seed = tf.constant([7, i], tf.int64)
        one, other = (read_pair(tf.constant(content), seed, 32, VIEWS) for content in (upright, turned))
        for name in one:
            difference = np.abs(one[name].numpy().astype(float) - other[name].numpy().astype(float))
            # Half a decoded pixel lies between the two where the sides are no multiple of the factor.
            assert difference.max() <= (12 if name.startswith("view") else 0), name


def test_exif_that_is_damaged_far_down_or_in_other_kinds_turns_nothing():
    content = with_orientation(picture(), 6)
    start = content.index(b"Exif\0\0") + 6
    for at, byte in ((start + 4, 0xFF), (start + 12, 0xFF), (start, 0x00)):  # offset, type, byte order
        damaged = content[:at] + bytes([byte]) + content[at + 1 :]
        assert unusable_content(damaged) == "" and read_image(damaged).shape[:2] == (48, 36)  # as stored
    assert read_image(encoded(picture(), "BMP") + content).shape[:2] == (36, 48)


def test_sixteen_bits_become_eight_by_their_upper_half():
    expected = (np.asarray(sixteen_bits()) >> 8).astype(int)
    for kind in ("PNG", "TIFF"):
        seen = read_image(encoded(sixteen_bits(), kind)).numpy()
        assert np.abs(seen - expected[..., None]).max() <= 1, kind


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "TIFF"])
def test_alpha_is_dropped(kind):
    image = picture("RGBA")
    image.putalpha(Image.new("L", SIZE, 90))
    options = {"lossless": True, "exact": True} if kind == "WEBP" else {}
    np.testing.assert_array_equal(read_image(encoded(image, kind, **options)), np.asarray(picture()))


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "TIFF"])
def test_of_several_frames_the_first_counts(kind):
    frames = [Image.new("RGB", SIZE, colour) for colour in ((200, 0, 0), (0, 200, 0))]
    options = {"lossless": True} if kind == "WEBP" else {}
    seen = read_image(encoded(frames[0], kind, save_all=True, append_images=frames[1:], **options)).numpy()
    assert seen.shape == (36, 48, 3) and (seen == (200, 0, 0)).all()


def test_the_limit_is_the_one_of_the_config():
    content = encoded(picture(), "PNG")
    for content in (encoded(picture(), "PNG"), encoded(picture()), encoded(picture(), "GIF")):
        assert unusable_content(content, 36 * 48) == ""
        assert unusable_content(content, 36 * 48 - 1) == "too many pixels: 48 x 36, see data.max_pixels"


MEASURE = """
import resource, sys
import tensorflow as tf
from dupr_tf.config import ViewsConfig
from dupr_tf.data.bad_images import unusable_reason
from dupr_tf.data.decoding import read_pair
read = tf.function(lambda path: read_pair(tf.io.read_file(path), [1, 2], 32, ViewsConfig(min_overlap=8))["valid"])
unusable_reason(sys.argv[1]), read(tf.constant(sys.argv[1]))  # a good image: all is loaded now
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for path in sys.argv[2:]:
    assert unusable_reason(path).startswith("too many pixels"), path
    try:
        read(tf.constant(path))
        sys.exit(path)
    except tf.errors.InvalidArgumentError:
        pass
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""


def test_bombs_take_no_memory(bad_set):
    folder, _ = bad_set
    bombs = sorted(str(path) for path in folder.glob("bomb*"))
    assert len(bombs) == 8
    command = [sys.executable, "-c", MEASURE, str(folder / "plain.jpg"), *bombs]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout.split()[-1]) < 50  # MB; the largest decoded is 2,700


def test_a_bomb_is_what_it_says():
    assert read_image(png_bomb(800)).shape == (800, 800, 3)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_without_permission(tmp_path):
    path = tmp_path / "secret.jpg"
    path.write_bytes(FILES["plain.jpg"][0])
    path.chmod(0)
    assert unusable_reason(str(path)) == "cannot be opened: permission denied"


@pytest.mark.skipif(not os.path.exists("/proc/self/mem"), reason="needs a file that exists and cannot be read")
def test_a_file_that_cannot_be_read(tmp_path):
    (tmp_path / "a.jpg").write_bytes(FILES["plain.jpg"][0])
    (tmp_path / "unreadable.jpg").symlink_to("/proc/self/mem")
    paths = list_images(tmp_path)
    bad = BadImages(paths, 1.0)
    (batch,) = view_pairs(paths, CONFIG, 0, 1, bad)
    assert [reason.split(":")[0] for reason in bad.reasons.values()] == ["cannot be opened"]
    assert set(batch["index"].numpy()) == {0}


def test_the_replacement_is_a_function_of_seed_epoch_and_index(tmp_path):
    for i in range(24):
        (tmp_path / f"{i:02d}.jpg").write_bytes(encoded(picture(seed=i)) if i % 3 else b"text")
    paths = list_images(tmp_path)

    def shown(first, last, seed=0):
        config = CONFIG.model_copy(update={"train": CONFIG.train.model_copy(update={"seed": seed, "batch_size": 24})})
        return [
            batch["index"].numpy().tolist() for batch in view_pairs(paths, config, first, last, BadImages(paths, 1))
        ]

    whole = shown(0, 2)
    assert whole[1:] == shown(1, 2)  # however the run was cut
    assert whole[0] != shown(0, 1, seed=1)[0]
    assert not {i for batch in whole for i in batch} & set(range(0, 24, 3))
    extra = [sorted(i for i in batch if batch.count(i) > 1) for batch in whole]
    assert extra[0] != extra[1]  # another epoch, other stand-ins


def test_a_run_that_goes_on_looks_again_at_what_an_earlier_start_listed(tmp_path):
    for i in range(200):
        (tmp_path / f"{i:03d}.jpg").write_bytes(b"" if i in (7, 8) else FILES["plain.jpg"][0])  # not among those tried
    paths, report = list_images(tmp_path), tmp_path / "bad_images.tsv"
    first = BadImages(paths, 1.0, report=report)
    first.is_bad(7), first.is_bad(8)
    first.close()
    (tmp_path / "008.jpg").write_bytes(FILES["plain.jpg"][0])  # mended
    second = BadImages(paths, 1.0, report=report)
    check_readable(paths, second)
    assert list(second.found) == [7]
    assert report.read_text().splitlines() == ["name\treason", f"{paths[7]}\tempty: 0 bytes"]


def test_bad_images_are_allowed_up_to_the_limit():
    bad = BadImages([f"{i}.jpg" for i in range(24)], max_share=0.25)
    for index in range(6):
        bad.add(index, "empty: 0 bytes")
    bad.check(), bad.check(running=True)  # 6 of 24: exactly at the limit
    bad.add(6, "empty: 0 bytes")
    assert "7 of 24" in refusal(bad.check).problem


# ---- dupr-tf scan ----


def scanned(capsys, *arguments):
    code = main(["scan", *map(str, arguments)])
    captured = capsys.readouterr()
    return code, captured.out.splitlines(), captured.err.splitlines()


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    for i in range(6):
        (folder / f"{i}.jpg").write_bytes(encoded(picture(seed=i)))
    return folder


def test_a_scan_prints_a_summary_and_an_exit_code_as_pretrain_would(folder, capsys):
    code, lines, _ = scanned(capsys, folder)
    assert code == 0 and lines[-1] == "0 of 6 images would be skipped (0.00%)"
    (folder / "2.jpg").write_bytes(b"")
    code, lines, _ = scanned(capsys, folder)
    assert code == 1 and lines[-1] == "1 of 6 images would be skipped (16.67%)"
    assert [line.split()[:3] for line in lines[1:-1]] == [["used", "JPEG", "5"], ["skipped", "empty", "1"]]
    assert scanned(capsys, folder, "--max-bad-share", "0.2")[0] == 0
    assert scanned(capsys, folder, "--max-pixels", "100")[1][-1] == "6 of 6 images would be skipped (100.00%)"


def test_a_scan_goes_on_where_it_was_cut_and_looks_again_at_what_changed(folder, tmp_path, capsys, monkeypatch):
    looked = []
    original = unusable_reason
    monkeypatch.setattr(
        "dupr_tf.data.scan.unusable_reason", lambda path, m: looked.append(path[-5]) or original(path, m)
    )
    output = tmp_path / "out" / "scan.tsv"
    assert scanned(capsys, folder, "--output", output)[0] == 0
    whole = output.read_text()
    assert sorted(looked) == list("012345")
    output.write_text(whole[: whole.rindex("\t")])  # killed within the last line
    last = whole.splitlines()[-1].split("\t")[0][-5]
    looked.clear()
    scanned(capsys, folder, "--output", output)
    assert looked == [last] and sorted(output.read_text().splitlines()) == sorted(whole.splitlines())
    (folder / "3.jpg").write_bytes(b"changed")
    (folder / "4.jpg").unlink()
    looked.clear()
    code, lines, _ = scanned(capsys, folder, "--output", output)
    assert looked == ["3"] and code == 1 and lines[-1] == "1 of 5 images would be skipped (20.00%)"
    assert output.read_text().startswith(whole)  # only ever added to


@pytest.mark.parametrize("content", ["my notes\n", "# dupr-tf scan, max_pixels 5\n"])
def test_a_scan_overwrites_no_other_file(folder, tmp_path, capsys, content):
    (tmp_path / "notes.txt").write_text(content)
    code, _, errors = scanned(capsys, folder, "--output", tmp_path / "notes.txt")
    assert code == 2 and len(errors) == 1 and "--output" in errors[0]
    assert (tmp_path / "notes.txt").read_text() == content


@pytest.mark.parametrize("arguments", [["nowhere"], [".", "--workers", "0"], [".", "--max-pixels", "0"]])
def test_a_wrong_scan_is_one_line(tmp_path, capsys, arguments):
    code, _, errors = scanned(capsys, tmp_path / arguments[0], *arguments[1:])
    assert code == 2 and len(errors) == 1
