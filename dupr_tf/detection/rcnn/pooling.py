"""RoIAlign of many boxes on one map or a pyramid; each box reads its own level only."""

from __future__ import annotations

import tensorflow as tf

from dupr_tf.detection.parts.boxes import sides

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
    count, number = tf.shape(boxes)[0], tf.shape(boxes)[1]
    flat = tf.reshape(tf.stop_gradient(boxes), [-1, 4])
    image = tf.repeat(tf.range(count), number)
    if len(features) == 1:
        pooled = _crops(features[0], flat / strides[0], image, size, samples)
    else:
        level = assign_levels(flat)
        rows = [tf.where(level == i)[:, 0] for i in range(len(features))]
        crops = [
            _crops(maps, tf.gather(flat, chosen) / stride, tf.gather(image, chosen), size, samples)
            for maps, chosen, stride in zip(features, rows, strides, strict=True)
        ]
        pooled = tf.dynamic_stitch([tf.cast(chosen, tf.int32) for chosen in rows], crops)
    channels = features[0].shape[-1]
    pooled = tf.reshape(pooled, [count, number, size, size, channels])
    return tf.ensure_shape(pooled, [features[0].shape[0], boxes.shape[1], size, size, channels])


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
    grids = []
    for y in range(samples):
        for x in range(samples):
            start = first + step * ((tf.constant([y, x], tf.float32) + 0.5) / samples) + 0.5
            corners = tf.concat([start / extent, (start + step * (size - 1)) / extent], 1)
            grids.append(tf.image.crop_and_resize(padded, corners, image, (size, size)))
    return tf.cast(tf.add_n(grids) / samples**2, features.dtype)
