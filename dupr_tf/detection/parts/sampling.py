"""Samples features of all levels at once for deformable attention (Zhu et al., 2021), in a few operations.

KerasHub samples each level and each of the four neighbours of a point on its own, in eight times as many
operations. Each of them costs time when a training step is traced.
"""

from __future__ import annotations

import numpy as np
import tensorflow as tf

NEIGHBOURS = np.array([[0, 0], [1, 0], [0, 1], [1, 1]], np.float32)  # x and y of the cells around a point


def attend(values, locations, weights, points, shapes):
    """Computes weighted sums of features, interpolated bilinearly between cell centres and 0 outside of a level.

    Args:
        values: (B, cells, heads, D) features of all levels, level after level, row after row.
        locations: (B, Q, heads, P, 2) x and y of the points in sides of the image.
        weights: (B, Q, heads, P) of the points.
        points: number of points in each level, P together.
        shapes: (height, width) of each level in cells.

    Returns:
        (B, Q, heads · D), in the dtype of `values`.
    """
    sizes = np.repeat(np.array(shapes), points, axis=0)  # (P, 2) height and width
    areas = [height * width for height, width in shapes]
    starts = np.repeat(np.cumsum([0, *areas[:-1]]), points).astype(np.int32)  # (P,)
    limits = sizes[:, None, ::-1].astype(np.float32)  # (P, 1, 2) width and height
    at = tf.cast(locations, tf.float32)[..., None, :] * limits - 0.5  # (B, Q, heads, P, 1, 2)
    cells = tf.floor(at) + NEIGHBOURS  # (B, Q, heads, P, 4, 2)
    inside = tf.reduce_all((cells >= 0) & (cells < limits), -1)
    shares = tf.reduce_prod(1 - tf.abs(at - cells), -1) * tf.cast(inside, tf.float32)
    columns, rows = tf.unstack(tf.cast(tf.clip_by_value(cells, 0, limits - 1), tf.int32), axis=-1)
    indices = starts[:, None] + rows * sizes[:, 1:].astype(np.int32) + columns  # (B, Q, heads, P, 4)
    shares = tf.cast(shares, values.dtype) * weights[..., None]
    flat = tf.concat([tf.shape(shares)[:3], [4 * len(sizes)]], 0)
    indices, shares = (tf.transpose(tf.reshape(one, flat), [0, 2, 1, 3]) for one in (indices, shares))
    chosen = tf.gather(tf.transpose(values, [0, 2, 1, 3]), indices, batch_dims=2)  # (B, heads, Q, 4 P, D)
    sums = tf.transpose(tf.squeeze(tf.expand_dims(shares, -2) @ chosen, -2), [0, 2, 1, 3])  # (B, Q, heads, D)
    return tf.reshape(sums, [*tf.unstack(tf.shape(sums)[:2]), values.shape[2] * values.shape[3]])
