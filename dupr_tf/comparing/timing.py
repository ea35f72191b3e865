"""Measures a few steps and predictions of a detector, to forecast how long a comparison takes."""

from __future__ import annotations

import time
from typing import NamedTuple

from dupr_tf.comparing.cell import cell_config
from dupr_tf.comparing.grid import Cell
from dupr_tf.comparing.record import Comparison
from dupr_tf.config.detectors import DETECTORS
from dupr_tf.data.labels.split import Split
from dupr_tf.detection.task_labels import LABELS, layout_of

STEPS = 12
WARMUP = 4  # steps that are not measured
IMAGES = 32  # images that are evaluated, after some that are not measured


class Seconds(NamedTuple):
    """Seconds of the parts of a cell: its start, a step, and the evaluation of an image."""

    start: float
    step: float
    image: float

    def of_cell(self, steps: int, images: int) -> float:
        return self.start + steps * self.step + images * self.image


def measure(comparison: Comparison, train: Split, val: Split) -> Seconds:
    """Trains for `STEPS` steps from random weights, and evaluates a few images."""
    begin = time.perf_counter()
    from dupr_tf.detection.registry import TASKS, build_detector  # loads TensorFlow
    from dupr_tf.detection.training import detector_optimizer
    from dupr_tf.models.resnet import build_backbone

    config = cell_config(comparison, Cell("", max(comparison.shares), 0), comparison.rates[0])
    task = DETECTORS[config.detector.kind].facts["task"]
    backbone = build_backbone(config.model.backbone, config.model.width, include_normalization=True)
    detector = build_detector(backbone, train.class_names, config)
    detector.compile(detector_optimizer(config, LABELS[task].learnable(train), detector.backbone))
    times = []
    with TASKS[task].batches(train, config, STEPS) as batches:
        for batch in batches:
            times.append(time.perf_counter())
            detector.train_on_batch(batch)
    end = time.perf_counter()
    step = (end - times[WARMUP]) / (len(times) - WARMUP)
    layout = layout_of(comparison.data, "val", config.data.kind, task)
    chosen = [val.select(range(at, min(at + IMAGES, len(val)))) for at in (0, max(0, len(val) - IMAGES))]
    marks = []
    for images in chosen:
        marks.append(time.perf_counter())
        TASKS[task].measure(detector, images, layout, config.data)
    image = (time.perf_counter() - marks[1]) / len(chosen[1])
    return Seconds(times[WARMUP] - begin, step, image)
