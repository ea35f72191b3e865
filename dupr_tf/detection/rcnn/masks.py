"""Masks of regions: training targets and loss."""

from __future__ import annotations

import tensorflow as tf

from dupr_tf.detection.parts.boxes import sides


def mask_targets(rois, boxes, masks, size):
    """Crops ground truth masks to regions (He et al., 2017, section 3): the bilinear value at a bin's centre.

    Args:
        rois: (N, 4) xyxy px.
        boxes: (N, 4) the ground truth box of each, sides above 0.
        masks: `(N, h, w)` float32 0–1, each over its box; zero outside the box.
        size: bins per side, S.

    Returns:
        `(N, S, S)` float32; 1 if at least half covered, else 0.
    """
    shape = tf.cast(tf.shape(masks)[1:3], tf.float32)  # h, w
    # In pixels of the mask with a border of one empty pixel; see `pooling._crops`.
    scale = tf.reverse(shape, [0]) / sides(boxes)  # (N, 2) x, y
    start = (rois[:, :2] - boxes[:, :2]) * scale + 0.5
    step = sides(rois) * scale / size
    corners = tf.concat([start + 0.5 * step, start + (size - 0.5) * step], 1)  # x, y, x, y
    extent = tf.tile(tf.reverse(shape, [0]) + 1.0, [2])
    corners = tf.gather(corners / extent, [1, 0, 3, 2], axis=1)
    bordered = tf.pad(masks, [[0, 0], [1, 1], [1, 1]])[..., None]
    seen = tf.image.crop_and_resize(bordered, corners, tf.range(tf.shape(rois)[0]), (size, size))
    return tf.cast(seen[..., 0] >= 0.5, tf.float32)


def mask_loss(logits, rois, classes, matches, positive, truth):
    """Computes the binary cross-entropy of each region's mask for the region's class.

    It is a mean over the pixels of positive regions; 0 if there are none.

    Args:
        logits: (B, R, S, S, C).
        rois: (B, R, 4).
        classes: (B, R) int32 in [0, C); arbitrary if not positive.
        matches: (B, R) int32 rows of `truth`.
        positive: (B, R) bool.
        truth: a `GroundTruth` with masks.
    """
    size = logits.shape[2]
    boxes = tf.reshape(tf.gather(truth.boxes, matches, batch_dims=1), [-1, 4])
    masks = tf.gather(truth.masks, matches, batch_dims=1)  # (B, R, h, w)
    masks = tf.reshape(masks, tf.concat([[-1], tf.shape(masks)[2:]], 0))
    targets = tf.reshape(mask_targets(tf.reshape(rois, [-1, 4]), boxes, masks, size), tf.shape(logits)[:-1])
    entropy = tf.nn.sigmoid_cross_entropy_with_logits(targets, select_class(logits, classes))
    weight = tf.cast(positive, tf.float32)
    pixels = tf.maximum(tf.reduce_sum(weight), 1.0) * size * size
    return tf.reduce_sum(entropy * weight[..., None, None]) / pixels


def select_class(logits, classes):
    """Selects from `(B, R, S, S, C)` the channels given by `(B, R)` int32; returns `(B, R, S, S)`."""
    return tf.einsum("brijc,brc->brij", logits, tf.one_hot(classes, logits.shape[-1]))
