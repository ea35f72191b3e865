"""Tests of checkpoints: a step's full state, named damage, fallback to the previous checkpoint, and full disks."""

import os
import random
import resource
import shutil
import subprocess
import types

import keras
import numpy as np
import pytest
import tensorflow as tf

from dupr_tf.errors import RunFailed, UserError
from dupr_tf.training.checkpoints import RunCheckpoints, find_damage, saved_checkpoints
from dupr_tf.training.optimizers import CoupledSGD
from tests.models.test_divergence import GOOD, make_model
from tests.refusals import refusal

FLIPS, CUTS = 200, 20


def stand_in(rows=64):
    """Returns a model with only what RunCheckpoints needs."""
    step = keras.Variable(0, dtype="int64", trainable=False)
    weights = [keras.Variable(np.zeros((rows, 16), np.float32)) for _ in range(3)]
    optimizer = types.SimpleNamespace(variables=[keras.Variable(np.zeros((rows, 16), np.float32), name="velocity")])
    named = {f"weight_{i}": weight for i, weight in enumerate(weights)} | {"step": step}
    return types.SimpleNamespace(
        variables=[*weights, step], optimizer=optimizer, step=step, named_variables=lambda: named
    )


def set_to(model, step):
    for i, variable in enumerate([*model.variables[:-1], *model.optimizer.variables]):
        variable.assign(np.random.default_rng([step, i]).normal(size=variable.shape))
    model.step.assign(step)


def values(model):
    return [v.numpy().copy() for v in (*model.variables, *model.optimizer.variables)]


def saved(folder, steps, keep=2, rows=64, run=None):
    model = stand_in(rows)
    checkpoints = RunCheckpoints(model, folder, keep, run)
    for step in steps:
        set_to(model, step)
        checkpoints.save()
    return model, checkpoints


def restored(folder, rows=64):
    """Returns (step, values) that a new process would start with."""
    model = stand_in(rows)
    return RunCheckpoints(model, folder).restore(), values(model)


def of_step(step):
    model = stand_in()
    set_to(model, step)
    return values(model)


def assert_equal(received, expected):
    for a, b in zip(received, expected, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("scaled", [False, True], ids=["float32", "loss scale"])
def test_checkpoint_holds_all_variables_of_a_step(tmp_path, scaled):
    optimizer = CoupledSGD(0.05)
    model = make_model(optimizer=keras.optimizers.LossScaleOptimizer(optimizer) if scaled else optimizer)
    touched = tf.function(model.train_step, autograph=False).get_concrete_function(GOOD).graph.variables
    kept = {id(v) for v in RunCheckpoints(model, tmp_path).variables.values()}
    assert len(touched) > 50
    assert [v.name for v in touched if id(v) not in kept] == []


def test_newest_checkpoints_are_kept_and_the_last_restored(tmp_path):
    saved(tmp_path, [1, 2, 5, 11], keep=3)
    assert [path.name for path in saved_checkpoints(tmp_path)] == ["ckpt-11", "ckpt-5", "ckpt-2"]
    step, received = restored(tmp_path)
    assert step == 11
    assert_equal(received, of_step(11))
    assert subprocess.run(["sha256sum", "-c", "ckpt-11.sha256"], cwd=tmp_path, capture_output=True).returncode == 0


def test_each_step_is_written_once(tmp_path):
    _, checkpoints = saved(tmp_path, [3])
    before = (tmp_path / "ckpt-3.index").stat().st_mtime_ns
    checkpoints.save()
    assert (tmp_path / "ckpt-3.index").stat().st_mtime_ns == before


def test_flipped_bits_and_truncated_files_are_named_and_skipped(tmp_path, caplog):
    saved(tmp_path, [1, 2])
    draw, expected = random.Random(0), of_step(1)
    files = sorted(tmp_path.glob("ckpt-2.*"))
    assert [f.suffix[:5] for f in files] == [".data", ".inde", ".sha2"]
    for number in range(FLIPS + CUTS):
        file = draw.choice(files)
        whole = file.read_bytes()
        content = bytearray(whole)
        if number < FLIPS:
            content[draw.randrange(len(whole))] ^= 1 << draw.randrange(8)
        else:
            del content[draw.randrange(len(whole)) :]
        file.write_bytes(content)
        caplog.clear()
        step, received = restored(tmp_path)
        assert step == 1 and file.name in caplog.text, (number, file.name)
        assert_equal(received, expected)
        file.write_bytes(whole)
    assert restored(tmp_path)[0] == 2


def test_missing_file_is_named(tmp_path):
    saved(tmp_path, [1, 2])
    for ending in ("index", "data-00000-of-00001"):
        file = tmp_path / f"ckpt-2.{ending}"
        whole = file.read_bytes()
        file.unlink()
        assert file.name in find_damage(tmp_path / "ckpt-2")
        assert restored(tmp_path)[0] == 1
        file.write_bytes(whole)


def test_damaged_checkpoint_is_replaced_at_its_step(tmp_path):
    saved(tmp_path, [1, 4])
    (tmp_path / "ckpt-4.index").write_bytes(b"")
    model = stand_in()
    checkpoints = RunCheckpoints(model, tmp_path)
    assert checkpoints.restore() == 1
    set_to(model, 3)
    checkpoints.save()
    assert [path.name for path in saved_checkpoints(tmp_path)] == ["ckpt-3", "ckpt-1"]  # 4 must not outlive 3
    set_to(model, 4)
    checkpoints.save()
    assert restored(tmp_path)[0] == 4


def test_folder_with_only_damaged_checkpoints_is_refused(tmp_path):
    assert restored(tmp_path / "new")[0] == 0
    saved(tmp_path, [1])
    (tmp_path / "ckpt-1.index").write_bytes(b"x")
    with pytest.raises(UserError, match="1 checkpoint"):
        restored(tmp_path)


def test_checkpoint_of_another_network_is_refused(tmp_path):
    saved(tmp_path, [1])
    with pytest.raises(UserError, match="another model"):
        restored(tmp_path, rows=65)


def test_files_of_a_killed_save_are_removed(tmp_path):
    saved(tmp_path, [1])
    (tmp_path / "ckpt-2_temp").mkdir()
    (tmp_path / "ckpt-2_temp" / "part-0").write_bytes(b"x")
    (tmp_path / "ckpt-2.data-00000-of-00001").write_bytes(b"x")
    (tmp_path / "ckpt-3.index").write_bytes(b"half")  # killed while TensorFlow wrote the index: no digests yet
    (tmp_path / "ckpt-3.data-00000-of-00001").write_bytes(b"x")
    before = sorted(tmp_path.rglob("*"))
    model = stand_in()
    checkpoints = RunCheckpoints(model, tmp_path)
    assert checkpoints.restore() == 1 and sorted(tmp_path.rglob("*")) == before
    set_to(model, 2)
    checkpoints.save()
    assert {path.name.partition(".")[0] for path in tmp_path.iterdir()} == {"ckpt-1", "ckpt-2"}
    assert restored(tmp_path)[0] == 2


def test_checkpoint_of_earlier_versions_is_read(tmp_path):
    model, checkpoints = saved(tmp_path / "other", [7])
    earlier = tf.train.Checkpoint(variables=checkpoints.variables, extra=tf.Variable("{}"))
    tf.train.CheckpointManager(earlier, str(tmp_path), max_to_keep=2).save(checkpoint_number=7)
    step, received = restored(tmp_path)
    assert step == 7
    assert_equal(received, values(model))


def check_failed_save(folder, model, checkpoints, rows):
    size = 4 * rows * 16 * 4 + 8
    set_to(model, 2)
    with pytest.raises(RunFailed, match=rf"checkpoint of step 2 .*{size:,} bytes.* step 1 "):
        checkpoints.save()
    assert [path.name for path in folder.iterdir() if not path.name.startswith("ckpt-1.")] == []
    assert restored(folder, rows)[0] == 1


def test_failed_save_names_its_size_and_keeps_the_previous(tmp_path):
    rows = 1000
    model, checkpoints = saved(tmp_path, [1], rows=rows)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        check_failed_save(tmp_path, model, checkpoints, rows)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert checkpoints.save().name == "ckpt-2"


@pytest.fixture
def small_disk(tmp_path):
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=400k", "none", str(folder)], capture_output=True)
    if mounted.returncode:
        pytest.skip("a disk of 400 kB cannot be mounted here (needs root)")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_full_disk_names_needed_space_and_keeps_the_previous(small_disk):
    rows = 1000
    model, checkpoints = saved(small_disk, [1], rows=rows)  # each takes 256 kB, so a second one does not fit
    check_failed_save(small_disk, model, checkpoints, rows)


def test_restore_step_refuses_damaged_and_missing_checkpoints(tmp_path):
    saved(tmp_path, [1, 2])
    model = stand_in()
    checkpoints = RunCheckpoints(model, tmp_path)
    checkpoints.restore_step(2)
    assert_equal(values(model), of_step(2))
    file = next(tmp_path.glob("ckpt-2.data-*"))
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    for step, named in ((2, file.name), (3, "ckpt-3")):
        with pytest.raises(UserError) as error:
            checkpoints.restore_step(step)
        assert error.value.field == "--output" and named in error.value.problem


@pytest.mark.parametrize(
    "name",
    ["[exp1]", "[", "{a,b}", "a*b?", "%d%s", "#$HOME", " a b ", "a\nb", "'\"", "é日本", "x" * 200, "\udce9"],
    ids=ascii,
)
def test_folder_of_any_name_is_written_and_restored(tmp_path, name):
    folder = tmp_path / name
    folder.mkdir()
    saved(folder / "checkpoints", [1, 2, 3])
    step, received = restored(folder / "checkpoints")
    assert step == 3
    assert_equal(received, of_step(3))
    assert {path.name.partition(".")[0] for path in (folder / "checkpoints").iterdir()} == {"ckpt-2", "ckpt-3"}


def test_checkpoint_of_another_run_is_refused(tmp_path):
    saved(tmp_path, [1, 2], run="a")
    before = sorted(tmp_path.iterdir())
    for name in ("b", ""):  # "" is a new run, which has no checkpoints
        refusal(RunCheckpoints(stand_in(), tmp_path, run=name).restore)
    refusal(RunCheckpoints(stand_in(), tmp_path, run="b").restore_step, 2)
    assert sorted(tmp_path.iterdir()) == before
    for name in ("a", None):
        assert RunCheckpoints(stand_in(), tmp_path, run=name).restore() == 2


def test_checkpoint_without_an_id_is_accepted(tmp_path):
    saved(tmp_path, [1])
    assert RunCheckpoints(stand_in(), tmp_path, run="a").restore() == 1


def test_files_named_almost_like_checkpoints_are_kept(tmp_path):
    saved(tmp_path, [1])
    odd = ["ckpt-².index", "ckpt-007.index", "ckpt--1.index", "ckpt-.index", "ckpt-" + "9" * 99 + ".index", "a_temp"]
    for name in [*odd, "checkpoint"]:
        (tmp_path / name).write_text('model_checkpoint_path: "/etc/passwd"')
    (tmp_path / "ckpt-².data-00000-of-00001").mkdir()
    (tmp_path / "ckpt-5_temp").symlink_to("/")
    model = stand_in()
    checkpoints = RunCheckpoints(model, tmp_path)
    assert checkpoints.restore() == 1
    set_to(model, 2)
    checkpoints.save()
    assert restored(tmp_path)[0] == 2
    assert all((tmp_path / name).exists() for name in [*odd, "checkpoint"])


@pytest.mark.parametrize("ending", ["index", "sha256", "data-00000-of-00001"])
@pytest.mark.parametrize("kind", ["folder", "pipe", "loop"])
def test_special_file_in_place_of_a_checkpoint_is_refused(tmp_path, ending, kind):
    saved(tmp_path, [1])
    path = tmp_path / f"ckpt-2.{ending}"
    {"folder": path.mkdir, "pipe": lambda: os.mkfifo(path), "loop": lambda: path.symlink_to(path.name)}[kind]()
    assert path.name in refusal(RunCheckpoints(stand_in(), tmp_path).restore).problem


def test_linked_checkpoints_are_restored(tmp_path):
    saved(tmp_path / "elsewhere", [1])
    (tmp_path / "here").mkdir()
    for path in (tmp_path / "elsewhere").iterdir():
        (tmp_path / "here" / path.name).symlink_to(path)
    assert restored(tmp_path / "here")[0] == 1
    (tmp_path / "all").symlink_to(tmp_path / "elsewhere")
    assert restored(tmp_path / "all")[0] == 1


@pytest.mark.parametrize(
    "state", ["[]", "[" * 100_000, '{"sums": 1}', '{"sums": {"loss": [1]}}', '{"sums":{"a":["x",1]}}']
)
def test_unexpected_contents_count_as_damage(tmp_path, state):
    saved(tmp_path, [1])
    model, checkpoints = saved(tmp_path / "other", [])
    set_to(model, 2)
    checkpoints._extra.assign(state)
    checkpoints.checkpoint.write(str(tmp_path / "ckpt-2"))
    assert restored(tmp_path)[0] == 1


def test_save_to_a_removed_folder_gives_one_line(tmp_path):
    folder = tmp_path / "run" / "checkpoints"
    folder.parent.mkdir()
    model, checkpoints = saved(folder, [1])
    shutil.rmtree(folder.parent)
    set_to(model, 2)
    with pytest.raises(RunFailed, match="step 2"):
        checkpoints.save()
    assert not folder.parent.exists()
    folder.parent.write_text("x")
    with pytest.raises(RunFailed, match="step 2"):
        checkpoints.save()
    refusal(RunCheckpoints(stand_in(), tmp_path / "run").restore)


def test_save_to_a_read_only_folder_gives_one_line(small_disk):
    model, checkpoints = saved(small_disk, [1])
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    set_to(model, 2)
    with pytest.raises(RunFailed, match="step 2") as error:
        checkpoints.save()
    assert "\n" not in str(error.value) and restored(small_disk)[0] == 1
