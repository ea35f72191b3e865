"""Trains Faster R-CNN here and in torchvision from the same weights, and prints the AP of both.

    python -m tests.detection.rcnn.train_beside_torchvision VOC --output runs/parity --steps 1200

Both read the same batches and have the same learning rate at each step. One function scores them. torchvision keeps its
own layers, losses, samples and NMS. Here `finetune` trains, as a user's command would. A seed that has ended is not
repeated. It needs PyTorch and torchvision.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np

from dupr_tf.comparing.statistics import estimate
from dupr_tf.config import load_config
from dupr_tf.data.detection import TrainingExamples
from dupr_tf.data.labels.annotations import read_annotations
from dupr_tf.detection.coco_eval import coco_ap
from dupr_tf.detection.finetune import METRICS_FILE, finetune
from dupr_tf.detection.registry import build_detector
from dupr_tf.detection.saving import load_detector, save_detector
from dupr_tf.models.resnet import IMAGENET_MEAN, IMAGENET_STD, build_backbone
from dupr_tf.training.optimizers import planned_schedule
from dupr_tf.weights.export import export
from dupr_tf.weights.paths import SAFETENSORS_FILE
from tests.detection.rcnn.peer_weights import torchvision_pairs
from tests.detection.rcnn.peers import PEER_SETTINGS, ROOT

RECIPE = ROOT / "configs" / "detection" / "small_faster_rcnn_fpn.yaml"
FULL_WIDTH = {"model.width": "1.0", "data.image_size": "160"}  # torchvision has no narrower ResNet
START, JOB, FOUND = "start.keras", "job.json", "detections.npz"


def config_of(seed, steps, kind):
    """Returns the config of a run."""
    changed = {"train.seed": str(seed), "train.max_steps": str(steps), "data.kind": kind}
    return load_config(RECIPE, {**FULL_WIDTH, **changed})


def start(config, class_names, folder):
    """Writes a detector with random weights: for here, and for torchvision."""
    if not (folder / START).is_file():
        keras.utils.set_random_seed(config.train.seed)
        backbone = build_backbone(config.model.backbone, include_normalization=True)
        save_detector(build_detector(backbone, class_names, config), folder / START)
    detector = load_detector(folder / START)
    export(detector.backbone, "torchvision", folder / "export", overwrite=True)
    np.savez(folder / "weights.npz", **{f"weights/{pair.name}": pair.array() for pair in torchvision_pairs(detector)})
    settings = {name: getattr(detector, name) for name in PEER_SETTINGS}
    settings |= {"classes": len(class_names), "architecture": config.model.backbone, "kind": "faster"}
    return settings | {"anchor_sizes": [size for _, (size,) in detector.anchor_levels]}


def train_theirs(config, settings, data, train, folder):
    """Trains in torchvision, in a process without TensorFlow, which writes its detections of the split val."""
    images, steps = len(TrainingExamples(train, config).kept), config.train.max_steps
    schedule = planned_schedule(config, images)
    job = settings | {"config": config.model_dump(mode="json"), "data": str(data)}
    job |= {"rates": [float(schedule(step)) for step in range(steps)]}
    job |= {"weights": str(folder / "weights.npz"), "backbone": str(folder / "export" / SAFETENSORS_FILE)}
    job |= {"found": str(folder / FOUND), "mean": IMAGENET_MEAN, "std": IMAGENET_STD}
    (folder / JOB).write_text(json.dumps(job))
    command = [sys.executable, "-m", "tests.detection.rcnn.torchvision_training", str(folder / JOB)]
    subprocess.run(command, cwd=ROOT, check=True)


def read_found(file, images):
    """Returns the detections of torchvision's process for each image, as `coco_ap` takes them."""
    with np.load(file, allow_pickle=False) as arrays:
        return [{name: arrays[f"{name}_{i}"] for name in ("boxes", "classes", "scores")} for i in range(images)]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--kind", default="auto", help="layout of the data")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=1200)
    arguments = parser.parse_args()
    train, val = (read_annotations(arguments.data, split, arguments.kind) for split in ("train", "val"))
    scores = []
    for seed in arguments.seeds:
        folder = arguments.output.resolve() / f"seed{seed}"
        folder.mkdir(parents=True, exist_ok=True)
        config = config_of(seed, arguments.steps, arguments.kind)
        if not (folder / FOUND).is_file():
            settings = start(config, train.class_names, folder)
            train_theirs(config, settings, arguments.data.resolve(), train, folder)
        if not (folder / "ours" / METRICS_FILE).is_file():
            finetune(config, folder / START, arguments.data, folder / "ours")
        own = json.loads((folder / "ours" / METRICS_FILE).read_text())
        other = coco_ap(val, read_found(folder / FOUND, len(val)), most=100)
        scores.append([(found["AP"], found["AP50"]) for found in (own, other)])
        print(f"seed {seed}: here AP {own['AP']:.4f} AP50 {own['AP50']:.4f}, ", end="")
        print(f"torchvision AP {other['AP']:.4f} AP50 {other['AP50']:.4f}")
    scores = np.array(scores)  # (seeds, here and there, AP and AP50)
    for k, metric in enumerate(("AP", "AP50")):
        own, other = scores[..., k].T
        for label, values in (("here", own), ("torchvision", other), ("difference", own - other)):
            result = estimate(values)
            print(f"{metric} {label}: {result.mean:.4f} ± {result.half or float('nan'):.4f}")


if __name__ == "__main__":
    main()
