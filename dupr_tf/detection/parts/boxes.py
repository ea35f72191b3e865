"""Computes with boxes, by Keras' `bounding_boxes` and TensorFlow's suppression.

Boxes are `(x1, y1, x2, y2)` in pixels of the padded input, float32.
"""

from __future__ import annotations

import math

import tensorflow as tf
from keras.utils import bounding_boxes

from dupr_tf.detection.parts.suppression import suppress_classes

FORMAT = "xyxy"
DEVIATIONS = (0.1, 0.1, 0.2, 0.2)  # divisors of deltas (centre, sides); detectron2's BBOX_REG_WEIGHTS are 1 / these
MAX_LOG_SCALE = math.log(1000.0 / 16.0)  # largest growth of a box over its anchor


def encode(boxes, anchors, deviations=DEVIATIONS, order="center_xywh"):
    """Computes deltas that map anchors to boxes (Girshick et al., 2014, appendix C; detectron2's Box2BoxTransform).

    Args:
        boxes: (..., 4) with sides above 0.
        anchors: (..., 4) with sides above 0.
        deviations: four divisors. None: 1.
        order: "center_xywh" or "center_yxhw", the order of the deltas.

    Returns:
        `(..., 4)`: shift of the centre in sides of the anchor, logarithm of the ratio of sides, over `deviations`.
    """
    return bounding_boxes.encode_box_to_deltas(anchors, boxes, FORMAT, FORMAT, order, deviations)


def decode(deltas, anchors, deviations=DEVIATIONS, order="center_xywh"):
    """Inverts `encode`; a side grows at most 1000/16-fold, so no prediction overflows, as it would in Keras.

    Args:
        deltas: (..., 4).
        anchors: (..., 4), broadcast against `deltas`.
        deviations, order: as in `encode`.

    Returns:
        (..., 4) boxes.
    """
    limit = tf.constant([math.inf, math.inf, MAX_LOG_SCALE, MAX_LOG_SCALE]) / tf.constant(deviations or 1.0)
    deltas = tf.minimum(deltas, limit)
    return bounding_boxes.decode_deltas_to_boxes(anchors, deltas, FORMAT, FORMAT, order, deviations)


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


def suppress(boxes, scores, score_threshold, nms_iou, count):
    """Selects the best detections by NMS within each class.

    Args:
        boxes: (B, N, C, 4) with a box for each class, or (B, N, 1, 4).
        scores: (B, N, C).
        score_threshold: lower limit of the score, exclusive.
        nms_iou: of boxes of a class that overlap more, the best is kept.
        count: detections per image, K.

    Returns:
        `{"boxes": (B, K, 4), "confidence": (B, K), "classes": (B, K), "num_detections": (B,) int32}`, best first, -1
        from `num_detections` on.
    """
    boxes, scores, classes, number = suppress_classes(boxes, scores, count, nms_iou, score_threshold)
    exists = tf.range(count) < number[:, None]  # (B, K)
    return {
        "boxes": tf.where(exists[..., None], boxes, -1.0),
        "confidence": tf.where(exists, scores, -1.0),
        "classes": tf.where(exists, classes, -1.0),
        "num_detections": number,
    }
