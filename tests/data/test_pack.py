"""Tests of packing: images are stored unchanged, a kill changes nothing, damage and full disks are reported."""

import io
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
import zlib

import numpy as np
import pytest
from array_record.python import array_record_module
from PIL import Image

from dupr_tf import cli
from dupr_tf.data.images import bad_images as bad_list
from dupr_tf.data.images.decode import Unusable, decode
from dupr_tf.data.shards import pack as module
from dupr_tf.data.shards.encode import packed_image, shrunk
from dupr_tf.data.shards.index import find_damage, list_names, read_manifest
from dupr_tf.data.shards.pack import PackSettings, pack
from dupr_tf.errors import RunFailed
from dupr_tf.text import escape
from tests.refusals import refusal

SMALL = PackSettings(images_per_shard=7)


def photo(seed, size=(60, 40)):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 255, (*size[::-1], 3), np.uint8))


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Writes 24 images of four formats in nested folders, with names in several scripts."""
    folder = tmp_path_factory.mktemp("photos")
    for i in range(24):
        suffix = ("jpg", "png", "bmp", "gif")[i % 4]
        path = folder / ("käfer 虫", "b")[i % 2] / f"{i:02d} ü😀.{suffix}"
        path.parent.mkdir(exist_ok=True)
        photo(i).save(path)
    return folder


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def records(output):
    """Returns (name, image) of every record, read without this package."""
    found = []
    for path in sorted(output.glob("*.array_record")):
        images = array_record_module.ArrayRecordReader(str(path)).read_all()
        _, *lines = path.with_suffix(".jsonl").read_bytes().splitlines()
        for line, image in zip(map(json.loads, lines), images, strict=True):
            assert line[1:] == [len(image), zlib.crc32(image)]
            found.append((line[0], image))
    return found


def bad_images(output):
    rows = (output / "bad_images.tsv").read_text().splitlines()
    assert rows[0] == "name\treason"
    return dict(row.split("\t") for row in rows[1:])


def test_pack_keeps_bytes_and_names_of_every_file(photos, tmp_path):
    packed = pack(photos, tmp_path / "out", SMALL, workers=3)
    assert dict(records(tmp_path / "out")) == {
        path.relative_to(photos).as_posix(): path.read_bytes() for path in photos.rglob("*") if path.is_file()
    }
    assert [shard.images for shard in packed.shards] == [7, 7, 7, 3] and packed.written == 4
    assert bad_images(tmp_path / "out") == {}
    assert list(find_damage(tmp_path / "out")) == [None] * 4


def test_order_follows_seed_or_names(photos, tmp_path):
    orders = []
    for number, settings in enumerate([PackSettings(), PackSettings(seed=1), PackSettings(shuffle=False)]):
        pack(photos, tmp_path / str(number), settings)
        orders.append([name for name, _ in records(tmp_path / str(number))])
    assert orders[2] == sorted(orders[2])
    assert orders[0] != orders[1] != orders[2] != orders[0]
    assert sorted(orders[0]) == sorted(orders[1]) == orders[2]


def test_number_of_workers_changes_no_byte(photos, tmp_path):
    for workers in (1, 5):
        pack(photos, tmp_path / str(workers), SMALL, workers)
    assert contents(tmp_path / "1") == contents(tmp_path / "5")


CHILD = """
import sys, time
from dupr_tf.data.shards import pack as module
plain = module.packed_image
def slow(path, *rest):
    time.sleep(0.05)
    return plain(path, *rest)
module.packed_image = slow
module.pack(sys.argv[1], sys.argv[2], module.PackSettings(images_per_shard=7), workers=1)
"""


def test_pack_resumes_after_sigkill_within_a_shard(photos, tmp_path):
    pack(photos, tmp_path / "whole", SMALL)
    out = tmp_path / "out"
    child = subprocess.Popen([sys.executable, "-c", CHILD, photos, out], stderr=subprocess.DEVNULL)
    try:
        while not (out / "shard-00001.array_record.tmp").exists():  # the second shard is partly written
            assert child.poll() is None
            time.sleep(0.005)
    finally:
        child.send_signal(signal.SIGKILL)
        child.wait()
    assert not (out / "shards.json").exists() and (out / "shard-00001.array_record.tmp").exists()
    first = (out / "shard-00000.array_record").stat()
    assert "not ended" in refusal(list, find_damage(out)).problem
    assert pack(photos, out, SMALL).written == 3
    again = (out / "shard-00000.array_record").stat()
    assert (first.st_mtime_ns, first.st_ino) == (again.st_mtime_ns, again.st_ino)  # not rewritten
    assert contents(out) == contents(tmp_path / "whole")


@pytest.mark.parametrize("name", ["pack.json", "shard-00001.jsonl", "shard-00002.array_record"])
def test_pack_resumes_after_truncated_shard(photos, tmp_path, monkeypatch, name):
    out = tmp_path / "out"
    pack(photos, tmp_path / "whole", SMALL)
    with monkeypatch.context() as context:
        context.setattr(module, "_finish", lambda *_: 1 / 0)  # killed before the manifest
        with pytest.raises(ZeroDivisionError):
            pack(photos, out, SMALL)
    (out / name).write_bytes((out / name).read_bytes()[:-9])
    pack(photos, out, SMALL)
    assert contents(out) == contents(tmp_path / "whole")


def test_pack_keeps_finished_shards_and_rewrites_missing_ones(photos, tmp_path):
    out = tmp_path / "out"
    pack(photos, out, SMALL)
    before = contents(out)
    assert pack(photos, out, SMALL).written == 0
    (out / "shard-00002.array_record").unlink()
    (out / "shard-00000.jsonl").unlink()
    assert pack(photos, out, SMALL).written == 2
    assert contents(out) == before


def test_pack_refuses_changed_settings_images_and_folders(photos, tmp_path):
    out = tmp_path / "out"
    pack(photos, out, SMALL)
    before = contents(out)
    error = refusal(pack, photos, out, PackSettings(images_per_shard=7, seed=3))
    assert error.field == "--output" and "seed (0 -> 3)" in error.problem
    assert "other images" in refusal(pack, photos / "b", out, SMALL).problem
    assert contents(out) == before
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "letter.txt").write_text("mine")
    assert refusal(pack, photos, tmp_path / "full", SMALL).field == "--output"
    assert [path.name for path in (tmp_path / "full").iterdir()] == ["letter.txt"]


def test_shards_of_the_old_format_are_refused(photos, tmp_path):
    (tmp_path / "shards.json").write_text(json.dumps({"format": "dupr_tf shards 1", "shards": []}, indent=1))
    assert "again" in refusal(read_manifest, tmp_path).fix
    assert "again" in refusal(pack, photos, tmp_path, SMALL).fix
    assert os.listdir(tmp_path) == ["shards.json"]


def test_pack_without_array_record_is_refused(photos, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "array_record.python", None)
    assert "array_record" in refusal(pack, photos, tmp_path / "out").problem
    assert not (tmp_path / "out").exists()


def test_second_pack_at_the_same_time_is_refused(photos, tmp_path, monkeypatch):
    def second_pack(*_):
        pack(photos, tmp_path / "out", SMALL)

    monkeypatch.setattr(module, "packed_image", second_pack)
    assert str(tmp_path / "out") in refusal(pack, photos, tmp_path / "out", SMALL).problem


def test_pack_lists_unreadable_files_up_to_the_limit(photos, tmp_path, caplog):
    folder = tmp_path / "photos"
    (folder / "tab\tand\nline\\t").mkdir(parents=True)
    for i in range(12):
        photo(i).save(folder / f"{i}.jpg")
    whole = (folder / "0.jpg").read_bytes()
    broken = {"cut.jpg": whole[:-300], "tab\tand\nline\\t/no.png": b"no image", "empty.bmp": b"", "half.gif": b"GIF89a"}
    for name, content in broken.items():
        (folder / name).write_bytes(content)
    (folder / "gone.jpg").symlink_to("nowhere")
    pack(folder, tmp_path / "out", SMALL, max_bad_share=0.3)
    bad = bad_images(tmp_path / "out")
    assert set(bad) == {*map(escape, broken), "gone.jpg"} and all(bad.values())
    assert bad["gone.jpg"].startswith("no file")
    assert "cut.jpg" in caplog.text
    assert len(records(tmp_path / "out")) == 12
    before = contents(tmp_path / "out")
    (tmp_path / "out" / "shard-00001.array_record").unlink()
    pack(folder, tmp_path / "out", SMALL, max_bad_share=0.3)
    assert contents(tmp_path / "out") == before  # the list exists too, though only one shard was written
    with pytest.raises(RunFailed, match=r"bad_images\.tsv"):
        pack(folder, tmp_path / "strict", SMALL)
    assert len(bad_images(tmp_path / "strict")) == 1
    assert not list((tmp_path / "strict").glob("*.tmp"))
    with pytest.raises(RunFailed, match=r"no\.png"):
        pack(folder / "tab\tand\nline\\t", tmp_path / "none", SMALL, max_bad_share=1.0)


def test_pack_counts_many_bad_files_and_names_a_few(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(bad_list, "MOST_LISTED", 3)
    folder, out = tmp_path / "photos", tmp_path / "out"
    folder.mkdir()
    for i in range(12):
        (folder / f"{i:02}.jpg").write_bytes(b"")
    photo(0).save(folder / "good.jpg")
    packed = pack(folder, out, SMALL, max_bad_share=1.0)
    assert (packed.images, packed.left_out, len(packed.bad)) == (1, 12, 3)
    assert caplog.text.count("skipped, ") == 3 and caplog.text.count("skipped more than 3 images") == 1
    lines = (out / "bad_images.tsv").read_text().splitlines()
    assert [line[:6] for line in lines[1:-1]] == ["00.jpg", "01.jpg", "02.jpg"]
    assert lines[-1] == "\t9 more are not listed"
    before = contents(out)
    (out / "shard-00000.jsonl").unlink()
    assert pack(folder, out, SMALL, max_bad_share=1.0).left_out == 12 and contents(out) == before
    with pytest.raises(RunFailed, match=r"^2 of 13 images are unreadable.*max-bad-share to 0\.16"):
        pack(folder, tmp_path / "strict", SMALL, max_bad_share=0.1)


def test_jpeg_decoded_at_an_eighth_shows_the_same_damage(tmp_path):
    whole = io.BytesIO()
    photo(0, (150, 100)).save(whole, "JPEG")
    whole, rng = whole.getvalue(), np.random.default_rng(0)
    verdicts = []
    for _ in range(150):
        content = bytearray(whole[: rng.integers(100, len(whole) + 1)] if rng.random() < 0.3 else whole)
        for place in rng.integers(0, len(content), rng.integers(0, 4)):
            content[place] = rng.integers(256)
        path = tmp_path / "image.jpg"
        path.write_bytes(content)
        try:
            decode(bytes(content))
            readable = True
        except Unusable:
            readable = False
        verdicts.append((readable, not isinstance(packed_image(path, None, 95), Unusable)))
    assert all(a == b for a, b in verdicts)
    assert 20 < sum(a for a, _ in verdicts) < 130


def limited(limit, *arguments):
    """Runs the command with a limit on file sizes, which a process sees as a full disk."""
    code = (
        "import resource, sys; from dupr_tf.cli import main;"
        f"resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit})); sys.exit(main(sys.argv[1:]))"
    )
    return subprocess.run([sys.executable, "-c", code, *map(str, arguments)], capture_output=True, text=True)


def test_full_disk_gives_one_line_and_keeps_finished_shards(tmp_path):
    assert resource.RLIMIT_FSIZE  # POSIX
    photos = tmp_path / "photos"
    photos.mkdir()
    for i in range(8):
        photo(i, (120 if i < 6 else 400, 120)).save(photos / f"{i}.png")
    done = limited(200_000, "pack", photos, "--output", tmp_path / "out", "--no-shuffle", "--images-per-shard", 3)
    assert done.returncode == 1
    lines = [line for line in done.stderr.splitlines() if line.startswith("dupr-tf")]
    assert len(lines) == 1 and "Traceback" not in done.stderr
    wanted = sum((photos / f"{i}.png").stat().st_size for i in (6, 7))
    assert f"{wanted:,} bytes" in lines[0]
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {"pack.json"} | {f"shard-0000{i}.{end}" for i in (0, 1) for end in ("array_record", "jsonl")}
    assert pack(photos, tmp_path / "out", PackSettings(images_per_shard=3, shuffle=False)).written == 1


def test_too_little_disk_space_is_refused_before_reading(photos, tmp_path, monkeypatch):
    free = shutil.disk_usage(tmp_path)._replace(free=1_000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: free)
    monkeypatch.setattr(module, "packed_image", lambda *_: pytest.fail("read an image"))
    with pytest.raises(RunFailed, match=r"1,000 bytes free"):
        pack(photos, tmp_path / "out", SMALL)
    assert not list((tmp_path / "out").glob("shard-*"))


def decoded(content):
    return np.asarray(Image.open(io.BytesIO(content)).convert("RGB"), int)


def saved(image, form, **options):
    file = io.BytesIO()
    image.save(file, form, **options)
    return file.getvalue()


def test_large_images_are_shrunk_antialiased_and_upright():
    rows, columns = np.mgrid[0:200, 0:300]
    ramp = Image.fromarray(np.stack([rows, columns * 255 // 300, rows * 0 + 90], -1).astype(np.uint8))
    for orientation, size in ((1, (60, 40)), (6, (40, 60))):  # orientation 6: shown rotated to the right
        exif = Image.Exif()
        exif[0x0112] = orientation
        small = decoded(shrunk(saved(ramp, "JPEG", quality=95, exif=exif), 60, 95))
        assert small.shape == (size[1], size[0], 3)
        expected = ramp.resize((60, 40), Image.Resampling.LANCZOS)
        expected = expected if orientation == 1 else expected.transpose(Image.Transpose.ROTATE_270)
        assert np.abs(small - np.asarray(expected, int)).mean() < 2
    noise = shrunk(saved(photo(0, (640, 640)), "PNG"), 64, 95)
    assert decoded(noise).std() < 20  # 73 before: shrinking tenfold averages it away


def test_only_small_upright_jpegs_are_stored_unchanged():
    jpeg = saved(photo(0), "JPEG")
    assert shrunk(jpeg, 60, 95) == jpeg and shrunk(jpeg, 59, 95) != jpeg
    deep = Image.fromarray((np.arange(64 * 64, dtype=np.uint16) * 16).reshape(64, 64))
    grey = decoded(shrunk(saved(deep, "PNG"), 64, 95))[..., 0]
    assert np.abs(grey - (np.arange(64 * 64).reshape(64, 64) >> 4)).mean() < 2  # 16 bits are not clipped
    for image in (photo(1).convert("RGBA"), photo(1).convert("P"), photo(1).convert("L"), photo(1).convert("1")):
        assert Image.open(io.BytesIO(shrunk(saved(image, "PNG"), 64, 95))).mode == "RGB"
    with pytest.raises(Unusable):
        shrunk(jpeg[:-300], 64, 95)


def test_wrong_pack_arguments_give_one_line_and_exit_2(photos, tmp_path, capsys):
    for arguments, start in [
        (["--output", tmp_path / "o", "--quality", "0"], "--quality: "),
        (["--output", tmp_path / "o", "--images-per-shard", "0"], "--images-per-shard: "),
        (["--output", tmp_path / "o", "--max-bad-share", "2"], "--max-bad-share: "),
        (["--output", tmp_path / "o", "--workers", "-1"], "--workers: "),
        ([], "--output: "),
        (["--verify"], str(photos)),
    ]:
        assert cli.main(["pack", str(photos), *map(str, arguments)]) == 2
        error = capsys.readouterr().err
        assert error.startswith(f"dupr-tf: error: {start}") and error.count("\n") == 1


@pytest.mark.parametrize("name", ["shard-00001.array_record", "shard-00001.jsonl", "shards.json"])
def test_verify_names_damaged_shards(photos, tmp_path, capsys, name):
    pack(photos, tmp_path / "out", SMALL)
    assert cli.main(["pack", "--verify", str(tmp_path / "out")]) == 0
    content = bytearray((tmp_path / "out" / name).read_bytes())
    content[len(content) // 2] ^= 1
    (tmp_path / "out" / name).write_bytes(content)
    assert cli.main(["pack", "--verify", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert name in error and error.count("\n") == 1


def test_list_prints_each_packed_name_on_a_line(photos, tmp_path, capsys):
    folder = tmp_path / "photos"
    folder.mkdir()
    for name in ("a\nb.png", "ü [x].png", os.fsdecode(b"\xff.png")):
        photo(0).save(folder / name)
    pack(folder, tmp_path / "out", PackSettings(images_per_shard=2, shuffle=False))
    assert cli.main(["pack", "--list", str(tmp_path / "out")]) == 0
    assert capsys.readouterr().out.splitlines() == ["a\\nb.png", "ü [x].png", "\\udcff.png"]
    pack(photos, tmp_path / "more", SMALL)
    assert sorted(list_names(tmp_path / "more")) == sorted(name for name, _ in records(tmp_path / "more"))


def test_manifest_contains_settings_and_no_path(photos, tmp_path):
    pack(photos, tmp_path / "out", SMALL)
    text = (tmp_path / "out" / "shards.json").read_text()
    assert str(tmp_path) not in text and str(photos) not in text
    manifest = json.loads(text)
    assert manifest["images"] == 24 and manifest["source"]["files"] == 24
    assert manifest["settings"]["images_per_shard"] == 7


def test_home_folder_is_expanded(photos, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    shutil.copytree(photos, tmp_path / "photos")
    packed = pack("~/photos", "~/shards", SMALL)
    assert sum(shard.images for shard in packed.shards) == 24 and packed.left_out == 0
    assert len([*list_names(tmp_path / "shards")]) == 24
