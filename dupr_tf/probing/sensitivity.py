"""Measures how a region's features change as its box moves off an object (paper, section 4.7, eq. 8, Fig. 5)."""

from __future__ import annotations

import numpy as np
import tensorflow as tf

from dupr_tf.data.boxes import box_ious
from dupr_tf.data.labels.annotations import AnnotatedImages
from dupr_tf.ops.roi_align import roi_align
from dupr_tf.probing.features import unit
from dupr_tf.probing.image_views import read_each, whole_view
from dupr_tf.probing.pairs import BATCH

ROIS = 20  # boxes per object
BINS = 10  # bins of IoU
CANDIDATES = 4000  # boxes drawn, of which one is kept for each step of IoU


def similarity(region: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Computes eq. 8: the mean cosine over places of a region `(S, S, C)` and others `(R, S, S, C)`; `(R,)`."""
    return (unit(np.asarray(region))[None] * unit(np.asarray(others))).sum(-1).mean((1, 2))


def iou(box: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Computes the intersection over union of a box (4,) with others (n, 4), in either axis order."""
    return box_ious(box[None], others)[0]


def sample_rois(box: np.ndarray, size: float, rng, count: int = ROIS, least: float = 8.0) -> tuple:
    """Draws boxes around an object, with IoUs spread evenly over 0–1.

    Args:
        box: (4,) `(y1, x1, y2, x2)` px.
        size: side of the image, px; the boxes lie inside it.
        rng: a NumPy generator.
        count: number of boxes, one in each `1/count` of IoU.
        least: least side of a box, px.

    Returns:
        (n, 4) float32 and their IoUs (n,); n is less than `count` if no box of some IoU fits.
    """
    box = np.asarray(box, np.float64)
    centre, sides = (box[:2] + box[2:]) / 2, box[2:] - box[:2]
    spread = np.exp(rng.uniform(np.log(0.02), np.log(2), (CANDIDATES, 1)))
    middle = centre + spread * sides * rng.normal(0, 0.5, (CANDIDATES, 2))
    half = sides / 2 * np.exp(spread * rng.normal(0, 0.35, (CANDIDATES, 2)))
    near = np.concatenate([middle - half, middle + half], 1)
    ends = np.sort(rng.uniform(0, size, (CANDIDATES // 4, 2, 2)), 1).reshape(-1, 4)  # anywhere, for low IoUs
    drawn = np.clip(np.concatenate([near, ends]), 0, size)
    drawn = drawn[(drawn[:, 2:] - drawn[:, :2]).min(1) >= least]
    ious = iou(box, drawn)
    step = np.minimum((ious * count).astype(int), count - 1)
    order = rng.permutation(len(drawn))
    _, first = np.unique(step[order], return_index=True)
    chosen = order[first]
    return drawn[chosen].astype(np.float32), ious[chosen]


def curve(ious: np.ndarray, values: np.ndarray, bins: int = BINS) -> dict:
    """Computes mean and deviation of similarities in equal bins of IoU, and the line through all of them.

    Args:
        ious: (n,) in 0–1.
        values: (n,) similarities.
        bins: number of bins.

    Returns:
        `{"iou", "mean", "std", "count", "slope", "intercept", "correlation"}`. "iou" has the bin centres; "mean" and
        "std" are None in an empty bin. The correlation of constant values is 0.
    """
    place = np.minimum((np.asarray(ious) * bins).astype(int), bins - 1)
    inside = [values[place == k] for k in range(bins)]
    slope, intercept = np.polyfit(ious, values, 1)
    varies = np.std(values) > 1e-9 and np.std(ious) > 0
    return {
        "iou": [(k + 0.5) / bins for k in range(bins)],
        "mean": [float(v.mean()) if len(v) else None for v in inside],
        "std": [float(v.std()) if len(v) else None for v in inside],
        "count": [len(v) for v in inside],
        "slope": float(slope), "intercept": float(intercept),
        "correlation": float(np.corrcoef(ious, values)[0, 1]) if varies else 0.0,
    }  # fmt: skip


def sensitivity(
    maps, annotated: AnnotatedImages, rows, size: int = 448, level: str = "P4", cells: int = 7, seed: int = 0,
    section=None,
) -> dict:  # fmt: skip
    """Computes the curve of Fig. 5 for one backbone.

    Args:
        maps: from `feature_maps`, of `level`.
        annotated: the images.
        rows: (image, object) from `pick_objects`.
        size: px; images are squeezed into squares of this side.
        level: level of the features.
        cells: S of the regions.
        seed: seed of the boxes.
        section: settings for decoding images, as for `read_each`.

    Returns:
        The result of `curve`, with "images".
    """
    boxes = [annotated.boxes[i][k][[1, 0, 3, 2]] * size / np.tile(annotated.sizes[i], 2) for i, k in rows]
    paths = [annotated.paths[i] for i, _ in rows]
    ious, values, used = [], [], 0
    for indices, images in read_each(paths, lambda _, image: whole_view(image, size), BATCH, section):
        features = maps(images)[level]
        side = features.shape[1]
        for n, index in enumerate(indices):
            rois, overlap = sample_rois(boxes[index], size, np.random.default_rng([seed, int(index)]))
            both = np.concatenate([boxes[index][None].astype(np.float32), rois])
            # As many samples a bin as the largest region, the whole map, has cells in it: every cell is read.
            ratio = -(-side // cells)
            regions = roi_align(features[n : n + 1], tf.constant(both)[None], cells, side / size, ratio)[0].numpy()
            ious.append(overlap)
            values.append(similarity(regions[0], regions[1:]))
            used += 1
    return {**curve(np.concatenate(ious), np.concatenate(values)), "images": used}
