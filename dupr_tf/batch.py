"""Defines `ViewPair`, a batch of pairs of views, which the data side passes to the model side.

Boxes are `(y1, x1, y2, x2)` in pixels of the view, after its flip.
"""

from __future__ import annotations

from typing import TypedDict

import numpy as np


class ViewPair(TypedDict):
    """Holds a batch of B pairs of square views of side `size`."""

    view_1: np.ndarray  # (B, size, size, 3) uint8 RGB: geometry applied, colours untouched
    view_2: np.ndarray  # (B, size, size, 3) uint8
    boxes_1: np.ndarray  # (B, 4) float32, the overlap in view_1
    boxes_2: np.ndarray  # (B, 4) float32, the overlap in view_2
    flipped_1: np.ndarray  # (B,) bool, view_1 is mirrored left-right
    flipped_2: np.ndarray  # (B,) bool
    valid: np.ndarray  # (B,) bool, the views overlap enough for a patch loss
    index: np.ndarray  # (B,) int64, position of the image in the source


def view_pair_signature(batch_size: int, size: int) -> dict[str, tuple]:
    """Returns shape and dtype of every field of a batch.

    Args:
        batch_size: pairs in a batch.
        size: side of a view, px.
    """
    rows = {
        "view_1": ((size, size, 3), np.uint8),
        "view_2": ((size, size, 3), np.uint8),
        "boxes_1": ((4,), np.float32),
        "boxes_2": ((4,), np.float32),
        "flipped_1": ((), np.bool_),
        "flipped_2": ((), np.bool_),
        "valid": ((), np.bool_),
        "index": ((), np.int64),
    }
    return {name: ((batch_size, *shape), np.dtype(dtype)) for name, (shape, dtype) in rows.items()}
