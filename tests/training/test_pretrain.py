"""Tests of a whole run at toy size: the files it writes, and that it resumes bit-identically."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time

import keras
import numpy as np
import pytest
import tensorflow as tf

from dupr_tf.cli import main
from dupr_tf.config import dump_config, load_config, parse_config
from dupr_tf.data.sample import write_sample
from dupr_tf.errors import UserError
from dupr_tf.training.checkpoints import saved_checkpoints, step_of
from dupr_tf.training.health import CheckBadImages
from dupr_tf.training.loop import stretches
from dupr_tf.training.optimizers import Cosine, Milestones, planned_schedule
from dupr_tf.training.pretrain import pretrain
from dupr_tf.training.run import differences
from tests import oracles_step
from tests.refusals import refusal


def tiny(**train):
    """Has only two losses, since each start spends its time tracing them."""
    return parse_config({
        "data": {"image_size": 32},
        "views": {"min_overlap": 8},
        "model": {"backbone": "resnet18", "width": 0.125, "roi_sizes": [8, 4, 2, 1], "bank_size": 70, "momentum": 0.9,
                  "embedding_dim": 16, "image_weights": [0, 0, 0, 0.7], "patch_weights": [0, 0, 0, 0.5]},
        "optimizer": {"learning_rate": 0.05},
        "train": {"batch_size": 8, "micro_batches": 2, "epochs": 2, "log_every": 1, "checkpoint_every": 2, **train},
    })  # fmt: skip


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sample")
    write_sample(folder, train=1, val=1, unlabeled=24, seed=3)
    return folder / "unlabeled"


@pytest.fixture(scope="module")
def whole_run(photos, tmp_path_factory):
    run = tmp_path_factory.mktemp("runs") / "whole"
    pretrain(tiny(), run, photos)
    return run


def steps_without_a_network(logs_of_step):
    """Returns a `fit` that calls the callbacks for each step with `logs_of_step(step)`, and traces nothing."""

    def fit(model, data, callbacks, initial_epoch, epochs, steps_per_epoch, **settings):
        for callback in callbacks:
            callback.set_model(model)
        for batch in range((epochs - initial_epoch) * steps_per_epoch):
            for callback in callbacks:
                callback.on_train_batch_begin(batch)
            model.step.assign_add(1)
            logs = logs_of_step(int(model.step))
            for callback in callbacks:
                callback.on_train_batch_end(batch, logs)

    return fit


def metrics(run):
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def losses(run):
    """Returns [(step, loss as hex)]."""
    return [(line["step"], line["loss"].hex()) for line in metrics(run)]


def test_run_leaves_the_documented_files(whole_run):
    assert sorted(p.name for p in whole_run.iterdir()) == [
        "backbone.keras", "checkpoints", "config.yaml", "environment.json", "format.json", "images.bin",
        "images.json", "metrics.jsonl", "schedule.json", "tensorboard",
    ]  # fmt: skip
    lines = metrics(whole_run)
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 5, 6]  # 24 photos, batches of 8, 2 epochs
    expected = {"step", "epoch", "loss", "valid_share", "learning_rate", "images_per_second", "step_share"}
    expected |= {"batch_size"}
    weights = {"image_P5": 0.7, "patch_P5": 0.5}
    for name in weights:
        expected |= {f"{what}/{name}" for what in ("loss", "accuracy", "positive", "negative", "std")}
    expected |= {"match/patch_P5"}
    assert set(lines[0]) == expected
    for line in lines:
        assert line["loss"] == pytest.approx(sum(w * line[f"loss/{n}"] for n, w in weights.items()), rel=1e-5)
        assert 0 <= line["valid_share"] <= 1
        assert 0 < line["step_share"] <= 1
    assert lines[0]["learning_rate"] > lines[-1]["learning_rate"]
    assert any((whole_run / "tensorboard").iterdir())


def test_backbone_has_learnt_and_loads(whole_run):
    from dupr_tf.models import build_backbone

    backbone = keras.saving.load_model(whole_run / "backbone.keras")
    keras.utils.set_random_seed(0)
    fresh = build_backbone("resnet18", width=0.125)
    moved = [np.abs(a - b).max() for a, b in zip(backbone.get_weights(), fresh.get_weights(), strict=True)]
    assert min(moved) > 0  # every weight and every moving statistic


@pytest.mark.slow
def test_same_command_gives_the_same_losses(whole_run, photos, tmp_path):
    pretrain(tiny(), tmp_path / "again", photos)
    assert losses(tmp_path / "again") == losses(whole_run)


def test_rerun_of_a_finished_run_changes_nothing(whole_run, photos):
    before = (whole_run / "metrics.jsonl").read_text()
    assert pretrain(tiny(), whole_run, photos).step == 6
    assert (whole_run / "metrics.jsonl").read_text() == before


@pytest.fixture
def command(photos, tmp_path):
    """Returns the command line of the toy run into tmp_path/run."""
    config = tmp_path / "c.yaml"
    config.write_text(dump_config(tiny()))
    cli = [sys.executable, "-m", "dupr_tf.cli", "pretrain", str(config)]
    return [*cli, "--data", str(photos), "--output", str(tmp_path / "run")]


def started(command, run, steps):
    """Returns the process of a run once it has logged some steps."""
    process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
    deadline = time.time() + 300
    while time.time() < deadline and process.poll() is None and len(_steps(run)) < steps:
        time.sleep(0.02)
    return process


def assert_resumes_as_the_whole_run(command, run, whole_run):
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert losses(run) == losses(whole_run)
    ours, theirs = (keras.saving.load_model(r / "backbone.keras").get_weights() for r in (run, whole_run))
    for a, b in zip(ours, theirs, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.slow  # test_kills.py tests it too
def test_killed_run_resumes_bit_identically(whole_run, command, tmp_path):
    run = tmp_path / "run"
    process = started(command, run, 3)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    assert len(_steps(run)) >= 3, "the run never reached step 3"
    assert_resumes_as_the_whole_run(command, run, whole_run)


def test_signal_ends_the_run_with_a_checkpoint(command, tmp_path, monkeypatch, capsys):
    """The signal is sent three times within the first step; this process is the run."""

    class Send(CheckBadImages):
        def on_step(self, step, logs):
            for _ in range(3):
                os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr("dupr_tf.training.pretrain.CheckBadImages", Send)
    monkeypatch.setattr(keras.Model, "fit", steps_without_a_network(lambda step: {"loss": 1.0, "learning_rate": 0.1}))
    assert main(command[3:]) == 143
    assert "stopped by SIGTERM. Checkpoint 1 is saved." in capsys.readouterr().err
    assert [step_of(path) for path in saved_checkpoints(tmp_path / "run" / "checkpoints")] == [1]
    assert len(_steps(tmp_path / "run")) == 1 and not (tmp_path / "run" / "backbone.keras").exists()
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_run_that_becomes_shorter_keeps_its_step(command, whole_run, tmp_path, capsys, caplog):
    shutil.copytree(whole_run, tmp_path / "run")
    assert main([*command[3:], "--train.epochs", "1", "--allow-change"]) == 0
    assert f"step 6: {tmp_path / 'run' / 'backbone.keras'}" in capsys.readouterr().out
    assert "has taken 6 steps already, and the config now has 3" in caplog.text


@pytest.mark.slow
@pytest.mark.parametrize("number, code", [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_signalled_process_resumes_bit_identically(whole_run, command, tmp_path, number, code):
    run = tmp_path / "run"
    process = started(command, run, 1)
    for _ in range(3):
        process.send_signal(number)
    sent = time.monotonic()
    _, stderr = process.communicate(timeout=60)
    assert time.monotonic() - sent < 30
    step = len(_steps(run))
    assert process.returncode == code
    assert f"stopped by {number.name}. Checkpoint {step} is saved." in stderr and "Traceback" not in stderr
    assert (run / "checkpoints" / f"ckpt-{step}.index").exists() and 1 <= step < 6
    assert not (run / "backbone.keras").exists()
    assert_resumes_as_the_whole_run(command, run, whole_run)


def _steps(run):
    path = run / "metrics.jsonl"
    return path.read_text().splitlines() if path.exists() else []


@pytest.mark.slow  # test_checkpoints.py damages a checkpoint without a run
def test_run_resumes_from_the_checkpoint_before_a_damaged_one(photos, tmp_path, caplog, whole_run):
    run = tmp_path / "damaged"
    shutil.copytree(whole_run, run)
    newest = max((run / "checkpoints").glob("*.data-*"), key=lambda p: int(p.name.split("-")[1].split(".")[0]))
    content = bytearray(newest.read_bytes())
    content[len(content) // 2] ^= 1
    newest.write_bytes(content)
    pretrain(tiny(), run, photos)
    assert "ckpt-6 cannot be used" in caplog.text
    assert losses(run) == losses(whole_run)


def test_changed_config_is_refused_with_the_difference(whole_run, photos):
    with pytest.raises(UserError) as error:
        pretrain(tiny(epochs=3), whole_run, photos)
    assert error.value.fields == ("train.epochs",)
    assert differences(tiny(), tiny(log_every=7, checkpoint_every="10min")) == []


@pytest.mark.slow
def test_changed_config_is_used_if_allowed(whole_run, photos, tmp_path, caplog):
    run = tmp_path / "run"
    shutil.copytree(whole_run, run)
    assert pretrain(tiny(epochs=3, max_steps=7), run, photos, allow_change=True).step == 7
    assert "changed within the run: train.epochs" in caplog.text
    assert losses(run)[:6] == losses(whole_run) and len(losses(run)) == 7
    assert load_config(run / "config.yaml").train.max_steps == 7


def test_change_that_needs_steps_is_refused_without_steps_left(whole_run, photos, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(whole_run, run)
    values = tiny().model_dump(mode="json", exclude_none=True)
    values["model"]["temperature"], values["optimizer"]["learning_rate"] = 0.07, 0.5
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    with pytest.raises(UserError) as error:
        pretrain(parse_config(values), run, photos, allow_change=True)
    assert set(error.value.fields) == {"model.temperature", "optimizer.learning_rate"}
    assert "has taken 6 of 6 steps" in error.value.errors[0].problem
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before
    values["train"] |= {"epochs": 3, "max_steps": 7}
    assert pretrain(parse_config(values), run, photos, allow_change=True, after_change="planned").step == 7


def test_refused_change_leaves_the_run_unchanged(whole_run, photos, tmp_path):
    run, fewer = tmp_path / "run", tmp_path / "fewer"
    shutil.copytree(whole_run, run)
    (run / "checkpoints" / "ckpt-8_temp").write_bytes(b"left by a kill")
    (run / "bad_images.tsv").write_text("name\treason\n")
    shutil.copytree(photos, fewer)
    for number, path in enumerate(sorted(fewer.iterdir())[:2]):
        path.unlink() if number else path.write_bytes(b"")
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    values = tiny(epochs=3).model_dump(mode="json", exclude_none=True)
    values["model"]["bank_size"], values["data"]["max_bad_share"] = 80, 0.1
    with pytest.raises(UserError) as error:
        pretrain(parse_config(values), run, fewer, allow_change=True)
    assert str(run / "checkpoints") in error.value.problem
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before
    assert pretrain(tiny(), run, photos).step == 6


def test_folder_with_other_images_is_refused(whole_run, photos, tmp_path):
    folder = tmp_path / "photos"
    shutil.copytree(photos, folder)
    next(folder.iterdir()).unlink()
    with pytest.raises(UserError) as error:
        pretrain(tiny(), whole_run, folder)
    assert error.value.fields == ("data.root",)
    assert "24 images, and there are 23" in str(error.value)


@pytest.mark.slow
def test_two_devices_resume_from_a_checkpoint_of_one(whole_run, command, tmp_path):
    """Samples and groups are the same; only the order of sums differs."""
    run = tmp_path / "run"
    shutil.copytree(whole_run, run)
    for path in (run / "checkpoints").glob("ckpt-6.*"):
        path.unlink()
    arguments = [sys.executable, "-m", "tests.training.devices", "2", *command[3:]]
    result = subprocess.run(arguments, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert losses(run)[:4] == losses(whole_run)[:4]
    for ours, theirs in zip(metrics(run)[4:], metrics(whole_run)[4:], strict=True):
        for name in theirs:
            if name not in ("images_per_second", "step_share"):
                assert ours[name] == pytest.approx(theirs[name], rel=1e-4, abs=1e-4), name
    refused = subprocess.run(
        [*arguments[:3], "4", *command[3:]], capture_output=True, text=True, check=False
    )  # two groups cannot be divided among four devices
    assert refused.returncode == 2 and "error: train.micro_batches: " in refused.stderr


def test_too_many_bad_images_end_the_run(photos, tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    for i, path in enumerate(sorted(photos.iterdir())):
        content = path.read_bytes()
        (folder / path.name).write_bytes(content[:200] if i % 4 == 0 else content)
    error = refusal(pretrain, tiny(), tmp_path / "run", folder)
    assert error.field == "data.max_bad_share" and "6 of 24" in error.problem


@pytest.mark.slow
def test_run_lists_skipped_images_with_reasons(photos, tmp_path, capsys):
    folder = tmp_path / "photos"
    folder.mkdir()
    for i, path in enumerate(sorted(photos.iterdir())):
        (folder / path.name).write_bytes(path.read_bytes()[: 200 if i == 5 else None])
    bad = str(sorted(folder.iterdir())[5])
    (tmp_path / "c.yaml").write_text(dump_config(tiny(max_steps=3)))
    command = ["pretrain", str(tmp_path / "c.yaml"), "--data", str(folder), "--output", str(tmp_path / "run")]
    assert main([*command, "--data.max_bad_share", "0.1"]) == 0
    report = tmp_path / "run" / "bad_images.tsv"
    assert report.read_text() == f"name\treason\n{bad}\tcut short: JPEG\n"
    assert f"1 images were skipped (1 cut short): see {report}" in capsys.readouterr().out


@pytest.mark.parametrize("precision, tolerance", [("bfloat16", 0.12), ("float16", 0.02)])
@pytest.mark.slow
def test_half_precision_agrees_with_float32_to_its_precision(precision, tolerance, whole_run, photos, tmp_path):
    """P5 has one cell here, so its batch norm has four numbers, which multiplies rounding (seen: 0.07 and 0.01)."""
    pretrain(tiny(precision=precision, max_steps=1), tmp_path / "half", photos)
    saved = keras.saving.load_model(tmp_path / "half" / "backbone.keras")
    assert {layer.compute_dtype for layer in saved.layers} == {"float32"}
    half, full = metrics(tmp_path / "half")[0], metrics(whole_run)[0]
    for name in full:
        if name.startswith("loss"):
            assert half[name] == pytest.approx(full[name], rel=tolerance), name


def test_schedules_agree_with_the_oracles():
    for step in (0, 1, 7, 50, 99, 100):
        step_ = tf.constant(step, tf.int64)
        assert float(Cosine(0.3, 100)(step_)) == pytest.approx(oracles_step.cosine_per_step(step, 100, 0.3), abs=1e-7)
        if step < 100:
            by_epoch = oracles_step.cosine_per_epoch(step, 10, 10, 0.3)
            assert float(Cosine(0.3, 100, hold_steps=10)(step_)) == pytest.approx(by_epoch, abs=1e-7)
        decayed = oracles_step.step_decay(step, 10, 0.3, (5, 8))
        assert float(Milestones(0.3, (50, 80))(step_)) == pytest.approx(decayed, rel=1e-6)


@pytest.mark.parametrize("step, total, spans", [
    (0, 30, [(0, 30)]), (0, 34, [(0, 30), (30, 34)]), (12, 34, [(12, 20), (20, 30), (30, 34)]),
    (5, 8, [(5, 8)]), (0, 8, [(0, 8)]), (31, 34, [(31, 34)]), (20, 30, [(20, 30)]), (34, 34, []),
])  # fmt: skip
def test_fit_is_called_for_whole_and_partial_epochs(step, total, spans):
    assert stretches(step, 10, total) == spans


def test_config_chooses_the_schedule():
    config = parse_config({"optimizer": {"schedule": "milestones", "milestones": [1, 2], "learning_rate": 1.0}})
    schedule = planned_schedule(config, 256 * 10)
    assert [float(schedule(tf.constant(s))) for s in (0, 10, 20)] == pytest.approx([1, 0.1, 0.01])
    assert planned_schedule(parse_config({"optimizer": {"schedule": "epoch"}}), 2560).hold_steps == 10
