"""Computes Cityscapes' average precision of instance masks, on arrays.

It follows cityscapesScripts 2.3.0 (`evalInstanceLevelSemanticLabeling`, without distances), which published results
use. It differs from COCO's in how detections and objects are matched and in how the area is summed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from pycocotools import mask as coco_mask

from dupr_tf.data.labels.annotations import AnnotatedImages
from dupr_tf.data.labels.run_lengths import area_of, as_coco
from dupr_tf.detection.coco_eval import check_detections

IOUS = np.arange(0.5, 1.0, 0.05)
MIN_REGION = 100  # px; smaller objects are not counted


class _Scene(NamedTuple):
    """The detections (d) of one class in one image, and the objects (g) that count."""

    scores: np.ndarray  # (d,)
    ious: np.ndarray  # (d, g)
    ignorable: np.ndarray  # (d,) share of a detection on groups, too small objects and void pixels


def cityscapes_ap(annotated: AnnotatedImages, detections: Sequence[dict]) -> dict:
    """Computes Cityscapes' AP of the masks of a split.

    An object of 100 pixels or more counts. A detection belongs to an object if their IoU is above the threshold. The
    one with the best score is a hit; others of the same object are false. A detection of no object is false too, unless
    more than the threshold's share of it lies on groups (`ignored`) or small objects of its class, or on `void`.
    Precision and recall are taken at every score, and summed over recall by the trapezoidal rule.

    Args:
        annotated: the ground truth, read with masks.
        detections: for each image, in order, `classes` (k,), `scores` (k,) and `masks`, k run lengths.

    Returns:
        `AP` (mean over the IoU thresholds 0.5, 0.55, …, 0.95), `AP50`, and `per_class`, `per_class_AP50`: name -> AP.
        Values are None if no object counts.

    Raises:
        UserError: the numbers of images and detections differ, or one of them has no masks.
    """
    check_detections(annotated, detections, masks=True)
    aps = np.full((len(annotated.class_names), len(IOUS)), np.nan)
    for label in range(len(annotated.class_names)):
        scenes = [_scene(annotated, image, results, label) for image, results in enumerate(detections)]
        if any(scene.ious.shape[1] for scene in scenes):
            aps[label] = [_average_precision(scenes, iou) for iou in IOUS]
    known = aps[~np.isnan(aps[:, 0])]
    columns = {"per_class": aps.mean(1), "per_class_AP50": aps[:, 0]}
    return {
        "AP": float(known.mean()) if known.size else None,
        "AP50": float(known[:, 0].mean()) if known.size else None,
        **{
            what: {
                name: None if np.isnan(value) else float(value)
                for name, value in zip(annotated.class_names, values, strict=True)
            }
            for what, values in columns.items()
        },
    }


def _scene(annotated: AnnotatedImages, image: int, results: dict, label: int) -> _Scene:
    size = annotated.sizes[image]
    objects = np.flatnonzero(annotated.labels[image] == label)
    truth = [annotated.masks[image][k] for k in objects]
    areas = np.array([area_of(mask, size) for mask in truth], np.float64)
    group, small = annotated.ignored[image][objects], areas < MIN_REGION
    chosen = [k for k in np.flatnonzero(np.asarray(results["classes"]) == label) if area_of(results["masks"][k], size)]
    masks = [results["masks"][k] for k in chosen]
    own_areas = np.array([area_of(mask, size) for mask in masks], np.float64)
    overlaps = _overlaps(masks, truth, size)  # (d, truth) px
    ious = overlaps / np.maximum(own_areas[:, None] + areas[None] - overlaps, 1)
    void = [] if annotated.void is None else [annotated.void[image]]
    # A group of less than 100 pixels counts twice here, as in cityscapesScripts.
    nothing = _overlaps(masks, void, size).sum(1) + overlaps[:, group].sum(1) + overlaps[:, small].sum(1)
    return _Scene(
        np.asarray(results["scores"], np.float64)[chosen],
        ious[:, ~group & ~small],
        nothing / np.maximum(own_areas, 1),
    )


def _overlaps(masks: list[bytes], others: list[bytes], size) -> np.ndarray:
    """Counts the pixels that pairs of masks share, (n, m)."""
    if not masks or not others:
        return np.zeros((len(masks), len(others)))
    # With "crowds" pycocotools divides by the area of the first mask alone.
    shares = coco_mask.iou([as_coco(m, size) for m in masks], [as_coco(m, size) for m in others], [1] * len(others))
    return np.round(shares * np.array([[area_of(mask, size)] for mask in masks]))


def _average_precision(scenes: list[_Scene], iou: float) -> float:
    hits, scores, missed = [], [], 0
    for scene in scenes:
        matched = scene.ious > iou
        for column in matched.T:
            matches = np.sort(scene.scores[column])
            missed += not matches.size
            scores += matches.tolist()
            hits += [*([0] * (matches.size - 1)), 1][: matches.size]
        false = ~matched.any(1) & (scene.ignorable <= iou)
        scores += scene.scores[false].tolist()
        hits += [0] * int(false.sum())
    if not scores:
        return 0.0
    order = np.argsort(scores, kind="stable")
    hits, scores = np.array(hits)[order], np.array(scores)[order]
    firsts = np.unique(scores, return_index=True)[1]  # each threshold includes all detections from its first on
    true = hits.sum() - np.append(0, np.cumsum(hits))[firsts]
    precision = np.append(true / (len(hits) - firsts), 1.0)
    recall = np.append(true / (hits.sum() + missed), 0.0)
    # Half of the distance to either neighbour; at both ends the neighbour is the point itself.
    steps = np.convolve(np.concatenate([recall[:1], recall, [0.0]]), [-0.5, 0, 0.5], "valid")
    return float(precision @ steps)
