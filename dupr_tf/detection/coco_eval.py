"""Computes COCO's average precision of boxes or masks with pycocotools, on arrays."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Sequence

import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from dupr_tf.data.labels.annotations import AnnotatedImages
from dupr_tf.data.labels.run_lengths import as_coco
from dupr_tf.errors import UserError

MOST_DETECTIONS = 100  # an image, as COCO counts them
SIZES = ("small", "medium", "large")  # pycocotools' areas after "all"
Curves = dict[str, tuple[np.ndarray, np.ndarray]]  # class name -> recall, precision at IoU 0.5


def coco_ap(
    annotated: AnnotatedImages, detections: Sequence[dict], masks: bool = False, most: int = MOST_DETECTIONS
) -> dict:
    """Computes COCO's AP of the detections of a split.

    Ignored boxes (VOC `difficult`, COCO crowds) are passed as crowds. pycocotools reads no flag but `iscrowd`. It
    treats a crowd as VOC treats a difficult box: missing it costs nothing. A detection that matches it, and no counted
    box, is left out instead of being a false positive. Overlap with a crowd is divided by the detection's own area, so
    a detection well inside a large ignored box is also left out.

    Args:
        annotated: the ground truth.
        detections: for each image, in order, `boxes` (k, 4) float x1 y1 x2 y2 in pixels of the image,
            `classes` (k,) int and `scores` (k,) float, and for masks `masks`, k run lengths.
        masks: compare masks instead of boxes.
        most: detections per image that count, the best ones.

    Returns:
        `AP` (mean over IoU 0.5 to 0.95), `AP50`, `AP75`, `AP_small`, `AP_medium`, `AP_large` in [0, 1], and
        `per_class` and `per_class_AP50`: name -> AP. Values are None if no object counts.

    Raises:
        UserError: the numbers of images and detections differ, or masks are compared and there are none.
    """
    return coco_scores(annotated, detections, masks, most)[0]


def coco_scores(
    annotated: AnnotatedImages, detections: Sequence[dict], masks: bool = False, most: int = MOST_DETECTIONS
) -> tuple[dict, Curves]:
    """Computes the result of `coco_ap`, and recall and precision at IoU 0.5, (101,) each, of classes with objects."""
    check_detections(annotated, detections, masks)
    truth = _ground_truth(annotated, masks)
    rows = _mask_rows(annotated, detections) if masks else _box_rows(detections)
    with contextlib.redirect_stdout(io.StringIO()):
        results = _empty_results(truth) if not len(rows) else truth.loadRes(rows)
        evaluation = COCOeval(truth, results, "segm" if masks else "bbox")
        evaluation.params.maxDets = [most]
        evaluation.evaluate()
        evaluation.accumulate()  # not `summarize`, which gives -1 for AP unless 100 detections count
    # (IoU thresholds, recalls, classes, sizes, most detections)
    by_size = evaluation.eval["precision"][..., -1]
    precision = by_size[..., 0]
    result = {"AP": _mean(precision), "AP50": _mean(precision[0]), "AP75": _mean(precision[5])}
    result |= {f"AP_{name}": _mean(by_size[..., i]) for i, name in enumerate(SIZES, start=1)}
    result["per_class"] = {name: _mean(precision[:, :, k]) for k, name in enumerate(annotated.class_names)}
    result["per_class_AP50"] = {name: _mean(precision[0, :, k]) for k, name in enumerate(annotated.class_names)}
    recall = np.asarray(evaluation.params.recThrs)
    at_half = {name: precision[0, :, k] for k, name in enumerate(annotated.class_names)}
    return result, {name: (recall, values) for name, values in at_half.items() if values[0] > -1}


def check_detections(annotated: AnnotatedImages, detections: Sequence[dict], masks: bool) -> None:
    """Raises UserError if images and detections, or masks, do not fit together."""
    if len(detections) != len(annotated):
        raise UserError(
            "detections",
            f"Expected one entry for each of the {len(annotated)} images, received {len(detections)}.",
            "Pass the detections of every image, in order.",
        )
    if masks and annotated.masks is None:
        raise UserError("annotated", "The annotations have no masks.", "Call read_annotations with masks=True.")
    if masks and not all("masks" in results for results in detections):
        raise UserError("detections", "The detections have no masks.", "Use a detector that finds masks.")


def _ground_truth(annotated: AnnotatedImages, masks: bool) -> COCO:
    images, annotations = [], []
    for image, (height, width) in enumerate(annotated.sizes):
        images.append({"id": image, "height": int(height), "width": int(width)})
        columns = (
            annotated.boxes[image],
            annotated.labels[image],
            annotated.ignored[image],
            annotated.areas[image],
        )
        for k, (box, label, ignored, area) in enumerate(zip(*columns, strict=True)):
            x1, y1, x2, y2 = map(float, box)
            annotations.append(
                {
                    "id": len(annotations) + 1,  # pycocotools takes an annotation 0 for "no match"
                    "image_id": image,
                    "category_id": int(label),
                    "bbox": [x1, y1, x2 - x1, y2 - y1],
                    "area": float(area),
                    "iscrowd": int(ignored),
                }
            )
            if masks:
                annotations[-1]["segmentation"] = as_coco(annotated.masks[image][k], (height, width))
    categories = [{"id": number, "name": name} for number, name in enumerate(annotated.class_names)]
    return _index({"info": {}, "images": images, "annotations": annotations, "categories": categories})


def _box_rows(detections: Sequence[dict]) -> np.ndarray:
    """Returns the array form of COCO's results, (n, 7): `image, x, y, width, height, score, class`."""
    rows = []
    for image, results in enumerate(detections):
        boxes = np.asarray(results["boxes"], np.float64).reshape(-1, 4)
        sides = boxes[:, 2:] - boxes[:, :2]
        ids = np.full((len(boxes), 1), image, np.float64)
        columns = (np.asarray(results[name], np.float64).reshape(-1, 1) for name in ("scores", "classes"))
        rows.append(np.concatenate([ids, boxes[:, :2], sides, *columns], axis=1))
    return np.concatenate(rows) if rows else np.zeros((0, 7))


def _mask_rows(annotated: AnnotatedImages, detections: Sequence[dict]) -> list[dict]:
    """Returns COCO's results with masks."""
    return [
        {
            "image_id": image,
            "category_id": int(label),
            "score": float(score),
            "segmentation": as_coco(mask, annotated.sizes[image]),
        }
        for image, results in enumerate(detections)
        for label, score, mask in zip(results["classes"], results["scores"], results["masks"], strict=True)
    ]


def _empty_results(truth: COCO) -> COCO:
    """Returns the results for no detections at all, on which `loadRes` would raise."""
    return _index({**truth.dataset, "annotations": []})


def _index(dataset: dict) -> COCO:
    coco = COCO()
    coco.dataset = dataset
    with contextlib.redirect_stdout(io.StringIO()):
        coco.createIndex()
    return coco


def _mean(precision: np.ndarray) -> float | None:
    valid = precision[precision > -1]
    return float(valid.mean()) if valid.size else None
