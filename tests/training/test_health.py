"""Tests that a diverging run ends and lists the step's images, a collapsing one warns once, and a healthy one never."""

import json
import logging
import math
import types

import keras
import numpy as np
import pytest
from PIL import Image

from dupr_tf.cli import main
from dupr_tf.config import dump_config, parse_config
from dupr_tf.data.images.bad_images import BadImages
from dupr_tf.data.images.listing import list_images
from dupr_tf.training import callbacks, metrics_log
from dupr_tf.training.checkpoints import saved_checkpoints
from dupr_tf.training.collapse import LONG, WINDOW, peak_of_fallen
from dupr_tf.training.health import (
    DECLINE,
    StopOnDivergence,
    WarnOfCollapse,
    WarnOfDecline,
    WarnOfLittleOverlap,
    patience,
)
from dupr_tf.training.pretrain import batch_images, pretrain
from tests.training.test_pretrain import metrics, photos, steps_without_a_network, tiny  # noqa: F401  (a fixture)

CONFIG = parse_config({
    "model": {"bank_size": 4096, "momentum": 0.99}, "optimizer": {"warmup_steps": 100}, "train": {"batch_size": 64},
})  # fmt: skip
PINNED = math.log(4097)


def warnings_of(logs_of_step, steps, caplog, config=CONFIG):
    caplog.clear()
    caplog.set_level(logging.WARNING)
    watch = WarnOfCollapse(config)
    for step in range(1, steps + 1):
        watch.on_step(step, {name: float(value) for name, value in logs_of_step(step).items()})
    return [record.getMessage() for record in caplog.records]


def healthy_logs(step):
    """Logs as of a measured run: the loss rises from 4.5 towards ln(K + 1) as the banks fill, then falls."""
    loss = 4.5 + 3.8 * min(1.0, step / 64) if step < 90 else 6.1 + 2.2 * math.exp(-(step - 90) / 100)
    accuracy = 0.0 if step < 90 else 0.1 * (1 - math.exp(-(step - 90) / 200))
    return {"loss": loss, "loss/image_P5": loss, "accuracy/image_P5": accuracy, "std/image_P5": 0.5}


def test_healthy_run_gives_no_warning(caplog):
    assert patience(CONFIG) == 100 + 4 * 64 + 200
    assert warnings_of(healthy_logs, 1500, caplog) == []


def test_guessing_is_warned_of_once_after_the_start(caplog):
    def guessing(step):
        return {**healthy_logs(step), "loss/image_P5": PINNED - 0.01, "accuracy/image_P5": 1 / 4097}

    assert warnings_of(guessing, patience(CONFIG), caplog) == []
    (told,) = warnings_of(guessing, 2000, caplog)
    assert "image_P5 guesses: loss 8.308, ln(K + 1) is 8.318" in told and "learning rate" in told


def test_high_loss_or_accuracy_above_chance_is_no_collapse(caplog):
    for loss, accuracy in ((PINNED, 0.01), (0.95 * PINNED, 0.0)):
        logs = {"loss": 1, "loss/image_P5": loss, "accuracy/image_P5": accuracy, "std/image_P5": 0.5}
        assert warnings_of(lambda step, logs=logs: logs, 1500, caplog) == []


def test_equal_keys_are_warned_of(caplog):
    (told,) = warnings_of(lambda step: {**healthy_logs(step), "std/image_P5": 0.001}, 1500, caplog)
    assert "all keys of image_P5 are the same: std 0.0010 of 1" in told


def with_model(**fields):
    return CONFIG.model_copy(update={"model": CONFIG.model.model_copy(update=fields)})


def declines_of(accuracy_of_step, steps, caplog, first_step=0, config=CONFIG):
    caplog.clear()
    caplog.set_level(logging.WARNING)
    watch = WarnOfDecline(config, first_step)
    for step in range(first_step + 1, steps + 1):
        watch.on_step(step, {"loss": 1.0, "accuracy/image_P5": accuracy_of_step(step)})
    return caplog.messages


def falling(step):
    """Accuracy has a peak of 0.3 at step 1,000, and is 0.05 from step 1,500 on."""
    return 0.3 * step / 1000 if step < 1000 else max(0.05, 0.3 - 0.0005 * (step - 1000))


def test_lasting_fall_of_accuracy_is_warned_of_once(caplog):
    (message,) = declines_of(falling, 3000, caplog)
    assert "image_P5" in message and "learning rate" in message and "model.momentum" not in message
    hasty = with_model(momentum=0.9)
    (message,) = declines_of(falling, 3000, caplog, config=hasty)
    assert "--model.momentum of 0.9, where 0.99 or more is usual" in message


def test_momentum_that_rises_to_one_may_lower_accuracies(caplog):
    rising = with_model(momentum_schedule="cosine")
    assert declines_of(falling, 3000, caplog, config=rising) == []
    assert WarnOfDecline(CONFIG, 700, WarnOfDecline(rising).state()).windows  # --allow-change to a constant momentum


def test_peak_before_a_resume_is_remembered(caplog):
    caplog.set_level(logging.WARNING)
    watch = WarnOfDecline(CONFIG)
    for step in range(1, 3001):
        if step in (1201, 1430):  # kills, the second one within a window
            saved = json.loads(json.dumps(watch.state()))
            watch = WarnOfDecline(CONFIG, step - 1, saved)
        watch.on_step(step, {"loss": 1.0, "accuracy/image_P5": falling(step)})
    (resumed,) = caplog.messages
    assert declines_of(falling, 3000, caplog) == [resumed]
    watch = WarnOfDecline(CONFIG, 3000, watch.state())
    for step in range(3001, 6001):
        watch.on_step(step, {"loss": 1.0, "accuracy/image_P5": falling(step)})
    assert len(caplog.messages) == 1  # it does not warn again


@pytest.mark.parametrize("saved", [3, {"first": -1}, {"first": 0, "windows": {"image_P5": ["x"]}, "sums": {}}])
def test_unusable_accuracies_of_a_checkpoint_are_named_and_left_out(saved, caplog):
    watch = WarnOfDecline(CONFIG, 700, {DECLINE: saved})
    assert watch.first == 700 and not any(watch.windows.values()) and len(caplog.messages) == 1


def test_rising_recovering_or_low_accuracy_is_no_decline(caplog):
    dip = WINDOW * (LONG - 1)
    for accuracy in (
        lambda step: 0.3 * step / 3000,
        lambda step: 0.01 if 1000 < step <= 1000 + dip else 0.3,
        lambda step: 2 / 4097 if step < 1000 else 0.0,
        lambda step: 1.0 if step <= patience(CONFIG) else 0.01,  # the bank of a new run is easy
    ):
        assert declines_of(accuracy, 3000, caplog) == []


def test_fall_counts_after_a_tenth_of_all_windows():
    values = [*([0.2] * 6), *([0.05] * LONG)]
    assert peak_of_fallen(values, 4096) == 0
    assert peak_of_fallen(values[:-1], 4096) is None
    assert peak_of_fallen([0.2] * 60 + [0.05] * LONG, 4096) is None  # a tenth of all windows


def test_listed_images_of_a_batch_are_the_right_ones(photos):  # noqa: F811
    paths, config = list_images(photos, "folder"), tiny(batch_size=12)
    first, second, next_epoch = (batch_images(paths, config, step, BadImages(paths, 0.1)) for step in range(3))
    assert sorted(first + second) == sorted(paths)  # each once an epoch
    assert first != next_epoch


def test_only_a_non_finite_loss_ends_the_run(tmp_path):
    StopOnDivergence(tmp_path, lambda step: [], 4).on_step(5, {"loss": 8.0})
    assert not (tmp_path / "diverged.json").exists()


def assert_ended_by_divergence(run, step, told):
    """Checks that the record names the step, log and checkpoints end before it, and no backbone was written."""
    entry = json.loads((run / "diverged.json").read_text())
    assert entry["step"] == step and f"diverged at step {step}:" in told
    assert entry["learning_rate"] > 1e29 and "nan" in str(entry["loss_terms"])
    assert saved_checkpoints(run / "checkpoints")[0].name == f"ckpt-{step - 1}"
    assert [line["step"] for line in metrics(run)] == list(range(1, step))
    assert not (run / "backbone.keras").exists()
    return entry["images"]


@pytest.fixture
def command(photos, tmp_path):  # noqa: F811
    """Returns the command line of the toy run into tmp_path/run."""
    config = tmp_path / "c.yaml"
    config.write_text(dump_config(tiny(checkpoint_every=1)))
    return ["pretrain", str(config), "--data", str(photos), "--output", str(tmp_path / "run")]


def test_nan_loss_ends_the_run_and_lists_the_images(command, tmp_path, capsys, monkeypatch):
    def logs(step):
        loss = math.nan if step == 4 else 1.0
        return {"loss": loss, "loss/patch_P5": loss, "loss/image_P5": 1.0, "learning_rate": 1e30}

    monkeypatch.setattr(keras.Model, "fit", steps_without_a_network(logs))
    monkeypatch.setattr("dupr_tf.training.pretrain.batch_images", lambda source, config, step, bad: [f"of step {step}"])
    assert main([*command, "--optimizer.learning_rate=1e30"]) == 1
    assert assert_ended_by_divergence(tmp_path / "run", 4, capsys.readouterr().err) == ["of step 3"]  # counted from 0
    assert main(command) == 2  # a rate different from that at its start
    assert "error: optimizer.learning_rate: " in capsys.readouterr().err


@pytest.mark.slow  # the same with a network that diverges
def test_diverging_run_ends_and_lists_the_images(photos, command, tmp_path, capsys):  # noqa: F811
    assert main([*command, "--optimizer.learning_rate=1e30"]) == 1
    step = json.loads((tmp_path / "run" / "diverged.json").read_text())["step"]
    assert 1 < step < 6
    images = assert_ended_by_divergence(tmp_path / "run", step, capsys.readouterr().err)
    paths = list_images(photos, "folder")
    assert images == batch_images(paths, tiny(), step - 1, BadImages(paths, 0.1)) and len(images) == 8


@pytest.mark.slow
def test_folder_of_one_colour_collapses(tmp_path, caplog):
    folder = tmp_path / "grey"
    folder.mkdir()
    for i in range(16):
        Image.fromarray(np.full((48, 48, 3), 128, np.uint8)).save(folder / f"{i}.png")
    values = tiny(epochs=100, max_steps=160).model_dump(mode="json", exclude_none=True)
    values["views"]["photometric"] = "none"
    pretrain(parse_config(values), tmp_path / "run", folder)
    assert caplog.text.count("may have collapsed") == 1


@pytest.mark.parametrize("every, cost, told", [(10, 0.0, False), (10, 1.0, True), (30.0, 0.0, False)])
def test_saves_follow_steps_or_time_and_their_share_is_logged(every, cost, told, monkeypatch, caplog):
    now, saved = [0.0], []

    def save():
        saved.append(now[0])
        now[0] += cost

    monkeypatch.setattr(callbacks.time, "monotonic", lambda: now[0])
    callback = callbacks.SaveCheckpoints(types.SimpleNamespace(save=save), 0, every)
    for batch in range(100):  # steps of a second each
        callback.on_train_batch_begin(batch)
        now[0] += 1.0
        callback.on_train_batch_end(batch, {})
    assert len(saved) == (10 if every == 10 else 3)
    assert caplog.text.count("saving checkpoints takes") == told


def test_resume_drops_unreadable_lines_with_a_warning(tmp_path, caplog):
    path = tmp_path / "metrics.jsonl"
    lines = [b'{"step": 1}', b'{"st\xffep": 2}', b"[3]", b'{"step": 4}', b'{"step": 5}', b'{"ste']
    path.write_bytes(b"\n".join(lines))
    metrics_log.drop_lines_after(path, 4)
    assert path.read_text() == '{"step": 1}\n{"step": 4}\n'
    [record] = caplog.records
    assert record.args[0] == "2 lines" and record.args[2] == 2  # of the file, and the number of the first


@pytest.mark.parametrize("share, beta, warnings", [(0.0, 1, 1), (0.85, 1, 1), (0.95, 1, 0), (0.0, 0, 0)])
def test_little_overlap_is_warned_of_once(caplog, share, beta, warnings):
    config = parse_config({"model": {"patch_weights": [0, 0, 0, beta]}})
    watch = WarnOfLittleOverlap(config)
    for step in range(1, 201):
        watch.on_step(step, {"valid_share": share})
    texts = [record.getMessage() for record in caplog.records]
    assert len(texts) == warnings and all(f"{share:.1%} of the pairs" in text for text in texts)
