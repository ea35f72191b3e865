"""Anchors: boxes of some sizes and three shapes at every cell of a map.

KerasCV's `AnchorGenerator` counts cells from a Python number, so it takes no image whose size is known only in the
graph. It also centres anchors on the middle of a cell. Here cell i of stride s is at i·s, as in detectron2 (offset 0):
with symmetric padding the receptive field of the cell is centred there.
"""

from __future__ import annotations

import numpy as np
import tensorflow as tf

RATIOS = (0.5, 1.0, 2.0)  # height / width


def cell_anchors(sizes):
    """Returns anchors around the point (0, 0), size by size, each in the three shapes.

    Args:
        sizes: square roots of areas, px.

    Returns:
        (3 · len(sizes), 4) float32 xyxy, NumPy.
    """
    half = [(size / ratio**0.5 / 2, size * ratio**0.5 / 2) for size in sizes for ratio in RATIOS]
    return np.array([(-w, -h, w, h) for w, h in half], np.float32)


def grid_anchors(height, width, stride, sizes):
    """Returns the anchors of a map, row by row, cell by cell.

    Args:
        height, width: size of the map, in cells; () int32 or Python numbers.
        stride: stride of the map, px.
        sizes: as in `cell_anchors`.

    Returns:
        (height · width · 3 · len(sizes), 4) float32 xyxy, in pixels; they may reach beyond the image.
    """
    y, x = tf.meshgrid(tf.range(height), tf.range(width), indexing="ij")
    corner = tf.cast(tf.stack([x, y, x, y], -1), tf.float32) * float(stride)  # (h, w, 4)
    return tf.reshape(corner[:, :, None] + cell_anchors(sizes), [-1, 4])
