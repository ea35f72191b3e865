"""The batches of each task, and the evaluation of detections. `labels.py` reads its labelled images."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from dupr_tf.config import DataConfig
from dupr_tf.data.detection import eval_batches, train_batches
from dupr_tf.data.labels.annotations import AnnotatedImages
from dupr_tf.data.labels.segments import SegmentedImages
from dupr_tf.data.segmentation import segment_eval_batches, segment_train_batches, segments_to_original
from dupr_tf.detection.cityscapes_eval import cityscapes_ap
from dupr_tf.detection.coco_eval import coco_scores
from dupr_tf.detection.curves import precision_recall_picture
from dupr_tf.detection.found import found_in_originals
from dupr_tf.detection.pictures import contact_sheet, sheet_positions
from dupr_tf.detection.segmentation_eval import ConfusionMatrix
from dupr_tf.detection.segmentation_sheet import segmentation_sheet
from dupr_tf.detection.voc_eval import voc_ap

EVAL_BATCH = 8  # images
SUMMARY = ("AP", "AP50", "AP75")  # of a second metric, besides the first


class Task(NamedTuple):
    """A row of the table of tasks."""

    batches: Callable  # (images, config, steps, start) -> reader of the batches of the steps from start on
    measure: Callable  # (detector, images, output folder or None, layout, data section) -> contents of metrics.json


def detect(detector, annotated: AnnotatedImages, data: DataConfig | None = None, batch_size: int = EVAL_BATCH) -> list:
    """Detects objects in every image.

    For each image it returns `boxes (k, 4)` xyxy in its pixels, `classes (k,)`, `scores (k,)`, and `masks` if any, best
    first.

    Args:
        detector: detector with `image_size` or `test_short_side` and `max_long_side`.
        annotated: the images.
        data: settings for reading images. Default: those of `DataConfig`.
        batch_size: images per batch.
    """
    found, sides = {}, (detector.test_short_side, detector.max_long_side)
    with eval_batches(annotated, detector.image_size, batch_size, data, *sides) as batches:
        for batch in batches:
            inputs = {name: tf.constant(batch[name]) for name in ("images", "image_sizes")}
            found |= found_in_originals(detector.predict_on_batch(inputs), batch, annotated)
    return [found[i] for i in range(len(annotated))]


def measure_boxes(detector, annotated, output, layout, data: DataConfig, masks=False) -> dict:
    """Computes COCO's AP of boxes, and VOC's metrics for VOC data; with an output folder pictures too."""
    found = detect(detector, annotated, data)
    metrics, curves = coco_scores(annotated, found)
    if layout == "voc":  # detectron2 uses the 11 points for VOC2007's test set, and so do published figures
        metrics |= {f"voc_{metric}": _summary(voc_ap(annotated, found, metric)) for metric in ("11_point", "area")}
    if masks:
        metrics["masks"], curves = coco_scores(annotated, found, masks=True)
    if masks and annotated.void is not None:
        metrics["cityscapes"] = cityscapes_ap(annotated, found)
    if output is not None:
        title = "of masks at IoU 0.5" if masks else "of boxes at IoU 0.5"
        precision_recall_picture(curves, output / "precision_recall.png", f"Precision and recall {title}")
        contact_sheet(annotated, found, output / "detections.png", data=data)
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
