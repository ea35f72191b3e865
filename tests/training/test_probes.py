"""Tests of probing while training: its steps, its outputs, and that the run is otherwise unchanged."""

import json

import numpy as np
import pytest
import tensorflow as tf

from dupr_tf.cli import main
from dupr_tf.config import parse_config
from dupr_tf.data.sample import write_sample
from dupr_tf.errors import UserError
from dupr_tf.probing.in_training import build_probe
from dupr_tf.training.callbacks import RunProbes
from dupr_tf.training.metrics_log import MetricsLog
from dupr_tf.training.pretrain import pretrain


def tiny(photos=None, **train):
    probing = {"every_epochs": 1, "data": str(photos), "images": 4, "image_size": 64} if photos else {}
    return parse_config({
        "data": {"image_size": 32},
        "views": {"min_overlap": 8},
        "model": {"backbone": "resnet18", "width": 0.125, "roi_sizes": [8, 4, 2, 1], "bank_size": 70, "momentum": 0.9,
                  "embedding_dim": 16, "image_weights": [0, 0, 0, 1], "patch_weights": [0, 0, 0, 1]},
        "optimizer": {"learning_rate": 0.05},
        "probing": probing,
        "train": {"batch_size": 8, "micro_batches": 2, "epochs": 2, "log_every": 1, "checkpoint_every": 2, **train},
    })  # fmt: skip


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sample")
    write_sample(folder, train=1, val=1, unlabeled=16, seed=3)
    return folder / "unlabeled"


def lines_of(run):
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.slow
def test_probed_run_is_unchanged_and_has_probe_results(photos, tmp_path):
    pretrain(tiny(), tmp_path / "plain", photos)
    config = tiny(photos)
    pretrain(config, tmp_path / "probed", photos, probe=build_probe(config.probing))
    plain, probed = lines_of(tmp_path / "plain"), lines_of(tmp_path / "probed")
    assert [line["loss"].hex() for line in plain] == [line["loss"].hex() for line in probed]
    asked = [line["step"] for line in probed if "probe/matching/pck_1" in line]
    assert asked == [2, 4] and all("probe/matching/pck_1" not in line for line in plain)
    for line in probed:
        assert (line["step"] in asked) == ("seconds/probes" in line)
    events = [str(path) for path in (tmp_path / "probed" / "tensorboard").iterdir()]
    tags = {value.tag for event in tf.compat.v1.train.summary_iterator(events[0]) for value in event.summary.value}
    assert {"probe/matching", "probe/matching/pck_2", "seconds/probes", "match/patch_P5"} <= tags


def test_probing_interval_without_a_probe_is_refused(photos, tmp_path):
    with pytest.raises(UserError, match="probe: "):
        pretrain(tiny(photos), tmp_path / "run", photos)
    assert not (tmp_path / "run").exists()


class Metrics:
    def __init__(self):
        self.noted = []

    def note(self, scalars, pictures, seconds):
        self.noted.append((scalars, list(pictures)))


def test_probe_runs_at_its_interval_and_at_the_end():
    metrics, asked = Metrics(), []

    def probe(backbone):
        asked.append(backbone)
        return {"a/b": len(asked)}, {"a": np.zeros((2, 2, 3), np.uint8)}

    probes = RunProbes(probe, "backbone", every=4, first_step=3, last_step=11)
    probes.metrics = metrics
    for step in range(4, 12):
        probes.on_step(step, {})
        assert len(asked) == {4: 1, 5: 1, 6: 1, 7: 1, 8: 2, 9: 2, 10: 2, 11: 3}[step]
    assert asked == ["backbone"] * 3 and metrics.noted[2][0]["probe/a/b"] == 3.0
    assert metrics.noted[0][1] == ["probe/a"] and metrics.noted[0][0]["seconds/probes"] >= 0


def test_probing_time_is_not_training_time_and_has_a_line(tmp_path, monkeypatch):
    clock = [0.0]
    monkeypatch.setattr("dupr_tf.training.metrics_log.time.perf_counter", lambda: clock[0])
    metrics = MetricsLog(tmp_path, 0, 100, 10, 8, every=10)
    for step in range(1, 6):
        metrics.on_train_batch_begin(step)
        clock[0] += 0.9
        if step == 5:
            clock[0] += 60.0
            metrics.note({"probe/x": 0.5}, {}, 60.0)
        metrics.on_step(step, {"loss": 1.0})
        clock[0] += 0.1 if step < 5 else 0.0
    metrics.close()
    (line,) = lines_of(tmp_path)
    assert line["step"] == 5 and line["probe/x"] == 0.5
    assert line["images_per_second"] == pytest.approx(40 / 4.9)
    assert line["step_share"] == pytest.approx(4.5 / 4.9)


@pytest.mark.parametrize("fields, expected", [
    (("--probing.every_epochs", "1"), "error: probing.data: "),
    (("--probing.every_epochs", "1", "--probing.data", "nowhere"), "error: probing.data: "),
    (("--probing.every_epochs", "1", "--probing.data", "configs", "--probing.probes", "[knn]"), "probing.data: "),
    (("--probing.probes", "[svm]"), "probing.probes.0: "),
])  # fmt: skip
def test_wrong_probing_settings_give_one_line_first(capsys, tmp_path, photos, fields, expected):
    run = tmp_path / "run"
    words = ("pretrain", "configs/dupr_r18_small.yaml", "--data", str(photos), "--output", str(run))
    assert main([*words, *fields]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and expected in lines[0] and not run.exists()
