"""Trains a detector on every label format, and checks that it scores the same after `convert`."""

import pytest
from rich.console import Console

from dupr_tf.config import parse_config
from dupr_tf.data.labels.convert import convert
from dupr_tf.detection.finetune import evaluate, finetune
from tests.label_formats import FORMATS, SPLITS

SETTINGS = {
    "data": {"image_size": 64},
    "model": {"backbone": "resnet18", "width": 0.125},
    "optimizer": {"learning_rate": 0.01, "warmup_steps": 2},
    "train": {"batch_size": 4, "max_steps": 2, "log_every": 1, "seed": 5},
    "detector": {"fpn_channels": 8, "head_channels": 8, "head_convs": 1, "score_threshold": 0.001},
}


@pytest.mark.slow
@pytest.mark.parametrize("name", FORMATS)
def test_format_trains_evaluates_and_converts(tmp_path, name):
    write, kind, _ = FORMATS[name]
    root = write(tmp_path / "set", SPLITS)
    metrics = finetune(parse_config(SETTINGS), "random", root, tmp_path / "run", console=Console(quiet=True))
    assert metrics["train_images"] == 9 and set(metrics["per_class"]) == {"bus", "cat", "dog"}
    convert(root, tmp_path / "coco", "coco", "auto", 0)
    again = evaluate(tmp_path / "run", tmp_path / "coco")
    assert again["images"] == 3
    if kind != "voc":  # whose AP is VOC's own
        assert again["AP"] == pytest.approx(metrics["AP"], abs=1e-6)
