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
    count, number = _counts(boxes)
    if current_target() != TENSORFLOW:
        pooled = gather_samples(features, *_rows(boxes), strides, size, samples)
    else:
        rows, sums = _sums_by_level(features, *_rows(boxes), strides, size, samples)
        pooled = tf.dynamic_stitch(rows, sums) if len(features) > 1 else sums[0]
        pooled = tf.cast(pooled / samples**2, features[0].dtype)
    return tf.reshape(pooled, [count, number, size, size, features[0].shape[-1]])


def pool_by_level(features, boxes, strides, size, samples=SAMPLES):
    """Computes the same as `pool`, in the order of the levels, for heads on which the order has no influence.

    `pool` brings the crops of all levels into the order of the boxes, and its gradient brings them back. For 1,024
    regions of 7×7×256 that is 50 MB more at a time.

    Args:
        features, boxes, strides, size, samples: as in `pool`.

    Returns:
        pooled: (B · R, S, S, C).
        places: (B, R) int32, the row of each box in `pooled`.
    """
    count, number = _counts(boxes)
    if current_target() != TENSORFLOW:
        pooled, places = gather_samples(features, *_rows(boxes), strides, size, samples), tf.range(count * number)
    else:
        rows, sums = _sums_by_level(features, *_rows(boxes), strides, size, samples)
        pooled = tf.cast(tf.concat(sums, 0) / samples**2, features[0].dtype)
        places = tf.math.invert_permutation(tf.concat(rows, 0))
    return pooled, tf.reshape(places, [count, number])


def _counts(boxes):
    """Returns B and R of boxes (B, R, 4), as numbers where they are known."""
    return (known or tf.shape(boxes)[axis] for axis, known in enumerate(boxes.shape[:2]))


def _rows(boxes):
    """Returns boxes (B · R, 4), as constants, and the image of each."""
    count, number = _counts(boxes)
    return tf.reshape(tf.stop_gradient(boxes), [-1, 4]), tf.repeat(tf.range(count), number)


def _sums_by_level(features, boxes, image, strides, size, samples):
    """Returns, for each level, which boxes (N, 4) it has, (n,) int32, and the sums of their samples, (n, S, S, C)."""
    level = assign_levels(boxes) if len(features) > 1 else tf.zeros_like(image)
    rows = [tf.cast(tf.where(level == i)[:, 0], tf.int32) for i in range(len(features))]
    sums = [
        _sum_of_samples(maps, tf.gather(boxes, chosen) / stride, tf.gather(image, chosen), size, samples)
        for maps, chosen, stride in zip(features, rows, strides, strict=True)
    ]
    return rows, sums


def assign_levels(boxes):
    """Returns int32 from 0 for P2 to 3 for P5, by the box's area (Lin et al., 2017, eq. 1: 224 px on P4)."""
    side = tf.sqrt(tf.maximum(tf.reduce_prod(sides(boxes), -1), 0.0))
    level = tf.floor(CANONICAL_LEVEL + tf.math.log(side / CANONICAL_SIDE + 1e-8) / tf.math.log(2.0))
    return tf.cast(tf.clip_by_value(level, FIRST_LEVEL, LAST_LEVEL), tf.int32) - FIRST_LEVEL


def _sum_of_samples(features, boxes, image, size, samples):
    """Returns (N, S, S, C) float32 at boxes (N, 4) in cells: the sum of `samples`² grids, each of one point a bin."""
    # `crop_and_resize` samples from corner to corner, so the corners are the points of the first and the last bin.
    # Edges are repeated by one cell: a point up to one cell outside the outermost centres takes the border's value, and
    # the operation gives 0 further outside.
    padded = tf.pad(tf.cast(features, tf.float32), [[0, 0], [1, 1], [1, 1], [0, 0]], "SYMMETRIC")
    extent = tf.cast(tf.shape(features)[1:3] + 1, tf.float32)  # of the padded map, between its outermost centres
    first, step = tf.reverse(boxes[:, :2], [1]), tf.reverse(sides(boxes), [1]) / size  # (N, 2) y, x
    starts = [
        first + step * ((tf.constant([y, x], tf.float32) + 0.5) / samples) + 0.5
        for y in range(samples)
        for x in range(samples)
    ]
    grids = [tf.concat([start / extent, (start + step * (size - 1)) / extent], 1) for start in starts]
    return _sum_of_crops(padded, grids, image, size)


def _sum_of_crops(maps, grids, image, size):
    """Returns the sum of crops (N, S, S, C) of maps (B, h, w, C) at grids of N corners. Gradients reach only the maps.

    One crop is computed at a time. TensorFlow would compute all first, and its own gradient keeps them for their
    shapes: four times the memory.
    """

    @tf.custom_gradient
    def total_of(maps):
        bins, total = tf.constant([size, size]), None
        for corners in grids:
            with tf.control_dependencies([] if total is None else [total]):
                crop = tf.image.crop_and_resize(maps, corners, image, bins)
            total = crop if total is None else total + crop

        def gradient(upstream):
            shared = {"grads": upstream, "box_ind": image, "image_size": tf.shape(maps), "T": tf.float32}
            return tf.add_n([tf.raw_ops.CropAndResizeGradImage(boxes=corners, **shared) for corners in grids])

        return total, gradient

    return total_of(maps)


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
