"""Tests of the backbone of an unfinished run, read from its newest undamaged checkpoint."""

import json
import logging
import shutil

import numpy as np
import pytest

from dupr_tf.config import dump_config, parse_config
from dupr_tf.training.checkpoints import RunCheckpoints
from dupr_tf.training.pretrain import compiled_model
from dupr_tf.weights.loading import load_backbone
from dupr_tf.weights.model_card import run_facts
from dupr_tf.weights.paths import weights_file
from tests.refusals import refusal

CONFIG = parse_config({
    "data": {"image_size": 32}, "views": {"min_overlap": 8},
    "model": {"backbone": "resnet18", "width": 0.125, "bank_size": 64, "image_weights": [0, 0, 0, 1],
              "patch_weights": [0, 0, 0, 0]},
    "train": {"batch_size": 8, "micro_batches": 2},
})  # fmt: skip


@pytest.fixture(scope="module")
def stopped(tmp_path_factory):
    """Returns a run with checkpoints of steps 3 and 12, and the weights of its backbone at both."""
    run, weights = tmp_path_factory.mktemp("stopped"), {}
    (run / "config.yaml").write_text(dump_config(CONFIG))
    (run / "metrics.jsonl").write_text("".join(json.dumps({"step": s, "loss": 2.0 * s}) + "\n" for s in (2, 11, 14)))
    model = compiled_model(CONFIG, 100)
    checkpoints = RunCheckpoints(model, run / "checkpoints")
    for step in (3, 12):
        model.step.assign(step)
        for variable in model.backbone.trainable_variables:
            variable.assign_add(np.full(variable.shape, 0.01))
        checkpoints.save()
        weights[step] = model.backbone.get_weights()
    return run, weights


@pytest.fixture
def run(stopped, tmp_path):
    return shutil.copytree(stopped[0], tmp_path / "run")


def assert_weights(path, weights):
    for value, expected in zip(load_backbone(path).get_weights(), weights, strict=True):
        np.testing.assert_array_equal(value, expected)


def test_newest_checkpoint_is_read_and_its_step_printed(run, stopped, caplog):
    caplog.set_level(logging.INFO)
    assert_weights(run, stopped[1][12])
    assert "step 12" in caplog.text
    facts = run_facts(run)
    assert facts["steps"].startswith("12,") and facts["last losses"] == "loss 22.000"


def test_damaged_checkpoint_is_named_and_the_previous_read(run, stopped, caplog):
    data = next((run / "checkpoints").glob("ckpt-12.data-*"))
    data.write_bytes(data.read_bytes()[:-1])
    assert_weights(run, stopped[1][3])
    assert "ckpt-12" in caplog.text


def test_file_of_a_run_is_its_newest_undamaged_checkpoint(run):
    folder = run / "checkpoints"
    for ending in ("index", "data-00000-of-00001", "sha256"):
        (folder / f"ckpt-3.{ending}").rename(folder / f"ckpt-9.{ending}")
    sums = folder / "ckpt-9.sha256"
    sums.write_text(sums.read_text().replace("ckpt-3", "ckpt-9"))
    assert weights_file(run).name == "ckpt-12.index"
    next(folder.glob("ckpt-12.data-*")).write_bytes(b"")
    assert weights_file(run).name == "ckpt-9.index"


def test_run_without_an_undamaged_checkpoint_is_refused(run):
    for data in (run / "checkpoints").glob("*.data-*"):
        data.write_bytes(b"")
    assert str(run) in refusal(load_backbone, run).problem


def test_finished_run_reads_its_backbone(run, stopped):
    (run / "backbone.keras").write_bytes(b"")
    assert weights_file(run) == run / "backbone.keras"


def test_unfinished_detector_is_refused_as_a_backbone(run):
    (run / "config.yaml").write_text("detector: {}\noptimizer: {learning_rate: 0.1}\n")
    assert refusal(weights_file, run).field is None
