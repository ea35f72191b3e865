"""Computes overlaps of boxes, and leaves out boxes that repeat others."""

from __future__ import annotations

import numpy as np


def box_ious(boxes: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Computes (n, m) intersection over union of boxes (n, 4) and (m, 4), x1 y1 x2 y2; 0 if both have no area."""
    boxes, others = np.asarray(boxes, np.float64)[:, None], np.asarray(others, np.float64)[None]
    sides = np.minimum(boxes[..., 2:], others[..., 2:]) - np.maximum(boxes[..., :2], others[..., :2])
    overlap = np.maximum(sides, 0).prod(-1)
    union = (boxes[..., 2:] - boxes[..., :2]).prod(-1) + (others[..., 2:] - others[..., :2]).prod(-1) - overlap
    return np.divide(overlap, union, out=np.zeros_like(overlap), where=union > 0)


def apart(boxes: np.ndarray, iou: float) -> list[int]:
    """Returns the positions of boxes (n, 4) to keep: in their order, without those that overlap a kept one by `iou`."""
    kept: list[int] = []
    for k, overlaps in enumerate(box_ious(boxes, boxes)):
        if (overlaps[kept] < iou).all():
            kept.append(k)
    return kept
