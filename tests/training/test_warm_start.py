"""Tests of `pretrain --weights`: both encoders start from them, and a run keeps and resumes them bit-identically."""

import json

import keras
import numpy as np
import pytest

from dupr_tf.cli import main
from dupr_tf.config import dump_config, parse_config
from dupr_tf.data.sample import write_sample
from dupr_tf.errors import UserError
from dupr_tf.models import build_backbone
from dupr_tf.training import pretrain as module
from dupr_tf.training.pretrain import build_model, pretrain
from dupr_tf.training.run import starting_weights
from dupr_tf.weights.torch_io import to_torchvision

CONFIG = parse_config({
    "data": {"image_size": 32},
    "views": {"min_overlap": 8},
    "model": {"backbone": "resnet18", "width": 0.125, "image_weights": [0, 0, 0, 1], "patch_weights": [0, 0, 0, 0],
              "bank_size": 70, "momentum": 0.9, "embedding_dim": 16},
    "optimizer": {"learning_rate": 0.05},
    "train": {"batch_size": 8, "micro_batches": 2, "epochs": 2, "max_steps": 5, "log_every": 1, "checkpoint_every": 2},
})  # fmt: skip


@pytest.fixture(scope="module")
def start():
    """Returns a backbone with random weights and moving statistics."""
    keras.utils.set_random_seed(7)
    backbone = build_backbone("resnet18", width=0.125)
    rng = np.random.default_rng(7)
    backbone.set_weights([w + rng.uniform(0.01, 0.1, w.shape).astype(np.float32) for w in backbone.get_weights()])
    return backbone


@pytest.fixture(scope="module")
def place(start, tmp_path_factory):
    """Holds photos, a start in MoCo's format and as .keras, other weights, and a run whose steps do nothing."""
    place = tmp_path_factory.mktemp("warm")
    write_sample(place, train=1, val=1, unlabeled=24, seed=3)
    state = to_torchvision(start)
    moco = {f"module.encoder_q.{name}": value for name, value in state.items()}
    moco |= {f"module.encoder_k.{name}": value + 1 for name, value in state.items()} | {"module.queue": np.ones(3)}
    np.savez(place / "moco.npz", **moco)
    np.savez(place / "other.npz", **{name: value * 2 for name, value in state.items()})
    start.save(place / "start.keras")
    with pytest.MonkeyPatch.context() as patch:  # a run's records do not depend on its steps, and tracing takes long
        patch.setattr(keras.Model, "fit", lambda *_, **__: None)
        pretrain(CONFIG, place / "begun", place / "unlabeled", place / "moco.npz")
    return place


@pytest.fixture(scope="module")
def whole(place):
    """Returns a run of all five steps."""
    pretrain(CONFIG, place / "whole", place / "unlabeled", place / "moco.npz")
    return place / "whole"


def losses(run):
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [(line["step"], line["loss"].hex()) for line in lines]


def begin_and_stop(monkeypatch, place, run, step, weights):
    """Starts a run and interrupts it once it has taken `step` steps."""

    class Stop(module.CheckBadImages):
        def on_train_batch_end(self, batch, logs=None):
            super().on_train_batch_end(batch, logs)
            if int(self.model.step) == step:
                raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(module, "CheckBadImages", Stop)
        with pytest.raises(KeyboardInterrupt):
            pretrain(CONFIG, run, place / "unlabeled", weights)


def same_end(run, whole):
    assert losses(run) == losses(whole)
    ours, theirs = (keras.saving.load_model(r / "backbone.keras").get_weights() for r in (run, whole))
    for a, b in zip(ours, theirs, strict=True):
        np.testing.assert_array_equal(a, b)


def test_encoders_start_from_the_weights_and_heads_do_not(start):
    cold, warm = build_model(CONFIG), build_model(CONFIG, start.get_weights())
    wanted, count = start.get_weights(), len(start.get_weights())
    for encoder, fresh in ((warm.query_encoder, cold.query_encoder), (warm.key_encoder, cold.key_encoder)):
        received, before = encoder.get_weights(), fresh.get_weights()
        for value, expected in zip(received[:count], wanted, strict=True):
            np.testing.assert_array_equal(value, expected)
        for value, expected in zip(received[count:], before[count:], strict=True):
            np.testing.assert_array_equal(value, expected)
        assert len(received) > count and any((a != b).any() for a, b in zip(received, before, strict=True))
    for value, expected in zip(warm.backbone.get_weights(), wanted, strict=True):
        np.testing.assert_array_equal(value, expected)


def test_run_records_the_weights_it_started_from(place, start):
    record = json.loads((place / "begun" / "start.json").read_text())
    saved = keras.saving.load_model(place / "begun" / "backbone.keras")
    for a, b in zip(saved.get_weights(), start.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)
    assert record["weights"] == str(place / "moco.npz")
    assert len(record["sha256"]) == 64


@pytest.mark.slow
def test_run_with_checkpoint_resumes_without_the_weights_file(place, whole, tmp_path, monkeypatch):
    weights = tmp_path / "gone.npz"
    weights.write_bytes((place / "moco.npz").read_bytes())
    begin_and_stop(monkeypatch, place, tmp_path / "run", 3, weights)
    weights.unlink()
    pretrain(CONFIG, tmp_path / "run", place / "unlabeled")
    same_end(tmp_path / "run", whole)


@pytest.mark.slow
def test_run_without_checkpoint_restarts_from_the_same_weights(place, whole, tmp_path, monkeypatch):
    run = tmp_path / "run"
    begin_and_stop(monkeypatch, place, run, 1, place / "start.keras")  # the same weights in another format
    assert not list((run / "checkpoints").glob("*.index"))
    with pytest.raises(UserError) as error:
        pretrain(CONFIG, run, place / "unlabeled", place / "other.npz")
    assert error.value.field == "--weights"
    assert "start.keras" in error.value.problem and "other.npz" in error.value.problem
    pretrain(CONFIG, run, place / "unlabeled")
    same_end(run, whole)


def test_run_with_checkpoints_accepts_only_the_same_weights(place, start):
    again, _ = starting_weights(place / "begun", CONFIG, place / "start.keras")
    for value, expected in zip(again.get_weights(), start.get_weights(), strict=True):
        np.testing.assert_array_equal(value, expected)
    with pytest.raises(UserError) as error:
        pretrain(CONFIG, place / "begun", place / "unlabeled", place / "other.npz")
    assert error.value.field == "--weights"


@pytest.mark.parametrize("content", ["{", "[]", '{"weights": "a"}'])
def test_damaged_record_gives_one_line(place, tmp_path, content):
    (tmp_path / "start.json").write_text(content)
    with pytest.raises(UserError) as error:
        pretrain(CONFIG, tmp_path, place / "unlabeled")
    assert str(tmp_path / "start.json") in error.value.problem and "\n" not in str(error.value)


@pytest.mark.parametrize("overrides, weights, message", [
    (["--model.backbone", "resnet34"], "moco.npz",
     "Expected weights of resnet34 at width 0.125, received resnet18 at width 0.125"),
    (["--model.width", "0.25"], "start.keras", "--model.backbone resnet18 --model.width 0.125"),
    ([], "nowhere.npz", "no file"),
    ([], "whole.pkl", "pickles can run code"),
])  # fmt: skip
def test_unsuitable_weights_give_one_line_and_leave_no_run(place, tmp_path, capsys, overrides, weights, message):
    (tmp_path / "c.yaml").write_text(dump_config(CONFIG))
    (place / "whole.pkl").write_bytes(b"x")
    command = ["pretrain", str(tmp_path / "c.yaml"), "--data", str(place / "unlabeled"), "--output"]
    command += [str(tmp_path / "run"), "--weights", str(place / weights), *overrides]
    assert main(command) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if "error" in line]
    assert len(lines) == 1 and message in lines[0]
    assert not (tmp_path / "run").exists()


def test_run_from_random_weights_refuses_weights_later(place, tmp_path):
    for name in ("config.yaml", "format.json", "images.json", "images.bin"):
        (tmp_path / name).write_bytes((place / "begun" / name).read_bytes())
    with pytest.raises(UserError) as error:
        pretrain(CONFIG, tmp_path, place / "unlabeled", place / "moco.npz")
    assert error.value.field == "--weights" and "random weights" in error.value.problem
