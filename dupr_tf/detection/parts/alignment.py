"""Assigns ground truth boxes to points by how well class and box are predicted there together (TOOD)."""

from __future__ import annotations

import tensorflow as tf
from keras.utils.bounding_boxes import compute_iou

from dupr_tf.detection.parts.boxes import FORMAT

SCORE_POWER, OVERLAP_POWER = 0.5, 6.0  # alpha and beta of equation 9, as in YOLOv8
CANDIDATES = 10  # points that a box may take


def align(scores, boxes, points, truth):
    """Assigns boxes to points (Feng et al., 2021, TOOD, equation 9 and section 3.3).

    A point is a candidate of a box if it lies inside and is among its `CANDIDATES` best ones by score^0.5 · IoU^6. A
    candidate of several boxes takes the one of greatest IoU. The target score of the best point of a box is the
    box's greatest IoU; the other points have less, in the ratio of their alignment.

    Args:
        scores: (B, N, C) predicted probabilities.
        boxes: (B, N, 4) predicted boxes.
        points: (N, 2) x and y, px.
        truth: a `GroundTruth` of B images.

    Returns:
        boxes (B, N, 4) and scores (B, N, C) of the targets, which are constants. A point without a box has scores of
        0, and its box is arbitrary.
    """
    overlaps = tf.where(truth.valid[..., None], compute_iou(truth.boxes, boxes, FORMAT), 0.0)  # (B, M, N)
    low, high = truth.boxes[:, :, None, :2], truth.boxes[:, :, None, 2:]
    inside = tf.reduce_all((points > low) & (points < high), -1)  # (B, M, N)
    of_class = tf.gather(tf.transpose(scores, [0, 2, 1]), truth.classes, batch_dims=1)  # (B, M, N)
    alignment = tf.where(inside, of_class**SCORE_POWER * overlaps**OVERLAP_POWER, 0.0)
    best, _ = tf.math.top_k(alignment, tf.minimum(CANDIDATES, tf.shape(points)[0]))
    candidate = (alignment >= best[..., -1:]) & (alignment > 0)
    matches = tf.argmax(tf.where(candidate, overlaps, -1.0), 1, tf.int32)  # (B, N)
    taken = candidate & (tf.range(tf.shape(overlaps)[1])[None, :, None] == matches[:, None])
    alignment, overlaps = (tf.where(taken, values, 0.0) for values in (alignment, overlaps))
    share = tf.math.divide_no_nan(alignment, tf.reduce_max(alignment, -1, keepdims=True))
    strength = tf.reduce_max(share * tf.reduce_max(overlaps, -1, keepdims=True), 1)  # (B, N)
    classes = tf.one_hot(tf.gather(truth.classes, matches, batch_dims=1), scores.shape[-1])
    targets = tf.gather(truth.boxes, matches, batch_dims=1), classes * strength[..., None]
    return [tf.stop_gradient(target) for target in targets]
