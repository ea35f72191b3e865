"""Kills a fine-tuning run at random moments, as `tests.kill_test` does: python -m tests.finetune_kill_test --kills 10

At the end, the metrics and every weight of the saved detector (the best on val) must also equal those of the
undisturbed run.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import hashlib
import json
import os
import sys
import tempfile
import zipfile
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

from tests.kill_test import Trial, kill_over_and_over  # before NumPy, whose threads it forbids

from dupr_tf.config import dump_config, parse_config  # isort: skip
from dupr_tf.config.detectors import DETECTORS  # isort: skip
from tests.labelled_scenes import pictures, with_polygons, write_coco, write_masks  # isort: skip

SMALL = {"fpn_channels": 8, "head_channels": 8, "head_convs": 1, "score_threshold": 0.001, "max_detections": 10}
RCNN = {"box_head_width": 16, "rpn_pre_nms": [50, 30], "rpn_post_nms": [20, 10], "rois_per_image": 8}
MASKS = {"class_names": ["ground", "bus", "cat", "dog"], "ignore_value": 7}
TIMES = ("images_per_second", "training_seconds", "validation_seconds")


@dataclasses.dataclass(frozen=True)
class DetectorTrial(Trial):
    """Holds a folder with labelled images and a config with a detector."""

    def arguments(self, run: Path) -> list[str]:
        data, config = str(self.folder / "set"), str(self.folder / "config.yaml")
        return ["finetune", config, "--output", str(run), "--data", data, "--weights", "random"]

    def differing_ends(self, whole: Path, run: Path) -> list[str]:
        expected, received = (end_of(folder) for folder in (whole, run))
        return [f"{name} differs" for name in expected if expected[name] != received.get(name)]


def end_of(run: Path) -> dict:
    """Returns the metrics of a finished run without times, and the sha256 of its weights."""
    if not (run / "metrics.json").exists():
        return {}
    metrics = json.loads((run / "metrics.json").read_text())
    digests = {file.name: weights_digest(file) for file in run.glob("detector*.keras")}
    return {name: value for name, value in metrics.items() if name not in TIMES} | digests


def weights_digest(file: Path) -> str:
    """Returns the sha256 of the weights of a `.keras` file."""
    import h5py  # late, because its import starts threads

    digest = hashlib.sha256()

    def add(_, item):
        if isinstance(item, h5py.Dataset):
            digest.update(item[()].tobytes())

    with zipfile.ZipFile(file) as archive, h5py.File(archive.open("model.weights.h5")) as weights:
        weights.visititems(add)
    return digest.hexdigest()


def trial(
    folder: Path, steps: int, kind: str, neck: str = "fpn", replicas: int = 1, processes: int = 0
) -> DetectorTrial:
    """Writes labelled images and the config of a run of `steps` steps below a folder."""
    splits = {"train": pictures(6), "val": pictures(2, seed=1)}
    root = write_masks(folder / "set", splits) if kind == "fcn" else write_coco(folder / "set", splits)
    if kind == "mask_rcnn":
        with_polygons(root)
    refused = DETECTORS[kind].facts["refuses"]
    sizes = {name: value for name, value in SMALL.items() if f"detector.{name}" not in refused}
    detector = {**sizes, "kind": kind, "precise_bn_images": 4, "validate_every": 2, "patience": 100}
    if kind.endswith("rcnn"):
        detector |= {"neck": neck, "short_sides": [64, 96], **RCNN}
    if kind == "retinanet":
        detector |= {"optimizer": "adamw", "backbone_rate": 0.5}
    config = parse_config({
        "data": {"image_size": 64, **(MASKS if kind == "fcn" else {})},
        "model": {"backbone": "resnet18", "width": 0.125},
        "optimizer": {"learning_rate": 0.01, "warmup_steps": 2},
        "train": {"batch_size": 2, "epochs": steps, "max_steps": steps, "log_every": 1, "seed": 5},
        "detector": detector,
    })  # fmt: skip
    (folder / "config.yaml").write_text(dump_config(config), encoding="utf-8")
    return DetectorTrial(folder, config, replicas, processes=processes)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--steps", type=int, help="of the run; default: four times the kills")
    parser.add_argument("--kind", default="faster_rcnn", choices=list(DETECTORS))
    parser.add_argument("--neck", default="fpn", help="of an R-CNN")
    parser.add_argument("--replicas", type=int, default=1, help="logical devices")
    parser.add_argument("--processes", type=int, default=0, help="that read images")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    steps = options.steps or 4 * options.kills
    with tempfile.TemporaryDirectory() as folder:
        setting = trial(Path(folder), steps, options.kind, options.neck, options.replicas, processes=options.processes)
        wrong = kill_over_and_over(setting, options.kills, steps, options.seed, functools.partial(print, flush=True))
        if wrong:
            print("\n".join(wrong), (Path(folder) / "log.txt").read_text(errors="replace")[-3000:], sep="\n")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
