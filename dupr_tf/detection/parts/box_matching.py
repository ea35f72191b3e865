"""Matches anchors and proposals with ground truth boxes, and samples those that a step trains on.

Keras has no matcher. KerasCV's `BoxMatcher` is not used: with forced matches every padding column gets one (anchor 0
becomes positive), ties lose, and an image without columns has no negatives. Its `balanced_sample` is not used either:
it takes no seed, rejects fewer candidates than samples, and builds samples × candidates of ones and zeros.
"""

from __future__ import annotations

from typing import NamedTuple

import tensorflow as tf
from keras.utils.bounding_boxes import compute_iou

from dupr_tf.detection.parts.boxes import FORMAT, sides

RPN_POSITIVE, RPN_NEGATIVE = 0.7, 0.3  # IoU; detectron2's MODEL.RPN.IOU_THRESHOLDS
ROI_POSITIVE = 0.5  # detectron2's MODEL.ROI_HEADS.IOU_THRESHOLDS


class GroundTruth(NamedTuple):
    """The ground truth of a batch, with at least one row per image.

    Padding rows are boxes of one pixel with `valid` false.
    """

    boxes: tf.Tensor  # (B, M, 4) float32 xyxy, sides above 0
    classes: tf.Tensor  # (B, M) int32, 0 where not valid
    valid: tf.Tensor  # (B, M) bool
    masks: tf.Tensor | None = None  # (B, M, h, w) float32 0–1, each over its own box


class Sample(NamedTuple):
    """Rows drawn from a table: the positives first, then the negatives, then rows that are not drawn."""

    rows: tf.Tensor  # (B, N) int32
    drawn: tf.Tensor  # (B, N) bool
    positive: tf.Tensor  # (B, N) bool, drawn and positive


def ground_truth(labels, batch_size):
    """Reads the `bounding_boxes` of a batch.

    Args:
        labels: `{"boxes": (B, M, 4), "classes": (B, M)}` with class -1 for padding, and optionally
            `"masks": (B, M, h, w)`. None means no boxes at all.
        batch_size: B.
    """
    if labels is None:
        labels = {"boxes": tf.zeros([batch_size, 0, 4]), "classes": tf.zeros([batch_size, 0])}
    boxes = tf.pad(tf.cast(labels["boxes"], tf.float32), [[0, 0], [0, 1], [0, 0]])  # one more row, because M may be 0
    classes = tf.pad(tf.cast(labels["classes"], tf.int32), [[0, 0], [0, 1]], constant_values=-1)
    valid = (classes >= 0) & tf.reduce_all(sides(boxes) > 0, -1)
    boxes = tf.where(valid[..., None], boxes, [0.0, 0.0, 1.0, 1.0])
    masks = labels.get("masks")
    if masks is not None:
        masks = tf.pad(tf.cast(masks, tf.float32), [[0, 0], [0, 1], [0, 0], [0, 0]])
    return GroundTruth(boxes, tf.where(valid, classes, 0), valid, masks)


def match_anchors(anchors, truth):
    """Labels anchors (Ren et al., 2015, section 3.1.2; detectron2's RPN with low-quality matches).

    An anchor is positive if its IoU with a box is 0.7 or more, or if no anchor overlaps that box more (all of a tie).
    In the second case detectron2 also accepts an overlap of 0; here it must be above. An anchor is negative if its IoU
    with every box is below 0.3. Others are ignored.

    Args:
        anchors: (A, 4).
        truth: ground truth of B images.

    Returns:
        positive, negative: (B, A) bool.
        matches: (B, A) int32, the box of greatest IoU.
    """

    def match(image):
        boxes, valid = image
        overlaps = tf.where(
            valid[:, None], compute_iou(boxes, anchors, FORMAT), 0.0
        )  # (M, A); rows of an image lie together
        best = tf.reduce_max(overlaps, 0)
        most = tf.reduce_max(overlaps, 1, keepdims=True)  # (M, 1)
        forced = tf.reduce_any((overlaps == most) & (most > 0), 0)
        positive = (best >= RPN_POSITIVE) | forced
        return positive, (best < RPN_NEGATIVE) & ~positive, tf.argmax(overlaps, 0, tf.int32)

    # One image at a time: (B, M, A) would take gigabytes.
    signature = (
        tf.TensorSpec([None], tf.bool),
        tf.TensorSpec([None], tf.bool),
        tf.TensorSpec([None], tf.int32),
    )
    return tf.map_fn(match, (truth.boxes, truth.valid), fn_output_signature=signature, parallel_iterations=1)


def match_rois(rois, truth):
    """Labels proposals (Girshick, 2015, section 2.3; detectron2's ROIHeads): positive at an IoU of 0.5 or more.

    Args:
        rois: (B, P, 4).
        truth: ground truth of B images.

    Returns:
        positive: (B, P) bool.
        matches: (B, P) int32, the box of greatest IoU.
    """
    overlaps = tf.where(truth.valid[..., None], compute_iou(truth.boxes, rois, FORMAT), 0.0)  # (B, M, P)
    return tf.reduce_max(overlaps, 1) >= ROI_POSITIVE, tf.argmax(overlaps, 1, tf.int32)


def sample(positive, negative, count, positive_share, seed):
    """Draws rows at random: up to `positive_share` positives, the rest negatives (detectron2's subsample_labels).

    Args:
        positive, negative: (B, N) bool, the candidates.
        count: rows to draw from each image. Fewer are drawn if there are not enough.
        positive_share: largest share of positives in `count`.
        seed: (2,) integer.

    Returns:
        A `Sample` of `count` rows per image.
    """
    noise = tf.random.stateless_uniform(tf.shape(positive), seed)
    chosen, is_positive = _draw(positive, noise, int(count * positive_share))
    others, is_negative = _draw(negative, noise, count)
    room = count - tf.reduce_sum(tf.cast(is_positive, tf.int32), 1, keepdims=True)  # (B, 1)
    drawn = tf.concat([is_positive, is_negative & (tf.range(count) < room)], 1)
    rows, flags = tf.concat([chosen, others], 1), tf.concat([is_positive, tf.zeros_like(is_negative)], 1)
    drawn, order = tf.math.top_k(tf.cast(drawn, tf.int32), count)  # ties keep their order
    return Sample(_gather_rows(rows, order), drawn > 0, _gather_rows(flags, order))


def repeat_drawn(drawn):
    """Returns (B, N) int32 indices that fill the rows not drawn by repeating the drawn ones.

    Batch statistics over all rows are then those of real ones. If nothing is drawn, the indices are 0.
    """
    number = tf.reduce_sum(tf.cast(drawn, tf.int32), 1, keepdims=True)
    return tf.range(tf.shape(drawn)[1])[None] % tf.maximum(number, 1)


def _draw(candidates, noise, count):
    """Draws (B, count) rows, with up to `count` candidates per image in random order, and marks the candidates."""
    keys = tf.pad(tf.where(candidates, noise, -1.0), [[0, 0], [0, count]], constant_values=-1.0)
    values, rows = tf.math.top_k(keys, count)
    return tf.minimum(rows, tf.shape(candidates)[1] - 1), values >= 0.0


def _gather_rows(table, rows):
    return tf.gather(table, rows, batch_dims=1)
