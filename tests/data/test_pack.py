"""Packing: what goes in comes out, a kill changes nothing, damage and full disks are told by name."""

import io
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from dupr_tf import cli
from dupr_tf.data import pack as module
from dupr_tf.data.encoding import Unreadable, packed_image, shrunk
from dupr_tf.data.pack import PackSettings, pack
from dupr_tf.data.pack_progress import read_bad_images
from dupr_tf.data.shard_files import damaged_files
from dupr_tf.errors import RunFailed
from tests.refusals import refusal

SMALL = PackSettings(images_per_shard=7)


def photo(seed, size=(60, 40)):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 255, (*size[::-1], 3), np.uint8))


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """24 images of four formats in nested folders with names from everywhere."""
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
    """(name, image) of every record, read as any other tool would."""
    found = []
    for path in sorted(output.glob("*.tfrecord")):
        for record in tf.data.TFRecordDataset(str(path)).as_numpy_iterator():
            feature = tf.train.Example.FromString(record).features.feature
            assert set(feature) == {"image/encoded", "image/filename"}
            found.append(tuple(feature[f"image/{key}"].bytes_list.value[0] for key in ("filename", "encoded")))
    return found


def test_every_files_bytes_and_name_come_back_in_shards_of_their_size(photos, tmp_path):
    packed = pack(photos, tmp_path / "out", SMALL, workers=3)
    found = {os.fsdecode(name): image for name, image in records(tmp_path / "out")}
    assert found == {
        path.relative_to(photos).as_posix(): path.read_bytes() for path in photos.rglob("*") if path.is_file()
    }
    assert [shard.images for shard in packed.shards] == [7, 7, 7, 3] and packed.written == 4
    assert read_bad_images(tmp_path / "out") == []
    assert [wrong for _, wrong in damaged_files(tmp_path / "out")] == [None] * 4


def test_the_index_is_plain_numpy_and_points_at_the_images(photos, tmp_path):
    pack(photos, tmp_path / "out", SMALL)
    expected = [image for _, image in records(tmp_path / "out")]
    for index in sorted((tmp_path / "out").glob("*.index.npy")):
        shard = index.with_name(index.name.replace(".index.npy", ".tfrecord")).read_bytes()
        for entry in np.load(index, allow_pickle=False):
            first = int(entry["record"]) + int(entry["start"])
            assert shard[first : first + int(entry["length"])] == expected.pop(0)
    assert not expected


def test_the_order_is_the_seeds_or_that_of_the_names(photos, tmp_path):
    orders = {}
    for name, settings in {"seed 0": PackSettings(), "seed 1": PackSettings(seed=1)}.items():
        pack(photos, tmp_path / name, settings)
        orders[name] = [found for found, _ in records(tmp_path / name)]
    pack(photos, tmp_path / "names", PackSettings(shuffle=False))
    names = [found for found, _ in records(tmp_path / "names")]
    assert names == sorted(names)
    assert orders["seed 0"] != orders["seed 1"] != names != orders["seed 0"]
    assert sorted(orders["seed 0"]) == sorted(orders["seed 1"]) == names


def test_workers_change_nothing(photos, tmp_path):
    for workers in (1, 5):
        pack(photos, tmp_path / str(workers), SMALL, workers)
    assert contents(tmp_path / "1") == contents(tmp_path / "5")


CHILD = """
import sys, time
from dupr_tf.data import pack as module
plain = module.packed_image
def slow(path, *rest):
    time.sleep(0.05)
    return plain(path, *rest)
module.packed_image = slow
module.pack(sys.argv[1], sys.argv[2], module.PackSettings(images_per_shard=7), workers=1)
"""


def test_after_sigkill_in_the_middle_of_a_shard_the_bytes_are_those_of_a_whole_run(photos, tmp_path):
    pack(photos, tmp_path / "whole", SMALL)
    out = tmp_path / "out"
    child = subprocess.Popen([sys.executable, "-c", CHILD, photos, out], stderr=subprocess.DEVNULL)
    try:
        while not (out / "shard-00001.tfrecord.tmp").exists():  # the second shard has been begun
            assert child.poll() is None
            time.sleep(0.005)
    finally:
        child.send_signal(signal.SIGKILL)
        child.wait()
    assert not (out / "shards.json").exists() and (out / "shard-00001.tfrecord.tmp").exists()
    first = (out / "shard-00000.tfrecord").stat()
    assert "not ended" in refusal(list, damaged_files(out)).problem
    assert pack(photos, out, SMALL).written == 3
    again = (out / "shard-00000.tfrecord").stat()
    assert (first.st_mtime_ns, first.st_ino) == (again.st_mtime_ns, again.st_ino)  # not written again
    assert contents(out) == contents(tmp_path / "whole")


@pytest.mark.parametrize("keep", range(0, 900, 90))
def test_progress_that_a_kill_cut_anywhere_is_gone_on_from(photos, tmp_path, monkeypatch, keep):
    pack(photos, tmp_path / "whole", SMALL)
    monkeypatch.setattr(module.PackJob, "finish", lambda job: 1 / 0)  # killed before the manifest
    with pytest.raises(ZeroDivisionError):
        pack(photos, tmp_path / "out", SMALL)
    monkeypatch.undo()
    progress = tmp_path / "out" / "pack.jsonl"
    content = progress.read_bytes()
    progress.write_bytes(content[: max(content.index(b"\n") + 1, len(content) - keep)])
    pack(photos, tmp_path / "out", SMALL)
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


def test_a_finished_pack_is_left_alone_and_a_missing_shard_written_again(photos, tmp_path):
    out = tmp_path / "out"
    pack(photos, out, SMALL)
    before = contents(out)
    assert pack(photos, out, SMALL).written == 0
    (out / "shard-00002.tfrecord").unlink()
    (out / "shard-00000.index.npy").unlink()
    assert pack(photos, out, SMALL).written == 2
    assert contents(out) == before


def test_other_settings_other_images_and_other_folders_are_refused_and_nothing_is_touched(photos, tmp_path):
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


def test_a_second_pack_at_the_same_time_is_refused(photos, tmp_path, monkeypatch):
    def second_pack(*_):
        pack(photos, tmp_path / "out", SMALL)

    monkeypatch.setattr(module, "packed_image", second_pack)
    assert str(tmp_path / "out") in refusal(pack, photos, tmp_path / "out", SMALL).problem


def test_unreadable_files_are_left_out_and_listed_within_the_budget(photos, tmp_path, caplog):
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
    bad = dict(read_bad_images(tmp_path / "out"))
    assert set(bad) == {*broken, "gone.jpg"} and all(bad.values())
    assert bad["gone.jpg"] == "No such file or directory"
    assert len((tmp_path / "out" / "bad_images.tsv").read_text().splitlines()) == 6
    assert "cut.jpg" in caplog.text
    assert len(records(tmp_path / "out")) == 12
    before = contents(tmp_path / "out")
    (tmp_path / "out" / "shard-00001.tfrecord").unlink()
    pack(folder, tmp_path / "out", SMALL, max_bad_share=0.3)
    assert contents(tmp_path / "out") == before  # the list too, though one shard alone was written
    with pytest.raises(RunFailed, match=r"bad_images\.tsv"):
        pack(folder, tmp_path / "strict", SMALL)
    assert len(read_bad_images(tmp_path / "strict")) == 1
    assert not list((tmp_path / "strict").glob("*.tmp"))
    with pytest.raises(RunFailed, match=r"no\.png"):
        pack(folder / "tab\tand\nline\\t", tmp_path / "none", SMALL, max_bad_share=1.0)


def test_a_quick_look_at_a_jpeg_finds_what_a_whole_decoding_finds(tmp_path):
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
            tf.io.decode_image(bytes(content), 3, expand_animations=False)
            readable = True
        except tf.errors.OpError:
            readable = False
        verdicts.append((readable, not isinstance(packed_image(path, None, 95), Unreadable)))
    assert all(a == b for a, b in verdicts)
    assert 30 < sum(a for a, _ in verdicts) < 120


def limited(limit, *arguments):
    """Runs the command where no file may grow beyond a limit, which is how a full disk looks to a process."""
    code = (
        "import resource, sys; from dupr_tf.cli import main;"
        f"resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit})); sys.exit(main(sys.argv[1:]))"
    )
    return subprocess.run([sys.executable, "-c", code, *map(str, arguments)], capture_output=True, text=True)


def test_a_disk_that_fills_up_is_one_line_and_leaves_no_half_shard(tmp_path):
    assert resource.RLIMIT_FSIZE  # POSIX
    for i in range(8):
        photo(i, (120 if i < 6 else 400, 120)).save(tmp_path / f"{i}.png")
    done = limited(200_000, "pack", tmp_path, "--output", tmp_path / "out", "--no-shuffle", "--images-per-shard", 3)
    assert done.returncode == 1
    lines = [line for line in done.stderr.splitlines() if line.startswith("dupr-tf")]
    assert len(lines) == 1 and "Traceback" not in done.stderr
    wanted = sum((tmp_path / f"{i}.png").stat().st_size for i in (6, 7))
    assert f"{wanted:,} bytes" in lines[0]
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {"pack.jsonl"} | {f"shard-0000{i}.{end}" for i in (0, 1) for end in ("tfrecord", "index.npy")}
    assert pack(tmp_path, tmp_path / "out", PackSettings(images_per_shard=3, shuffle=False)).written == 1


def test_too_little_room_is_told_before_anything_is_written(photos, tmp_path, monkeypatch):
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


def test_large_images_are_shrunk_with_antialiasing_and_turned_upright():
    rows, columns = np.mgrid[0:200, 0:300]
    ramp = Image.fromarray(np.stack([rows, columns * 255 // 300, rows * 0 + 90], -1).astype(np.uint8))
    for orientation, size in ((1, (60, 40)), (6, (40, 60))):  # 6: turned to the right to be seen
        exif = Image.Exif()
        exif[0x0112] = orientation
        small = decoded(shrunk(saved(ramp, "JPEG", quality=95, exif=exif), 60, 95))
        assert small.shape == (size[1], size[0], 3)
        expected = ramp.resize((60, 40), Image.Resampling.LANCZOS)
        expected = expected if orientation == 1 else expected.transpose(Image.Transpose.ROTATE_270)
        assert np.abs(small - np.asarray(expected, int)).mean() < 2
    noise = shrunk(saved(photo(0, (640, 640)), "PNG"), 64, 95)
    assert decoded(noise).std() < 20  # 73 before: a tenfold smaller image averages it away


def test_small_upright_jpegs_stay_as_they_are_and_everything_else_becomes_one():
    jpeg = saved(photo(0), "JPEG")
    assert shrunk(jpeg, 60, 95) == jpeg and shrunk(jpeg, 59, 95) != jpeg
    deep = Image.fromarray((np.arange(64 * 64, dtype=np.uint16) * 16).reshape(64, 64))
    grey = decoded(shrunk(saved(deep, "PNG"), 64, 95))[..., 0]
    assert np.abs(grey - (np.arange(64 * 64).reshape(64, 64) >> 4)).mean() < 2  # 16 bits are not clipped
    for image in (photo(1).convert("RGBA"), photo(1).convert("P"), photo(1).convert("L"), photo(1).convert("1")):
        assert Image.open(io.BytesIO(shrunk(saved(image, "PNG"), 64, 95))).mode == "RGB"
    with pytest.raises(tf.errors.OpError):
        shrunk(jpeg[:-300], 64, 95)


def test_wrong_arguments_of_pack_are_one_line_and_exit_2(photos, tmp_path, capsys):
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


@pytest.mark.parametrize("name", ["shard-00001.tfrecord", "shard-00001.index.npy", "shards.json"])
def test_verify_names_what_is_damaged(photos, tmp_path, capsys, name):
    pack(photos, tmp_path / "out", SMALL)
    assert cli.main(["pack", "--verify", str(tmp_path / "out")]) == 0
    content = bytearray((tmp_path / "out" / name).read_bytes())
    content[len(content) // 2] ^= 1
    (tmp_path / "out" / name).write_bytes(content)
    assert cli.main(["pack", "--verify", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert name in error and error.count("\n") == 1


def test_the_manifest_says_what_was_packed_and_no_path_of_this_machine(photos, tmp_path):
    pack(photos, tmp_path / "out", SMALL)
    text = (tmp_path / "out" / "shards.json").read_text()
    assert str(tmp_path) not in text and str(photos) not in text
    manifest = json.loads(text)
    assert manifest["images"] == 24 and manifest["source"]["files"] == 24
    assert manifest["settings"]["images_per_shard"] == 7
