"""Anchors: boxes or points at every cell of a map, whose size may be known only in the graph."""

from __future__ import annotations

import numpy as np
import tensorflow as tf

RATIOS = (0.5, 1.0, 2.0)  # height / width


def cell_anchors(sizes, ratios=RATIOS):
    """Returns anchors around the point (0, 0), size by size, each in all shapes.

    Args:
        sizes: square roots of areas, px.
        ratios: height / width of the shapes.

    Returns:
        (len(sizes) · len(ratios), 4) float32 xyxy, NumPy.
    """
    half = [(size / ratio**0.5 / 2, size * ratio**0.5 / 2) for size in sizes for ratio in ratios]
    return np.array([(-w, -h, w, h) for w, h in half], np.float32)


def grid_anchors(height, width, stride, sizes, ratios=RATIOS, offset=0.0):
    """Returns the anchors of a map, row by row, cell by cell.

    Args:
        height, width: size of the map, in cells; () int32 or Python numbers.
        stride: stride of the map, px.
        sizes, ratios: as in `cell_anchors`.
        offset: place of the centres in their cells, in strides. 0 is detectron2's: with symmetric padding the
            receptive field of cell i is centred at i · stride. 0.5 is KerasCV's.

    Returns:
        (height · width · len(sizes) · len(ratios), 4) float32 xyxy, in pixels; they may reach beyond the image.
    """
    y, x = tf.meshgrid(tf.range(height), tf.range(width), indexing="ij")
    centre = (tf.cast(tf.stack([x, y, x, y], -1), tf.float32) + offset) * float(stride)  # (h, w, 4)
    return tf.reshape(centre[:, :, None] + cell_anchors(sizes, ratios), [-1, 4])


def cell_centres(height, width, strides):
    """Returns the centres of the cells of several maps, map by map, row by row.

    Args:
        height, width: size of the image, px; () int32 or Python numbers.
        strides: strides of the maps, px.

    Returns:
        (N, 2) float32 x and y of the centres, px, and (N, 1) float32 strides.
    """
    centres, all_strides = [], []
    for stride in strides:
        rows, columns = (tf.range((side + stride - 1) // stride) for side in (height, width))
        y, x = tf.meshgrid(rows, columns, indexing="ij")
        cells = tf.reshape(tf.cast(tf.stack([x, y], -1), tf.float32), [-1, 2])
        centres.append((cells + 0.5) * float(stride))
        all_strides.append(tf.ones_like(cells[:, :1]) * float(stride))
    return tf.concat(centres, 0), tf.concat(all_strides, 0)
