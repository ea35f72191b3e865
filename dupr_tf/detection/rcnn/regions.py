"""Regions that a step trains the heads on, their losses, and the detections from them at test."""

from __future__ import annotations

from typing import NamedTuple

import tensorflow as tf

from dupr_tf.detection.parts.box_matching import match_rois, repeat_drawn, sample
from dupr_tf.detection.parts.boxes import clip, decode, encode, sides, suppress

POSITIVE_SHARE = 0.25  # detectron2's MODEL.ROI_HEADS.POSITIVE_FRACTION


class Regions(NamedTuple):
    """Regions of each image: positives first, then background, then repetitions that do not count."""

    boxes: tf.Tensor  # (B, R, 4)
    classes: tf.Tensor  # (B, R) int32; C is background
    matches: tf.Tensor  # (B, R) int32, row of the ground truth
    drawn: tf.Tensor  # (B, R) bool
    positive: tf.Tensor  # (B, R) bool

    def first(self, count):
        return Regions(*(field[:, :count] for field in self))


def most_positives(regions):
    """Returns the most objects among any image's regions, or 1; no object lies in a later row. A scalar int32."""
    return tf.maximum(tf.reduce_max(tf.reduce_sum(tf.cast(regions.positive, tf.int32), 1)), 1)


def sample_regions(proposals, valid, truth, classes, count, seed):
    """Draws the regions of a step, including ground truth boxes (detectron2's label_and_sample_proposals).

    Args:
        proposals: (B, P, 4).
        valid: (B, P) bool.
        truth: a `GroundTruth`.
        classes: number C of classes.
        count: regions per image, R; at most a quarter of them are objects.
        seed: (2,) integer.
    """
    boxes = tf.concat([proposals, truth.boxes], 1)
    valid = tf.concat([valid, truth.valid], 1)
    positive, matches = match_rois(boxes, truth)
    drawn = sample(positive & valid, ~positive & valid, count, POSITIVE_SHARE, seed)
    matches = tf.gather(matches, drawn.rows, batch_dims=1)
    labels = tf.where(drawn.positive, tf.gather(truth.classes, matches, batch_dims=1), classes)
    places = repeat_drawn(drawn.drawn)
    boxes, labels, matches = (
        tf.gather(x, places, batch_dims=1) for x in (tf.gather(boxes, drawn.rows, batch_dims=1), labels, matches)
    )
    return Regions(tf.stop_gradient(boxes), labels, matches, drawn.drawn, drawn.positive)


def region_losses(logits, deltas, regions, truth):
    """Computes the losses of the box head (Girshick, 2015; detectron2's FastRCNNOutputLayers.losses).

    Args:
        logits: (B, R, C + 1), background last.
        deltas: `(B, R, C, 4)`; those of the region's class are trained.
        regions: `Regions`.
        truth: a `GroundTruth`.

    Returns:
        Cross-entropy and L1 loss (smooth L1 with beta 0) of objects, both divided by the number of all drawn regions
        of the batch; scalars, 0 if there are none.
    """
    drawn, positive = tf.cast(regions.drawn, tf.float32), tf.cast(regions.positive, tf.float32)
    entropy = tf.nn.sparse_softmax_cross_entropy_with_logits(regions.classes, logits)
    targets = encode(tf.gather(truth.boxes, regions.matches, batch_dims=1), replace_empty(regions.boxes))
    of_class = tf.gather(deltas, tf.minimum(regions.classes, deltas.shape[2] - 1), batch_dims=2)  # (B, R, 4)
    distance = tf.reduce_sum(tf.abs(of_class - targets), -1)
    number = tf.maximum(tf.reduce_sum(drawn), 1.0)
    return tf.reduce_sum(entropy * drawn) / number, tf.reduce_sum(distance * positive) / number


def detections(logits, deltas, proposals, valid, image_sizes, score_threshold, nms_iou, count):
    """Selects the detections from the predictions (detectron2's fast_rcnn_inference).

    Boxes of each class are clipped, those without area are dropped, NMS is applied within a class, and the best remain.

    Args:
        logits: (B, P, C + 1), background last.
        deltas: (B, P, C, 4).
        proposals: (B, P, 4).
        valid: (B, P) bool.
        image_sizes: (B, 2) height, width.
        score_threshold, nms_iou, count: as in `suppress`; scores are probabilities.

    Returns:
        The result of `suppress`.
    """
    boxes = clip(decode(deltas, proposals[:, :, None]), image_sizes)
    exists = valid[..., None] & tf.reduce_all(sides(boxes) > 0, -1)  # (B, P, C); clipping leaves some without area
    scores = tf.where(exists, tf.nn.softmax(logits)[..., :-1], -1.0)
    return suppress(boxes, scores, score_threshold, nms_iou, count)


def replace_empty(boxes):
    """Replaces boxes without area, which never count, by boxes of one pixel."""
    empty = tf.reduce_any(sides(boxes) <= 0, -1, keepdims=True)
    return tf.where(empty, [0.0, 0.0, 1.0, 1.0], boxes)
