"""Addresses in place of paths: what `RemotePath` and the writers of whole files do, on TensorFlow's `ram://`."""

import ast
import hashlib
import io
import subprocess
import sys
import time
from pathlib import Path

import pytest

from dupr_tf import files, remote_path
from dupr_tf.cli import main
from dupr_tf.errors import UserError
from dupr_tf.files import GrowingFile, local_copy, room_at, write_whole, written_locally
from dupr_tf.remote_path import RemotePath, are_files, as_path, is_remote
from tests.refusals import refusal

PACKAGE = Path(remote_path.__file__).parent


@pytest.fixture
def folder(request):
    """An empty folder of this test's own; `ram://` is one file system for the whole process."""
    path = as_path(f"ram://{request.node.name.replace('[', '-').replace('/', '-').rstrip(']')}")
    path.mkdir(parents=True, exist_ok=True)
    return path


def test_local_paths_stay_pathlib_and_never_load_tensorflow():
    code = (
        "import sys; from pathlib import Path; from dupr_tf.remote_path import as_path, absolute\n"
        "assert type(as_path('a/b')) is type(Path()) and as_path('file:///tmp/x') == Path('/tmp/x')\n"
        "assert absolute('a').endswith('/a') and absolute('ram://a//b/') == 'ram://a/b'\n"
        "assert as_path('ram://a/b').name == 'b' and 'tensorflow' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=PACKAGE.parent)
    assert done.returncode == 0, done.stderr


def test_addresses_are_taken_apart_as_paths_are():
    path = as_path("GS://bucket//photos/./x/../day 1/a.tar.gz")
    assert str(path) == "gs://bucket/photos/day 1/a.tar.gz" and path == RemotePath(str(path)) != str(path)
    assert (path.name, path.stem, path.suffix) == ("a.tar.gz", "a.tar", ".gz")
    assert str(path.parent) == "gs://bucket/photos/day 1" and str(path.parents[2]) == "gs://bucket"
    assert str(path.with_suffix(".b")) == "gs://bucket/photos/day 1/a.tar.b"
    assert str(path.with_name("c")) == "gs://bucket/photos/day 1/c"
    assert path.relative_to(as_path("gs://bucket/photos")).as_posix() == "day 1/a.tar.gz"
    assert path.is_relative_to("gs://bucket") and not path.is_relative_to("s3://bucket")
    assert not (as_path("gs://bucket/a") / "../../../x").is_relative_to("gs://bucket/a")
    assert path.parts[:2] == ("gs://", "bucket") and sorted([path, path.parent])[0] == path.parent
    assert is_remote("s3://a") and is_remote(path) and not is_remote("tfds:name") and not is_remote("/a")
    assert len({path, as_path(str(path))}) == 1


def test_what_knows_only_local_files_fails_instead_of_writing_beside():
    for misuse in (open, Path):
        with pytest.raises(TypeError):
            misuse(as_path("ram://a/b"))
    assert "gs:/b/c" in refusal(as_path, Path("gs://b/c")).problem


def test_the_package_makes_no_pathlib_path_of_what_a_user_gives():
    """`Path(x)` takes a slash from an address; only paths of our own and of the machine may be made that way."""
    ours = {
        "reporting/page.py", "reporting/folders.py", "reporting/prediction.py", "files.py", "remote_path.py",
        "weights/torch_export.py", "weights/torch_process.py", "weights/environment.py", "weights/detectron2_io.py",
        "data/pack.py", "commands/reference.py", "commands/report_runs.py", "commands/probe.py", "commands/train.py",
        "probing/view_sheet.py", "probing/backbones.py",
    }  # fmt: skip
    found = set()
    for file in PACKAGE.rglob("*.py"):
        calls = [node for node in ast.walk(ast.parse(file.read_text())) if isinstance(node, ast.Call)]
        if any(isinstance(call.func, ast.Name) and call.func.id == "Path" for call in calls):
            found.add(file.relative_to(PACKAGE).as_posix())
    assert found <= ours, found - ours


def test_a_file_is_written_read_replaced_and_removed(folder):
    path = folder / "a" / "b.txt"
    assert not path.exists() and not path.is_dir()
    write_whole(path, "first, and longer")
    write_whole(path, "ü\nsecond\n")
    assert path.read_text() == "ü\nsecond\n" and path.stat().st_size == 10 and path.is_file()
    with path.open("rb") as file:
        assert file.readline() == "ü\n".encode() and file.seek(0, io.SEEK_END) == 10
    with path.open(encoding="ascii", errors="backslashreplace") as file:
        assert file.readline() == "\\xc3\\xbc\n"
    with path.open("rb") as file:
        assert hashlib.file_digest(file, "sha256").digest() == hashlib.sha256("ü\nsecond\n".encode()).digest()
    assert path.read_range(3, 6) == b"second"
    write_whole(folder / "c", b"third")
    (folder / "c").replace(path)
    assert path.read_bytes() == b"third" and not (folder / "c").exists()
    path.unlink()
    path.unlink(missing_ok=True)
    for missing in (path.unlink, path.read_bytes, path.stat):
        with pytest.raises(FileNotFoundError, match=r"b\.txt"):
            missing()
    with pytest.raises(IsADirectoryError):
        folder.read_bytes()
    assert refusal(path.open, "a").field == "mode"


def test_folders_are_listed_searched_and_asked_once(folder, monkeypatch):
    for name in ("x.txt", "sub/y.txt", "sub/deep/z.txt", "other/y.md"):
        write_whole(folder / name, name)
    assert [p.name for p in folder.iterdir()] == ["other", "sub", "x.txt"]
    assert [p.relative_to(folder).as_posix() for p in folder.glob("*/y.*")] == ["other/y.md", "sub/y.txt"]
    below = [p.relative_to(folder).as_posix() for p in folder.rglob("*.txt")]
    assert sorted(below) == ["sub/deep/z.txt", "sub/y.txt", "x.txt"]
    assert list((folder / "none").glob("*")) == [] == list((folder / "none").rglob("*"))
    assert [p.name for p in (folder / "su").glob("*")] == []
    for name in ("su/a.txt", "su/b/c.txt"):
        write_whole(folder / name, name)
    assert [p.name for p in (folder / "su").iterdir()] == ["a.txt", "b"]  # and not `b` of `sub`
    (folder / "su").rmtree()
    assert not (folder / "su/b/c.txt").exists() and (folder / "sub/y.txt").exists()
    listed, names = [], RemotePath.names
    monkeypatch.setattr(
        RemotePath, "names", lambda self, missing_ok=False: listed.append(self) or names(self, missing_ok)
    )
    asked = [folder / "sub/y.txt", folder / "sub/no.txt", folder / "nowhere/a", Path(__file__), folder / "x.txt"]
    assert are_files(asked) == [True, False, False, True, True] and len(listed) == 3


def test_local_files_stand_in_where_a_library_needs_them(folder):
    write_whole(folder / "a.bin", b"abc")
    with local_copy(folder / "a.bin") as local:
        assert local.name == "a.bin" and local.read_bytes() == b"abc"
    assert not local.exists()
    for error in (lambda at: ValueError(f"{at} is bad."), lambda at: UserError("x", f"{at} is bad.", f"Mend {at}.")):
        with pytest.raises(ValueError) as caught, local_copy(folder / "a.bin") as at:
            raise error(at)
        assert (type(caught.value), str(caught.value)) == (type(error(0)), str(error(folder / "a.bin")))
    with written_locally(folder / "tree", last="manifest.json") as local:
        (local / "z").mkdir(parents=True)
        for name in ("manifest.json", "z/last.txt", "first.txt"):
            (local / name).write_text(name)
    assert (folder / "tree/z/last.txt").read_text() == "z/last.txt" and room_at(folder) is None
    with pytest.raises(ValueError, match="cut"), written_locally(folder / "never") as local:
        local.write_text("half")
        raise ValueError("cut")
    assert not (folder / "never").exists()


def test_the_manifest_is_uploaded_last(folder, monkeypatch):
    sent = []
    opened = RemotePath.open
    monkeypatch.setattr(RemotePath, "open", lambda path, mode: sent.append(path.name) or opened(path, mode))
    with written_locally(folder / "tree", last="manifest.json") as local:
        local.mkdir()
        for name in ("a", "manifest.json", "z"):
            (local / name).write_text(name)
    assert sent == ["a", "z", "manifest.json"]


def test_lines_are_uploaded_now_and_then_and_when_asked(folder, monkeypatch, tmp_path):
    lines = GrowingFile(folder / "m.jsonl")
    lines.add("1\n")
    assert not (folder / "m.jsonl").exists()
    lines.flush()
    lines = GrowingFile(folder / "m.jsonl")
    monkeypatch.setattr(files, "SEND_EVERY", 0.0)
    lines.add("2\n")
    assert (folder / "m.jsonl").read_text() == "1\n2\n"
    GrowingFile(tmp_path / "m").add("1\n")
    assert (tmp_path / "m").read_text() == "1\n"


@pytest.mark.parametrize(
    ("address", "fix"),
    [("gss://bucket/photos", "Did you mean gs://bucket/photos?"), ("s3://bucket/photos", "tensorflow-io")],
)
def test_unknown_scheme_is_refused_in_one_line(address, fix, capsys, tmp_path):
    assert main(["pretrain", "configs/demo.yaml", "--data", address, "--output", str(tmp_path / "run")]) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "error" in line]
    assert "file://, gs://, ram://" in line and address in line and fix in line


def test_silent_host_is_given_up_after_a_while(monkeypatch):
    import tensorflow as tf

    monkeypatch.setattr(remote_path, "PATIENCE", 0.2)
    monkeypatch.setattr(tf.io.gfile, "stat", lambda _: time.sleep(3))
    started = time.monotonic()
    problem = refusal(as_path("ram://silent/x").exists).problem
    assert "ram://silent/x" in problem and "0.2 s" in problem
    assert time.monotonic() - started < 2


def test_refused_access_is_one_line_with_the_address(monkeypatch):
    import tensorflow as tf

    def refused(_):
        raise tf.errors.PermissionDeniedError(None, None, "no\n credentials")

    monkeypatch.setattr(tf.io.gfile, "stat", refused)
    error = refusal(as_path("ram://x/y").exists)
    assert "ram://x/y" in error.problem and "no credentials" in error.problem
    assert isinstance(error, OSError) and error.strerror == str(error)  # as those who can go on without it take it
