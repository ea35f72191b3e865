"""Computes RoIAlign of many boxes on one map or a pyramid. Each box reads only its own level.

TensorFlow's form uses `crop_and_resize`, which ONNX files emulate with a loop over the boxes and LiteRT lacks. Exports
use gathers instead. They give the same values, but take five to ten times as long in TensorFlow.
"""

from __future__ import annotations

import tensorflow as tf

from dupr_tf.detection.parts.boxes import sides
from dupr_tf.detection.parts.target import TENSORFLOW, current_target

CANONICAL_SIDE, CANONICAL_LEVEL = 224.0, 4  # Lin et al., 2017, eq. 1
FIRST_LEVEL, LAST_LEVEL = 2, 5
SAMPLES = 2  # per side in each bin; detectron2 takes as many as a bin has cells, which has no fixed shape


def pool(features, boxes, strides, size, samples=SAMPLES):
    """Applies Mask R-CNN's RoIAlign (He et al., 2017, section 3).

    Coordinates are half-pixel ones (detectron2's ROIAlignV2).

    Args:
        features: a list of `(B, h, w, C)` maps. It has one, or the four P2 to P5, of which each box reads one.
        boxes: (B, R, 4) xyxy px. A sample more than one cell outside the map is 0, as in `roi_align`.
        strides: strides of the maps, px.
        size: bins per side, S.
        samples: samples per side in each bin, averaged.

    Returns:
        (B, R, S, S, C) in the dtype of `features`. Gradients flow into the features, not into the boxes.
    """
    count, number = (known or tf.shape(boxes)[axis] for axis, known in enumerate(boxes.shape[:2]))
    flat = tf.reshape(tf.stop_gradient(boxes), [-1, 4])
    image = tf.repeat(tf.range(count), number)
    if current_target() != TENSORFLOW:
        pooled = gather_samples(features, flat, image, strides, size, samples)
    elif len(features) == 1:
        pooled = _crops(features[0], flat / strides[0], image, size, samples)
    else:
        level = assign_levels(flat)
        rows = [tf.where(level == i)[:, 0] for i in range(len(features))]
        crops = [
            _crops(maps, tf.gather(flat, chosen) / stride, tf.gather(image, chosen), size, samples)
            for maps, chosen, stride in zip(features, rows, strides, strict=True)
        ]
        pooled = tf.dynamic_stitch([tf.cast(chosen, tf.int32) for chosen in rows], crops)
    return tf.reshape(pooled, [count, number, size, size, features[0].shape[-1]])


def assign_levels(boxes):
    """Returns int32 from 0 for P2 to 3 for P5, by the box's area (Lin et al., 2017, eq. 1: 224 px on P4)."""
    side = tf.sqrt(tf.maximum(tf.reduce_prod(sides(boxes), -1), 0.0))
    level = tf.floor(CANONICAL_LEVEL + tf.math.log(side / CANONICAL_SIDE + 1e-8) / tf.math.log(2.0))
    return tf.cast(tf.clip_by_value(level, FIRST_LEVEL, LAST_LEVEL), tf.int32) - FIRST_LEVEL


def _crops(features, boxes, image, size, samples):
    """Crops `(N, S, S, C)` at boxes `(N, 4)` in cells: the mean over `samples`² grids, each with one point per bin."""
    # `crop_and_resize` samples from corner to corner, so the corners are the points of the first and the last bin.
    # Edges are repeated by one cell: a point up to one cell outside the outermost centres takes the border's value, and
    # the operation gives 0 further outside.
    padded = tf.pad(tf.cast(features, tf.float32), [[0, 0], [1, 1], [1, 1], [0, 0]], "SYMMETRIC")
    extent = tf.cast(tf.shape(features)[1:3] + 1, tf.float32)  # of the padded map, between its outermost centres
    first, step = tf.reverse(boxes[:, :2], [1]), tf.reverse(sides(boxes), [1]) / size  # (N, 2) y, x
    bins, total = tf.constant([size, size]), None
    for y in range(samples):
        for x in range(samples):
            start = first + step * ((tf.constant([y, x], tf.float32) + 0.5) / samples) + 0.5
            corners = tf.concat([start / extent, (start + step * (size - 1)) / extent], 1)
            # One grid at a time: TensorFlow would compute all of them first, and hold four times the memory.
            with tf.control_dependencies([] if total is None else [total]):
                grid = tf.image.crop_and_resize(padded, corners, image, bins)
            total = grid if total is None else total + grid
    return tf.cast(total / samples**2, features.dtype)


def gather_samples(features, boxes, image, strides, size, samples=SAMPLES):
    """Computes the same as `pool` with gathers from the cells of all levels, laid end to end.

    Args:
        features, strides, size, samples: as in `pool`.
        boxes: (N, 4) xyxy px.
        image: (N,) int32, the image of each box.

    Returns:
        (N, S, S, C).
    """
    level = assign_levels(boxes) if len(features) > 1 else tf.zeros_like(image)
    shapes = tf.stack([tf.shape(maps)[1:3] for maps in features])  # (levels, 2) h, w
    cells = shapes[:, 0] * shapes[:, 1]
    starts = tf.gather(tf.cumsum(cells, exclusive=True), level) + image * tf.reduce_sum(cells)  # (N,)
    channels = features[0].shape[-1]
    table = tf.concat([tf.reshape(maps, [tf.shape(maps)[0], -1, channels]) for maps in features], 1)
    table = tf.reshape(tf.cast(table, tf.float32), [-1, channels])
    extent = tf.gather(shapes, level)  # (N, 2)
    scaled = boxes / tf.gather(tf.constant(strides, tf.float32), level)[:, None]
    rows = _taps(scaled[:, 1], scaled[:, 3], size, samples, extent[:, 0])
    columns = _taps(scaled[:, 0], scaled[:, 2], size, samples, extent[:, 1])
    total = 0.0
    for y, down in rows:  # one at a time: all samples of 1000 regions would take gigabytes
        for x, across in columns:
            cell = starts[:, None, None] + y[:, :, None] * extent[:, 1, None, None] + x[:, None]  # (N, S, S)
            total += tf.gather(table, cell) * (down[:, :, None] * across[:, None])[..., None]
    return tf.cast(total / samples**2, features[0].dtype)


def _taps(low, high, size, samples, extent):
    """Returns pairs of cells (N, S) int32 and weights (N, S): for each sample of a bin, its two neighbours on an axis.

    Args:
        low, high: (N,) ends of the boxes, in cells.
        size, samples: bins per side, and samples per side in each bin.
        extent: (N,) int32, cells of the map.
    """
    taps, last = [], tf.cast(extent, tf.float32)[:, None] - 1.0
    for i in range(samples):
        offsets = (tf.range(size, dtype=tf.float32) + (i + 0.5) / samples) / size
        at = low[:, None] + (high - low)[:, None] * offsets - 0.5  # (N, S)
        inside = tf.cast((at >= -1.0) & (at <= last + 1.0), tf.float32)
        at = tf.clip_by_value(at, 0.0, last)
        first = tf.floor(at)
        taps.append((tf.cast(first, tf.int32), (1.0 - at + first) * inside))
        taps.append((tf.cast(tf.minimum(first + 1.0, last), tf.int32), (at - first) * inside))
    return taps
