"""Non-maximum suppression within each class, in a form for every target.

TensorFlow has one operation for it. The counterpart in ONNX takes boxes that all classes share, so the boxes of each
class become a separate image. LiteRT has the suppression of one class of one image.
"""

from __future__ import annotations

import tensorflow as tf

from dupr_tf.detection.parts.target import LITERT, TENSORFLOW, current_target


def suppress_classes(boxes, scores, count, nms_iou, score_threshold):
    """Selects the best boxes by NMS within each class.

    Args:
        boxes: (B, N, C, 4) with a box for each class, or (B, N, 1, 4). LiteRT takes B = 1 only.
        scores: (B, N, C). Only scores above 0 are sure to be sorted correctly, see `proposals.positive`.
        count: boxes per image, K.
        nms_iou: of boxes of a class that overlap more, the best is kept.
        score_threshold: lower limit of the score, exclusive; at least 0.

    Returns:
        boxes (B, K, 4), scores (B, K), classes (B, K) float32 and their number (B,) int32, best first. Rows from the
        number on are arbitrary.
    """
    if current_target() == LITERT:
        return _merge_rows(*_suppress_each_class(boxes, scores, count, nms_iou, score_threshold), count)
    limits = count, count, nms_iou, score_threshold
    if boxes.shape[2] == 1 or current_target() == TENSORFLOW:
        return tf.image.combined_non_max_suppression(boxes, scores, *limits, clip_boxes=False)
    batch, classes = tf.shape(scores)[0], scores.shape[2]
    alone = tf.reshape(tf.transpose(boxes, [0, 2, 1, 3]), [batch * classes, -1, 1, 4])  # (B · C, N, 1, 4)
    alone_scores = tf.reshape(tf.transpose(scores, [0, 2, 1]), [batch * classes, -1, 1])
    kept, best, _, number = tf.image.combined_non_max_suppression(alone, alone_scores, *limits, clip_boxes=False)
    exists = tf.range(count) < number[:, None]  # (B · C, K)
    shape = [batch, classes, count]
    return _merge_rows(
        *(tf.reshape(rows, [*shape, *rows.shape[2:]]) for rows in (kept, best)), tf.reshape(exists, shape), count
    )


def _suppress_each_class(boxes, scores, count, nms_iou, score_threshold):
    """Returns boxes (1, C, K, 4), scores (1, C, K) and True for those that exist, class by class."""
    shared, kept = boxes.shape[2] == 1, []
    for i in range(scores.shape[2]):
        rows, values = boxes[0, :, 0 if shared else i], scores[0, :, i]
        chosen, number = tf.raw_ops.NonMaxSuppressionV4(
            boxes=rows,
            scores=values,
            max_output_size=count,
            iou_threshold=nms_iou,
            score_threshold=score_threshold,
            pad_to_max_output_size=True,
        )
        kept.append((tf.gather(rows, chosen), tf.gather(values, chosen), tf.range(count) < number))
    return [tf.stack(parts)[None] for parts in zip(*kept, strict=True)]


def _merge_rows(boxes, scores, exists, count):
    """Takes the best K of all classes: boxes (B, C, K, 4), scores (B, C, K), exists (B, C, K)."""
    batch, classes = tf.shape(scores)[0], scores.shape[1]
    flat = tf.reshape(tf.where(exists, scores, scores.dtype.min), [batch, classes * count])
    best, order = tf.math.top_k(flat, count)
    number = tf.minimum(tf.reduce_sum(tf.cast(tf.reshape(exists, [batch, classes * count]), tf.int32), 1), count)
    boxes = tf.gather(tf.reshape(boxes, [batch, classes * count, 4]), order, batch_dims=1)
    return boxes, best, tf.cast(order // count, tf.float32), number
