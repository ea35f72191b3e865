"""Box arithmetic of R-CNN. Boxes are `(x1, y1, x2, y2)` in pixels of the padded input, float32.

KerasCV's `_encode_box_to_deltas` and `_decode_deltas_to_boxes` are not used. They are private, order deltas with y
first and do not bound the scale of a delta.
"""

from __future__ import annotations

import math

import tensorflow as tf

RPN_WEIGHTS = (1.0, 1.0, 1.0, 1.0)  # weights of deltas (x, y, width, height); detectron2's MODEL.RPN.BBOX_REG_WEIGHTS
HEAD_WEIGHTS = (10.0, 10.0, 5.0, 5.0)  # detectron2's MODEL.ROI_BOX_HEAD.BBOX_REG_WEIGHTS
MAX_LOG_SCALE = math.log(1000.0 / 16.0)  # largest growth of a box over its anchor


def encode(boxes, anchors, weights):
    """Computes deltas that map anchors to boxes (Girshick et al., 2014, appendix C; detectron2's Box2BoxTransform).

    Args:
        boxes: (..., 4) with sides above 0.
        anchors: (..., 4) with sides above 0.
        weights: four factors.

    Returns:
        `(..., 4)`: shift of the centre in sides of the anchor (x, y), logarithm of the ratio of sides (w, h), weighted.
    """
    (centre, side), (anchor_centre, anchor_side) = _centre_and_side(boxes), _centre_and_side(anchors)
    deltas = tf.concat([(centre - anchor_centre) / anchor_side, tf.math.log(side / anchor_side)], -1)
    return deltas * tf.constant(weights)


def decode(deltas, anchors, weights):
    """Inverts `encode`; a side grows at most 1000/16-fold, so no prediction overflows.

    Args:
        deltas: (..., 4).
        anchors: (..., 4), broadcast against `deltas`.
        weights: four factors.

    Returns:
        (..., 4) boxes.
    """
    deltas = deltas / tf.constant(weights)
    anchor_centre, anchor_side = _centre_and_side(anchors)
    centre = anchor_centre + deltas[..., :2] * anchor_side
    half = 0.5 * anchor_side * tf.exp(tf.minimum(deltas[..., 2:], MAX_LOG_SCALE))
    return tf.concat([centre - half, centre + half], -1)


def clip(boxes, image_sizes):
    """Clips boxes to their images.

    Args:
        boxes: (B, ..., 4).
        image_sizes: (B, 2) float32 height, width.
    """
    limit = tf.tile(tf.reverse(image_sizes, [-1]), [1, 2])  # (B, 4) w h w h
    between = [1] * (boxes.shape.rank - 2)
    return tf.clip_by_value(boxes, 0.0, tf.reshape(limit, [-1, *between, 4]))


def sides(boxes):
    """Returns (..., 2) width and height."""
    return boxes[..., 2:] - boxes[..., :2]


def _centre_and_side(boxes):
    side = sides(boxes)
    return boxes[..., :2] + 0.5 * side, side
