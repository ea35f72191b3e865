"""Tests that files are written completely or not at all, and that paths are not URLs."""

import hashlib
from pathlib import Path

import pytest

from dupr_tf.commands.checks import expand_paths
from dupr_tf.commands.probe import Knn, Probe
from dupr_tf.config import load_config
from dupr_tf.errors import UserErrors
from dupr_tf.files import draw_pictures, local_path, publishing, sha256_of, write_all, write_whole
from tests.refusals import refusal


@pytest.mark.parametrize(
    "address", ["gs://bucket/photos", "s3://a", "hdfs://host:8020/x", "file:///a", "GS://b", "ram://x"]
)
def test_urls_are_refused(address):
    error = refusal(local_path, address, "--data")
    assert error.field == "--data" and address.rstrip("/a") in error.problem
    assert refusal(local_path, Path(address)).fix == error.fix  # `Path` removes a slash


@pytest.mark.parametrize("path", ["a/b", "/a/b", "C:/a", "tfds:coco/2017:train", "a:b", "runs/gs://x", "."])
def test_paths_are_accepted(path):
    assert local_path(path) == Path(path)


def test_every_path_of_a_command_is_checked():
    command = Probe(Knn(("random", "gs://a/run"), Path("s3://b/photos"), Path("runs/out")))
    with pytest.raises(UserErrors) as caught:
        expand_paths(command)
    assert [problem.split()[0] for problem in (one.problem for one in caught.value.errors)] == [
        "gs://a/run",
        "s3://b/photos",
    ]
    expand_paths(Probe(Knn(("random",), Path("photos"))))


@pytest.mark.parametrize("field", ["data.root", "probing.data"])
def test_urls_in_a_config_are_refused(field):
    assert refusal(load_config, None, {field: "gs://bucket/x"}).field == field


def test_files_are_replaced_completely(tmp_path):
    write_whole(tmp_path / "a/b.txt", "é")
    write_whole(tmp_path / "a/b.txt", b"2")
    assert (tmp_path / "a/b.txt").read_bytes() == b"2" and len(list((tmp_path / "a").iterdir())) == 1
    assert sha256_of(tmp_path / "a/b.txt") == hashlib.sha256(b"2").hexdigest()


def test_several_files_are_replaced_together_or_none(tmp_path):
    old, blocked = tmp_path / "old.txt", tmp_path / "blocked.txt"
    old.write_text("old")
    (tmp_path / "blocked.txt.tmp").mkdir()  # makes the file impossible to write
    with pytest.raises(OSError):
        write_all({old: "new", blocked: "x"})
    assert old.read_text() == "old" and not blocked.exists()


def test_published_file_appears_when_it_is_complete(tmp_path):
    path = tmp_path / "file"
    with publishing(path, "w", encoding="utf-8") as file:
        file.write("new")
        assert not path.exists()
    with pytest.raises(KeyboardInterrupt), publishing(path, "wb") as file:
        file.write(b"half")
        raise KeyboardInterrupt
    assert path.read_text() == "new" and list(tmp_path.iterdir()) == [path]


def test_failed_picture_gives_a_warning(tmp_path, caplog):
    def fail(path):
        raise ValueError("an odd\nchunk")

    draw_pictures({"bad.png": fail, "good.png": lambda path: path.write_text("drawn")}, tmp_path)
    assert (tmp_path / "good.png").read_text() == "drawn"
    (record,) = caplog.records
    assert record.levelname == "WARNING" and "bad.png" in record.getMessage() and "\n" not in record.getMessage()
