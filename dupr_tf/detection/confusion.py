"""Counts confusions of detected objects, and finds the best score threshold of a detector."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from dupr_tf.data.boxes import box_ious
from dupr_tf.data.labels.annotations import AnnotatedImages
from dupr_tf.text import plot_label

IOU = 0.5
NO_OBJECT = "(none)"  # the row of detections without an object, and the column of objects without a detection
MOST_NAMED, MOST_COUNTED = 40, 21  # classes whose names fit beside a picture, and whose counts fit into it
UNMATCHED, IGNORED = -1, -2


def suggest_threshold(annotated: AnnotatedImages, detections: Sequence[dict]) -> dict | None:
    """Finds the score from which detections have the best F1 at IoU 0.5, over all classes together.

    Args:
        annotated: the ground truth. Ignored boxes count neither as hits nor as misses.
        detections: as for `coco_ap`.

    Returns:
        `min_score`, `precision`, `recall` and `f1` in [0, 1]; None if no detection is a hit.
    """
    scores, hits = [], []
    for image, predicted in enumerate(detections):
        matches = _match(annotated, image, predicted, same_class=True)
        scores.append(np.asarray(predicted["scores"], np.float64)[matches != IGNORED])
        hits.append(matches[matches != IGNORED] >= 0)
    scores, hits = (np.concatenate(column) if column else np.zeros(0) for column in (scores, hits))
    counted = sum(int((~ignored).sum()) for ignored in annotated.ignored)
    if not counted or not hits.any():
        return None
    order = np.argsort(-scores, kind="stable")
    scores, true = scores[order], np.cumsum(hits[order])
    f1 = 2 * true / (np.arange(1, len(true) + 1) + counted)
    last_of_score = np.append(scores[1:] < scores[:-1], True)  # a threshold keeps all detections of the same score
    best = int(np.argmax(np.where(last_of_score, f1, -1)))
    shares = {"precision": true[best] / (best + 1), "recall": true[best] / counted, "f1": f1[best]}
    return {"min_score": float(scores[best]), **{name: float(value) for name, value in shares.items()}}


def count_confusion(annotated: AnnotatedImages, detections: Sequence[dict], min_score: float) -> np.ndarray:
    """Counts objects by true and detected class.

    A detection belongs to the object that it overlaps most, from IoU 0.5 on, whatever its class. Detections choose in
    the order of their scores, and an object is taken once. A detection that belongs to an ignored object, or is half
    inside of one of its class, does not count.

    Args:
        annotated: the ground truth.
        detections: as for `coco_ap`.
        min_score: lower detections are left out.

    Returns:
        (C + 1, C + 1) int64, true class by detected class. The last row counts detections without an object, and the
        last column objects without a detection.
    """
    none = len(annotated.class_names)
    counts = np.zeros((none + 1, none + 1), np.int64)
    for image, predicted in enumerate(detections):
        kept = np.asarray(predicted["scores"]) >= min_score
        predicted = {name: np.asarray(predicted[name])[kept] for name in ("boxes", "classes", "scores")}
        matches, labels = (
            _match(annotated, image, predicted, same_class=False),
            np.append(annotated.labels[image], none),
        )
        counted = matches != IGNORED
        np.add.at(counts, (labels[matches[counted]], predicted["classes"][counted].astype(int)), 1)
        missed = ~annotated.ignored[image]
        missed[matches[matches >= 0]] = False
        np.add.at(counts, (annotated.labels[image][missed], none), 1)
    return counts


def _match(annotated: AnnotatedImages, image: int, detections: dict, same_class: bool) -> np.ndarray:
    """Returns (k,) int: for each detection the position of its object, or `UNMATCHED`, or `IGNORED`."""
    classes = np.asarray(detections["classes"]).astype(int)
    boxes = np.asarray(detections["boxes"], np.float64).reshape(-1, 4)
    overlaps = box_ious(boxes, annotated.boxes[image])  # (k, n)
    of_class = classes[:, None] == annotated.labels[image]
    inside = (shares_inside(boxes, annotated.boxes[image]) >= IOU) & of_class
    overlaps = np.where((overlaps >= IOU) & (of_class | (not same_class)), overlaps, 0)
    ignored, free = annotated.ignored[image], ~annotated.ignored[image]
    matches = np.where(((inside | (overlaps > 0)) & ignored).any(1), IGNORED, UNMATCHED)
    for k in np.argsort(-np.asarray(detections["scores"], np.float64), kind="stable"):
        left = overlaps[k] * free
        if left.max(initial=0) > 0:
            matches[k] = left.argmax()
            free[matches[k]] = False
    return matches


def shares_inside(boxes: np.ndarray, regions: np.ndarray) -> np.ndarray:
    """Computes the share of the area of each box (k, 4) that is in each region (n, 4): (k, n), 0 for empty boxes."""
    low = np.maximum(boxes[:, None, :2], regions[None, :, :2])
    high = np.minimum(boxes[:, None, 2:], regions[None, :, 2:])
    areas = (boxes[:, 2:] - boxes[:, :2]).clip(0).prod(1)[:, None]
    return np.divide((high - low).clip(0).prod(2), areas, out=np.zeros((len(boxes), len(regions))), where=areas > 0)


def name_confusion(counts: np.ndarray, class_names: Sequence[str]) -> dict[str, dict[str, int]]:
    """Returns {true class: {detected class: count}} without zeros; `NO_OBJECT` names a last row and column."""
    names = [*class_names, NO_OBJECT][: len(counts)]
    rows = ({names[k]: int(counts[row, k]) for k in np.flatnonzero(counts[row])} for row in range(len(counts)))
    return dict(zip(names, rows, strict=True))


def confusion_picture(counts: np.ndarray, class_names: Sequence[str], title: str = "") -> Callable[[Path], None]:
    """Returns a function that draws a confusion matrix to a PNG file: shares of a row as colours, and few counts.

    Args:
        counts: matrix of `count_confusion`, or of pixels.
        class_names: names of the classes 0, 1, …
        title: title above the matrix.
    """

    def draw(path: Path) -> None:
        from matplotlib.figure import Figure

        names = [plot_label(name) for name in (*class_names, NO_OBJECT)][: len(counts)]
        side = min(12.0, 4.0 + 0.3 * len(names))
        figure = Figure((side + 1, side), dpi=100, layout="constrained")
        axes = figure.add_subplot(xlabel="detected class", ylabel="true class")
        shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
        figure.colorbar(axes.imshow(shares, cmap="Blues", vmin=0, vmax=1), shrink=0.7, label="share of the row")
        if len(names) <= MOST_NAMED:
            axes.set_xticks(range(len(names)), names, rotation=90, parse_math=False)
            axes.set_yticks(range(len(names)), names, parse_math=False)
        if len(names) <= MOST_COUNTED:
            for row, column in np.argwhere(counts):
                ink = "white" if shares[row, column] > 0.5 else "black"
                text = f"{counts[row, column]:.3g}" if counts.max() >= 100_000 else f"{counts[row, column]:g}"
                axes.text(column, row, text, ha="center", va="center", color=ink, fontsize=8)
        axes.set_title(title, fontsize=10)
        figure.savefig(path, metadata={"Software": None})

    return draw
