"""Computes PASCAL VOC's average precision, as its development kit defines it, on arrays."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from dupr_tf.data.boxes import box_ious
from dupr_tf.data.labels.annotations import AnnotatedImages
from dupr_tf.detection.coco_eval import check_detections
from dupr_tf.errors import UserError

IOUS = np.linspace(0.5, 0.95, 10)
RECALLS = np.linspace(0, 1, 101)
METRICS = ("area", "11_point")
ROUNDING = 1e-9  # a recall of 3 in 10 reaches 0.3 despite rounding in the last bit


def voc_ap(annotated: AnnotatedImages, detections: Sequence[dict], metric: str = "area") -> dict:
    """Computes VOC's AP of the detections of a split.

    Detections of a class are processed from the best score down. Each is compared with the box of its class and image
    that it overlaps most, even if that box already has a hit. From the IoU threshold on, the first one is a hit and the
    next ones are false. A detection whose box is ignored (`difficult`) does not count. Boxes here end where VOC's last
    pixel ends, so that areas are those of the kit, which adds 1 to every side.

    Args:
        annotated: the ground truth.
        detections: as for `coco_ap`; all of them count.
        metric: "area" is the area under the precision made monotonous (VOC 2010 and later). "11_point" is its mean at
            the recalls 0, 0.1, …, 1 (until 2009, the one of published VOC07 figures).

    Returns:
        `AP` (mean over IoU 0.5 to 0.95 in steps of 0.05), `AP50`, `AP75`, and `per_class`, `per_class_AP50`: name ->
        AP. `AP50` is VOC's mAP. `AP` is not VOC's own, but work that follows its protocol reports it. Values are None
        if no object counts.

    Raises:
        UserError: another metric, or another number of detections than images.
    """
    if metric not in METRICS:
        raise UserError("metric", f"Expected {' or '.join(METRICS)}, received {metric!r}.", "Pass one of them.")
    check_detections(annotated, detections, masks=False)
    aps = np.full((len(annotated.class_names), len(IOUS)), np.nan)
    average = _area if metric == "area" else _at_recalls
    for label in range(len(annotated.class_names)):
        counted, overlaps, owners, difficult = _matches(annotated, detections, label)
        if not counted:
            continue
        for t, iou in enumerate(IOUS):
            recall, precision = _recall_precision(overlaps, owners, difficult, iou, counted)
            aps[label, t] = average(recall, precision)
    return _summary(aps, annotated.class_names)


def _matches(annotated, detections, label) -> tuple[int, np.ndarray, np.ndarray, np.ndarray]:
    """Matches the detections of a class with its boxes.

    Returns:
        count: number of boxes that count.
        overlaps: (d,) largest overlap of each detection, best score first; 0 without a box.
        owners: (d,) number of that box within the split; -1 without a box.
        difficult: (d,) bool, True if that box does not count.
    """
    columns, counted, boxes_before = [], 0, 0
    for image, results in enumerate(detections):
        objects = np.flatnonzero(annotated.labels[image] == label)
        truth, ignored = annotated.boxes[image][objects], annotated.ignored[image][objects]
        counted += int((~ignored).sum())
        chosen = np.asarray(results["classes"]) == label
        ious = box_ious(np.asarray(results["boxes"], np.float64).reshape(-1, 4)[chosen], truth)
        best = ious.argmax(1) if len(objects) else np.zeros(len(ious), int)
        some = ious.max(1, initial=0) > 0
        flags = ignored[best] & some if len(objects) else some
        owners = np.where(some, boxes_before + best, -1)
        columns.append((np.asarray(results["scores"], np.float64)[chosen], ious.max(1, initial=0), owners, flags))
        boxes_before += len(objects)
    scores, overlaps, owners, difficult = (np.concatenate(column) for column in zip(*columns, strict=True))
    order = np.argsort(-scores, kind="stable")
    return counted, overlaps[order], owners[order], difficult[order].astype(bool)


def _recall_precision(overlaps, owners, difficult, iou, counted) -> tuple[np.ndarray, np.ndarray]:
    """Returns recall and precision (d',) after each detection that counts."""
    reached = overlaps >= iou - ROUNDING
    hits, candidates = np.zeros(len(overlaps), bool), np.flatnonzero(reached & ~difficult)
    hits[candidates[np.unique(owners[candidates], return_index=True)[1]]] = True
    considered = ~(reached & difficult)
    true, false = np.cumsum(hits[considered]), np.cumsum(~hits[considered])
    return true / counted, true / np.maximum(true + false, 1)


def _area(recall: np.ndarray, precision: np.ndarray) -> float:
    envelope = np.maximum.accumulate(precision[::-1])[::-1]
    return float(np.diff(recall, prepend=0) @ envelope)


def _at_recalls(recall: np.ndarray, precision: np.ndarray) -> float:
    return float(_interpolated(recall, precision, np.linspace(0, 1, 11)).mean())


def _interpolated(recall: np.ndarray, precision: np.ndarray, at: np.ndarray) -> np.ndarray:
    """Returns the largest precision from each recall of `at` on; 0 if it is not reached."""
    envelope = np.append(np.maximum.accumulate(precision[::-1])[::-1], 0.0)
    return envelope[np.searchsorted(recall, at - ROUNDING)]


def _summary(aps: np.ndarray, names: Sequence[str]) -> dict:
    """Averages (classes, IoU thresholds); rows of NaN have no objects."""
    known = aps[~np.isnan(aps[:, 0])]

    def mean(values):
        return float(values.mean()) if values.size else None

    per_class = {name: None if np.isnan(row[0]) else row for name, row in zip(names, aps, strict=True)}
    return {
        "AP": mean(known),
        "AP50": mean(known[:, 0]),
        "AP75": mean(known[:, 5]),
        "per_class": {name: None if row is None else mean(row) for name, row in per_class.items()},
        "per_class_AP50": {name: None if row is None else float(row[0]) for name, row in per_class.items()},
    }
