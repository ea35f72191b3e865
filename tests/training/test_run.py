"""Tests that a run resumes with the config and images of its start, or names the difference."""

import json
import logging
import os
import shutil
import time
from pathlib import Path

import numpy as np
import pytest

from dupr_tf.comparing.record import RECORD_FILE
from dupr_tf.config import Config, load_config, parse_config
from dupr_tf.config.detector import DetectorConfig
from dupr_tf.data.images.fingerprint import HEAD, ROW, SAMPLED, Fingerprint
from dupr_tf.data.shards.index import MANIFEST, PROGRESS
from dupr_tf.detection.predict import RUN_FILE
from dupr_tf.environment import read_environments
from dupr_tf.errors import UserError
from dupr_tf.records import OWNERS, refuse_other_outputs
from dupr_tf.training.cluster import Cluster, check_shared
from dupr_tf.training.run import FORMAT, FORMAT_FILE, check, check_weights, differences, record, run_id
from dupr_tf.training.run_images import images_entry
from dupr_tf.weights.manifest import MANIFEST_FILE
from tests.refusals import refusal


def config(**train):
    return parse_config({"data": {"root": "/photos"}, "train": {"epochs": 2, **train}})


PATHS = ["/photos/a.jpg", "/photos/b/c.jpg"]


def write_photos(root: Path, count: int = 20) -> list[str]:
    """Writes files of different contents and sizes, and returns their paths."""
    paths = [root / f"{i // 7}" / f"{i:04d}.jpg" for i in range(count)]
    for i, path in enumerate(paths):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(bytes([i % 256]) * (1000 + i))
    return [str(path) for path in paths]


def started(tmp_path, count: int = 20) -> tuple[Path, Path, list[str]]:
    """Returns a recorded run, and the folder and the paths of its photos."""
    root, run = tmp_path / "photos", tmp_path / "run"
    paths = write_photos(root, count)
    record(run, config(), images_entry(str(root), paths))
    return run, root, paths


def change(path: str, content: bytes) -> None:
    """Rewrites a file with another modification time."""
    Path(path).write_bytes(content)
    os.utime(path, (1, 1))


@pytest.fixture
def run(tmp_path):
    record(tmp_path, config(), images_entry("/photos", PATHS))
    return tmp_path


def test_same_config_and_new_folder_are_accepted(run, tmp_path):
    check(run, config(log_every=7, checkpoint_every="10min"), images_entry("/photos", PATHS))
    check(tmp_path / "new", config(), images_entry("/photos", PATHS))


def test_run_without_its_config_is_not_resumed(run):
    (run / "config.yaml").unlink()
    assert check(run, config(), images_entry("/photos", PATHS)) == []  # the start was killed while it was recorded
    (run / "checkpoints").mkdir()
    (run / "checkpoints" / "ckpt-4.index").write_bytes(b"")
    error = refusal(check, run, config(seed=9), images_entry("/photos", PATHS), allow_change=True)
    assert error.problem.startswith(f"{run} has checkpoints, but no config.yaml")


def test_run_without_its_images_is_not_resumed(run):
    (run / "images.json").unlink()
    assert "images.json cannot be used" in refusal(check, run, config(), images_entry("/photos", PATHS)).problem


def test_run_of_the_other_kind_is_refused(run):
    other = config().model_copy(update={"detector": DetectorConfig()})
    for first, second, kind in ((config(), other, "pre-training"), (other, config(), "fine-tuning")):
        record(run, first, images_entry("/photos", PATHS))
        error = refusal(check, run, second, images_entry("/photos", PATHS), allow_change=True)
        assert (error.field, error.problem) == ("--output", f"{run} holds a {kind} run.")


@pytest.mark.parametrize("name", [RUN_FILE, MANIFEST, PROGRESS, MANIFEST_FILE, RECORD_FILE])
def test_output_of_another_command_is_refused(tmp_path, name):
    (tmp_path / name).write_text("{}")
    assert f"({name})" in refusal(check, tmp_path, config(), images_entry("/photos", PATHS)).problem
    refuse_other_outputs(tmp_path, OWNERS[name])
    (tmp_path / FORMAT_FILE).write_text("{}")
    assert refusal(refuse_other_outputs, tmp_path, OWNERS[name]).problem == f"{tmp_path} holds a run (format.json)."


@pytest.mark.parametrize("year, refused", [(1970, True), (1980, False), (2107, False), (2108, True)])
def test_clock_that_zip_archives_cannot_hold_is_refused(tmp_path, monkeypatch, year, refused):
    monkeypatch.setattr("dupr_tf.environment.time.localtime", lambda: time.struct_time((year, 1, 1, *[0] * 6)))
    if refused:
        assert str(year) in refusal(check, tmp_path, config(), images_entry("/photos", PATHS)).problem
    else:
        assert check(tmp_path, config(), images_entry("/photos", PATHS)) == []


def test_copied_and_moved_images_are_the_same(tmp_path):
    run, root, paths = started(tmp_path)
    shutil.copytree(root, tmp_path / "copy", copy_function=shutil.copyfile)  # with other modification times
    copies = [path.replace("photos", "copy") for path in paths]
    moved = config().model_copy(update={"data": config().data.model_copy(update={"root": str(tmp_path / "copy")})})
    assert check(run, moved, images_entry(str(tmp_path / "copy"), copies)) == []


def test_replaced_images_are_named(tmp_path):
    run, root, paths = started(tmp_path)
    change(paths[3], b"another photo")
    change(paths[5], b"x" * 1005)  # with the same size
    change(paths[6], Path(paths[6]).read_bytes())  # only the modification time differs
    error = refusal(check, run, config(), images_entry(str(root), paths))
    assert error.field == "data.root" and error.problem.startswith("2 of 20 images")
    assert "0003.jpg (was 1,003 bytes, is 13 bytes)" in error.problem and "0005.jpg" in error.problem
    assert "0006.jpg" not in error.problem and "--allow-change" in error.fix
    assert len(check(run, config(), images_entry(str(root), paths), allow_change=True)) == 1
    record(run, config(), images_entry(str(root), paths))
    assert check(run, config(), images_entry(str(root), paths)) == []


def test_removed_image_and_new_image_are_named(tmp_path):
    run, root, paths = started(tmp_path)
    Path(paths[0]).unlink()
    assert "is missing" in refusal(check, run, config(), images_entry(str(root), paths)).problem
    (root / "new.jpg").write_bytes(b"x")
    error = refusal(check, run, config(), images_entry(str(root), [*paths[1:], str(root / "new.jpg")]))
    assert error.problem.endswith("New ones are new.jpg.")


def test_sizes_decide_beyond_the_sample(tmp_path):
    run, root, paths = started(tmp_path, SAMPLED + 200)
    entry = images_entry(str(root), paths)
    unsampled = next(i for i in range(len(paths)) if i not in entry.files.heads)
    assert len(entry.files.heads) == SAMPLED
    change(paths[unsampled], b"")
    assert refusal(check, run, config(), images_entry(str(root), paths)).problem.startswith("1 of 1,200 images")


def test_only_first_bytes_are_compared(tmp_path):
    path = tmp_path / "a.jpg"
    path.write_bytes(b"a" * HEAD + b"b")
    before = Fingerprint([str(path)], tmp_path)
    rows, heads = before.rows, before.heads
    change(str(path), b"a" * HEAD + b"c")
    assert Fingerprint([str(path)], tmp_path).changes(rows, heads) == []
    change(str(path), b"b" + b"a" * HEAD)
    assert len(Fingerprint([str(path)], tmp_path).changes(rows, heads)) == 1


def test_splits_are_compared_separately(tmp_path):
    root = tmp_path / "photos"
    paths = write_photos(root)

    def entries():
        halves = {"train": paths[:10], "val": paths[10:]}
        return {split: images_entry(str(root), half) for split, half in halves.items()}

    record(tmp_path / "run", config(), entries())
    assert check(tmp_path / "run", config(), entries()) == []
    change(paths[12], b"x")
    assert "split val" in refusal(check, tmp_path / "run", config(), entries()).problem


def test_damaged_rows_of_images_are_named(tmp_path):
    run, root, paths = started(tmp_path)
    file = run / "images.bin"
    whole = file.read_bytes()
    assert len(whole) == 20 * ROW.itemsize
    for content in (whole[:-1], whole + b"x", b"", np.zeros(20, ROW).tobytes(), None):
        file.unlink() if content is None else file.write_bytes(content)
        assert str(file) in refusal(check, run, config(), images_entry(str(root), paths)).problem


def test_run_keeps_its_id(tmp_path):
    run, root, paths = started(tmp_path)
    first = run_id(run)
    record(run, config(), images_entry(str(root), paths))
    record(tmp_path / "other", config(), images_entry(str(root), paths))
    assert run_id(run) == first != run_id(tmp_path / "other") and run_id(tmp_path / "new") == ""


ODD = ["[" * 100_000, '{"count":1e999}', "[]", "null", '{"count": -1}', "\x00", '{"a":', '{"format": 3.0}', "9" * 9999]


@pytest.mark.parametrize("name", ["format.json", "images.json", "start.json", "cluster.json", "environment.json"])
def test_odd_record_gives_one_line(tmp_path, name):
    run, root, paths = started(tmp_path)
    for content in [*(text.encode() for text in ODD), b"\xff\xfe", None]:
        (run / name).unlink(missing_ok=True)
        if content is None:
            os.mkfifo(run / name)
        else:
            (run / name).write_bytes(content)
        if name == "environment.json":
            assert read_environments(run) == []
        elif name == "cluster.json":
            with pytest.raises(UserError):
                check_shared(run, Cluster(("a:1", "b:1"), 1), "token", patience=0)
        else:
            call = (check_weights, run, config(), None) if name == "start.json" else (check, run, config())
            error = refusal(*call, *([] if name == "start.json" else [images_entry(str(root), paths)]))
            assert str(run / name) in error.problem


@pytest.mark.parametrize(
    "changed, paths, fields, named",
    [
        ({"epochs": 3, "seed": 1}, PATHS, ("train.epochs", "train.seed"), "with 2, and the config now has 3"),
        ({}, PATHS[:1], ("data.root",), "with 2 images, and there are 1 now"),
        ({}, [PATHS[0], "/photos/b/d.jpg"], ("data.root",), "there are other images now"),
        ({}, PATHS[::-1], ("data.root",), "there are other images now"),
    ],
)
def test_differences_are_refused_unless_allowed(run, changed, paths, fields, named, caplog):
    with pytest.raises(UserError) as error:
        check(run, config(**changed), images_entry("/photos", paths))
    assert error.value.fields == fields and named in error.value.problem and "--allow-change" in error.value.fix
    caplog.set_level(logging.WARNING)
    check(run, config(**changed), images_entry("/photos", paths), allow_change=True)
    assert "changed within the run" in caplog.text
    record(run, config(**changed), images_entry("/photos", paths))
    check(run, config(**changed), images_entry("/photos", paths))


def test_flipped_bit_in_the_record_gives_no_traceback(run):
    """A flipped bit of the config may give another value, a broken file, or an allowed change; never a traceback."""
    for name in ("config.yaml", "images.json"):
        whole = (run / name).read_bytes()
        noticed = 0
        for bit in range(0, 8 * len(whole), 61):
            content = bytearray(whole)
            content[bit // 8] ^= 1 << bit % 8
            (run / name).write_bytes(content)
            try:
                check(run, config(), images_entry("/photos", PATHS))
            except UserError:
                noticed += 1
        assert noticed > 0.8 * len(range(0, 8 * len(whole), 61)), name
        (run / name).write_bytes(whole)


def test_damaged_record_is_named(run):
    (run / "images.json").write_text(json.dumps([1]))
    (run / "config.yaml").write_text("train: {epochs: [")
    with pytest.raises(UserError) as error:
        check(run, config(), images_entry("/photos", PATHS))
    config_error, images_error = error.value.errors
    assert str(run / "config.yaml") in config_error.problem and str(run / "images.json") in images_error.problem


def test_run_of_another_format_is_refused(run):
    for content in (f'{{"format": {FORMAT - 1}}}', f'{{"format": {FORMAT + 1}}}', "[]", "{"):
        (run / "format.json").write_text(content)
        with pytest.raises(UserError) as error:
            check(run, config(), images_entry("/photos", PATHS), allow_change=True)
        assert error.value.field in ("--output", None) and str(run) in error.value.problem
    (run / "format.json").unlink()  # like runs of version 0.1
    with pytest.raises(UserError):
        check(run, config(), images_entry("/photos", PATHS))


def test_terms_are_compared_by_meaning(run):
    def of_model(**model):
        return parse_config({"data": {"root": "/photos"}, "model": model})

    def fields(old, new):
        return [error.field for error in differences(old, new)]

    written = [{"kind": "image_contrast"}, {"kind": "patch_contrast", "level": "P4", "size": 14}]
    short = of_model(image_weights=[0, 0, 0, 1], patch_weights=[0, 0, 1, 0])
    assert fields(short, of_model(terms=written)) == []
    assert (
        fields(short, of_model(image_weights=[0, 0, 0, 1], patch_weights=[0, 0, 1, 0], roi_sizes=[1, 1, 14, 1])) == []
    )
    assert fields(short, of_model(image_weights=[0, 0, 0, 2], patch_weights=[0, 0, 1, 0])) == ["model.image_weights"]
    written[1]["size"] = 7
    assert fields(short, of_model(terms=written)) == ["model.terms.patch_P4.size"]


def test_only_listed_fields_may_change_within_a_run():
    default, other = Config(), load_config("tests/every_field.yaml")
    may_change = {
        "train.log_every", "train.checkpoint_every", "train.keep_checkpoints", "train.strategy", "train.worker_timeout",
        "train.start_timeout", "data.threads", "data.processes", "data.root",
    }  # fmt: skip
    changed = {
        f"{name}.{field}"
        for name, section in other
        if section is not None and name != "probing"
        for field in type(section).model_fields
        if getattr(section, field) != getattr(getattr(default, name), field)
    }
    assert {change.field for change in differences(default, other)} == changed - may_change
    assert {"views.draws", "train.seed", "model.temperature"} < changed
