"""Builds detectors by their kind, and names the task of each: its batches and its evaluation.

`labels.py` reads the labelled images of a task.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from dupr_tf.config import DataConfig
from dupr_tf.config.detectors import DETECTORS
from dupr_tf.data.detection import train_batches
from dupr_tf.data.labels.segments import SegmentedImages
from dupr_tf.data.segmentation import segment_eval_batches, segment_train_batches, segments_to_original
from dupr_tf.detection.cityscapes_eval import cityscapes_ap
from dupr_tf.detection.coco_eval import coco_scores
from dupr_tf.detection.curves import precision_recall_picture
from dupr_tf.detection.pictures import contact_sheet, sheet_positions
from dupr_tf.detection.precision import set_precision
from dupr_tf.detection.predictions import EVAL_BATCH, detect
from dupr_tf.detection.segmentation_eval import ConfusionMatrix
from dupr_tf.detection.segmentation_sheet import segmentation_sheet
from dupr_tf.detection.voc_eval import voc_ap

SUMMARY = ("AP", "AP50", "AP75")  # of a second metric, besides the first


def build_detector(backbone, class_names, config):
    """Builds the detector of `config.detector` on this backbone in `train.precision`, without compiling it.

    Args:
        backbone: a functional model with `pyramid_level_inputs`; it takes RGB images in 0–255.
        class_names: names of the classes 0, 1, …
        config: config with a `detector` section.

    Raises:
        UserError: a kind whose extra is not installed, or a backbone it does not support.
    """
    detector = DETECTORS.load(config.detector.kind).from_experiment(backbone, tuple(class_names), config)
    set_precision(detector, config.train.policy)
    return detector


def task_of(detector):
    """Returns the task of a detector: "boxes", "masks" or "segments"."""
    tasks = {entry.target: entry.facts["task"] for entry in DETECTORS.values()}
    names = (f"{base.__module__}:{base.__name__}" for base in type(detector).__mro__)
    return next(tasks[name] for name in names if name in tasks)


class Task(NamedTuple):
    """A row of the table of tasks."""

    batches: Callable  # (images, config, steps, start) -> reader of the batches of the steps from start on
    measure: Callable  # (detector, images, output folder or None, layout, data section) -> contents of metrics.json


def measure_boxes(detector, annotated, output, layout, data: DataConfig, masks=False) -> dict:
    """Computes COCO's AP of boxes, and VOC's metrics for VOC data; with an output folder pictures too."""
    detections = detect(detector, annotated, data)
    metrics, curves = coco_scores(annotated, detections)
    if layout == "voc":  # detectron2 uses the 11 points for VOC2007's test set, and so do published figures
        metrics |= {f"voc_{metric}": _summary(voc_ap(annotated, detections, metric)) for metric in ("11_point", "area")}
    if masks:
        metrics["masks"], curves = coco_scores(annotated, detections, masks=True)
    if masks and annotated.void is not None:
        metrics["cityscapes"] = cityscapes_ap(annotated, detections)
    if output is not None:
        title = "of masks at IoU 0.5" if masks else "of boxes at IoU 0.5"
        precision_recall_picture(curves, output / "precision_recall.png", f"Precision and recall {title}")
        contact_sheet(annotated, detections, output / "detections.png", data=data)
    return metrics


def measure_masks(detector, annotated, output, layout, data: DataConfig) -> dict:
    """Computes `measure_boxes`, and the same for masks; Cityscapes' AP for Cityscapes data."""
    return measure_boxes(detector, annotated, output, layout, data, masks=True)


def measure_segments(detector, segmented: SegmentedImages, output, layout, data: DataConfig) -> dict:
    """Computes mIoU over all labelled pixels of a split, at the size of the originals; with a folder a picture too."""
    matrix, shown = ConfusionMatrix(len(segmented.class_names)), {}
    wanted = sheet_positions(len(segmented), 4) if output is not None else ()
    sides = detector.test_short_side, detector.max_long_side
    with segment_eval_batches(segmented, EVAL_BATCH, data, *sides) as batches:
        for batch in batches:
            predicted = np.asarray(detector.predict_on_batch({"images": tf.constant(batch["images"])}))
            for row, size, index in zip(predicted, batch["image_sizes"], batch["index"].tolist(), strict=True):
                classes = segments_to_original(row, size, segmented.sizes[index])
                matrix.add(segmented.truth(index), classes)
                if index in wanted:
                    shown[index] = classes
    if output is not None:
        segmentation_sheet(segmented, shown, output / "segments.png", data)
    return matrix.scores(segmented.class_names)


TASKS = {
    "boxes": Task(train_batches, measure_boxes),
    "masks": Task(train_batches, measure_masks),
    "segments": Task(segment_train_batches, measure_segments),
}


def _summary(metrics: dict) -> dict:
    return {name: metrics[name] for name in SUMMARY}
