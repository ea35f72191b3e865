"""Builds detectors by their kind, and names the task of each: its batches and its evaluation.

`task_labels.py` reads the labelled images of a task.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
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
from dupr_tf.detection.confusion import confusion_picture, count_confusion, name_confusion, suggest_threshold
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


class Measured(NamedTuple):
    """The result of an evaluation: scores, and pictures that are drawn after the scores are written."""

    metrics: dict
    pictures: dict[str, Callable[[Path], None]]  # {file name: function that draws it}


class Task(NamedTuple):
    """A row of the table of tasks."""

    batches: Callable  # (images, config, steps, start) -> reader of the batches of the steps from start on
    measure: Callable  # (detector, images, layout, data section) -> Measured


def measure_boxes(detector, annotated, layout, data: DataConfig, masks=False) -> Measured:
    """Computes COCO's AP of boxes, VOC's metrics for VOC data, the confusion of classes and a score threshold."""
    detections, most = detect(detector, annotated, data), detector.max_detections
    metrics, curves = coco_scores(annotated, detections, most=most)
    if layout == "voc":  # detectron2 uses the 11 points for VOC2007's test set, and so do published figures
        metrics |= {f"voc_{metric}": _summary(voc_ap(annotated, detections, metric)) for metric in ("11_point", "area")}
    if masks:
        metrics["masks"], curves = coco_scores(annotated, detections, masks=True, most=most)
    if masks and annotated.void is not None:
        metrics["cityscapes"] = cityscapes_ap(annotated, detections)
    names, threshold = annotated.class_names, suggest_threshold(annotated, detections)
    least = detector.score_threshold if threshold is None else threshold["min_score"]
    counts = count_confusion(annotated, detections, least)
    limits = _limits(detector, "score_threshold", "nms_iou", "max_detections")
    metrics |= {"suggested_threshold": threshold, "confusion": name_confusion(counts, names), "limits": limits}
    title = f"Precision and recall of {'masks' if masks else 'boxes'} at IoU 0.5"
    pictures = {
        "precision_recall.png": lambda path: precision_recall_picture(curves, path, title),
        "detections.png": lambda path: contact_sheet(annotated, detections, path, data=data),
        "confusion.png": confusion_picture(counts, names, f"detections with a score of {least:.3f} or more"),
    }
    return Measured(metrics, pictures)


def measure_masks(detector, annotated, layout, data: DataConfig) -> Measured:
    """Computes `measure_boxes`, and the same for masks; Cityscapes' AP for Cityscapes data."""
    return measure_boxes(detector, annotated, layout, data, masks=True)


def measure_segments(detector, segmented: SegmentedImages, layout, data: DataConfig) -> Measured:
    """Computes mIoU and the confusion over all labelled pixels of a split, at the size of the originals."""
    matrix, shown, wanted = ConfusionMatrix(len(segmented.class_names)), {}, sheet_positions(len(segmented), 4)
    sides = detector.test_short_side, detector.max_long_side
    with segment_eval_batches(segmented, EVAL_BATCH, data, *sides) as batches:
        for batch in batches:
            predicted = np.asarray(detector.predict_on_batch({"images": tf.constant(batch["images"])}))
            for row, size, index in zip(predicted, batch["image_sizes"], batch["index"].tolist(), strict=True):
                classes = segments_to_original(row, size, segmented.sizes[index])
                matrix.add(segmented.truth(index), classes)
                if index in wanted:
                    shown[index] = classes
    names = segmented.class_names
    metrics = {"confusion": name_confusion(matrix.counts, names), "limits": _limits(detector)}
    pictures = {
        "segments.png": lambda path: segmentation_sheet(segmented, shown, path, data),
        "confusion.png": confusion_picture(matrix.counts, names, "pixels"),
    }
    return Measured({**matrix.scores(names), **metrics}, pictures)


TASKS = {
    "boxes": Task(train_batches, measure_boxes),
    "masks": Task(train_batches, measure_masks),
    "segments": Task(segment_train_batches, measure_segments),
}


def _limits(detector, *names: str) -> dict:
    """Returns the settings of a detector that bound its detections, in `predict` as in the metrics."""
    sizes = ("test_short_side", "max_long_side") if detector.image_size is None else ("image_size",)
    return {name: getattr(detector, name) for name in (*names, *sizes)}


def _summary(metrics: dict) -> dict:
    return {name: metrics[name] for name in SUMMARY}
