"""Uses a config without default values: `finetune` passes each field to where it acts."""

import keras
import pytest
from rich.console import Console

from dupr_tf.config import load_config, parse_config
from dupr_tf.detection.finetune import finetune
from dupr_tf.detection.training import detector_optimizer
from dupr_tf.detection.validation import ValidateDetector
from dupr_tf.models.resnet import build_backbone
from dupr_tf.training.callbacks import SaveCheckpoints
from dupr_tf.training.metrics_log import MetricsLog
from dupr_tf.training.optimizers import LossScaling
from tests.labelled_scenes import pictures, write_coco

DETECTOR = {
    "fpn_channels": 8, "head_channels": 16, "head_convs": 1, "fpn_norm": False, "anchor_scale": 2.0,
    "score_threshold": 0.01, "nms_iou": 0.6, "max_detections": 7, "norm": "frozen", "validate_every": 2, "patience": 4,
    "backbone_rate": 0.5, "gradient_clip": 3.0,
}  # fmt: skip


def config(optimizer="sgd", precision="float32"):
    return parse_config({
        "data": {"image_size": 64},
        "model": {"backbone": "resnet34", "width": 0.125},
        "optimizer": {"learning_rate": 0.02, "momentum": 0.7, "weight_decay": 0.003, "warmup_steps": 4},
        "train": {
            "batch_size": 2, "epochs": 3, "seed": 11, "log_every": 5, "keep_checkpoints": 3, "checkpoint_every": "1h",
            "precision": precision,
        },
        "detector": {**DETECTOR, "optimizer": optimizer},
    })  # fmt: skip


class Reached(Exception):
    """Raised in place of the training."""


def test_run_has_every_field(tmp_path, monkeypatch):
    root = write_coco(tmp_path / "set", {"train": pictures(6), "val": pictures(2, seed=1)})
    calls = []

    def reached(*arguments):
        calls.extend(arguments)
        raise Reached

    monkeypatch.setattr("dupr_tf.detection.training.run_steps", reached)
    with pytest.raises(Reached):
        finetune(config(), "random", root, tmp_path / "run", console=Console(quiet=True))
    detector, open_batches, steps, per_epoch, callbacks = calls
    assert (steps, per_epoch) == ((0, 9), 3)
    for name in set(DETECTOR) - {"validate_every", "patience", "backbone_rate", "gradient_clip"}:
        assert getattr(detector, name) == DETECTOR[name], name
    assert (detector.backbone.architecture, detector.backbone.width, detector.image_size) == ("resnet34", 0.125, 64)
    of_kind = {type(callback): callback for callback in callbacks}
    metrics, saving, validation = (of_kind[kind] for kind in (MetricsLog, SaveCheckpoints, ValidateDetector))
    assert (metrics.batch_size, metrics.every, metrics.last_step, metrics.steps_per_epoch) == (2, 5, 9, 3)
    assert (saving.every, saving.checkpoints.keep) == (3600.0, 3)
    assert (validation.every, validation.patience, validation.last_step) == (2, 4, 9)
    with open_batches(0, 1) as batches:
        assert next(batches)["images"].shape == (2, 64, 64, 3)
    assert load_config(tmp_path / "run" / "config.yaml") == config()


@pytest.mark.parametrize(("kind", "decay"), [("sgd", "coupled_decay"), ("adamw", "decoupled_decay")])
def test_optimizer_has_every_field(kind, decay):
    backbone = build_backbone("resnet18", width=0.125)
    optimizer = detector_optimizer(config(kind), 6, backbone)
    assert (getattr(optimizer, decay), optimizer.global_clipnorm) == (0.003, 3.0)
    assert kind == "adamw" or optimizer.momentum == 0.7
    assert set(optimizer.rate_factors) == {variable.path for variable in backbone.trainable_variables}
    assert set(optimizer.rate_factors.values()) == {0.5}
    rates = [float(optimizer._learning_rate(step)) for step in range(4)]
    assert rates[0] == pytest.approx(0.02 / 4) and rates == sorted(rates)


def test_loss_is_scaled_in_float16_only():
    backbone = keras.Sequential([keras.layers.Dense(1)])
    backbone.build((None, 2))
    for precision in ("float32", "float16"):
        optimizer = detector_optimizer(config(precision=precision), 6, backbone)
        assert isinstance(optimizer, LossScaling) == (precision == "float16")
