"""The region proposal network: its head, proposals and losses (Ren et al., 2015)."""

from __future__ import annotations

import keras
import tensorflow as tf

from dupr_tf.detection.parts.anchors import RATIOS
from dupr_tf.detection.parts.box_matching import match_anchors, sample
from dupr_tf.detection.parts.boxes import clip, decode, encode, sides
from dupr_tf.detection.parts.suppression import suppress_classes

NMS_IOU = 0.7  # detectron2's MODEL.RPN.NMS_THRESH
ANCHORS_PER_IMAGE = 256  # per step; detectron2's MODEL.RPN.BATCH_SIZE_PER_IMAGE
POSITIVE_SHARE = 0.5


@keras.saving.register_keras_serializable("dupr_tf")
class RPNHead(keras.layers.Layer):
    """Predicts objectness and deltas of each anchor; all levels share it.

    Its layers are a 3×3 convolution with ReLU as wide as its input, and the two predictors.

    Args:
        sizes: anchor sizes at a cell, each in three shapes.
    """

    def __init__(self, sizes, **kwargs):
        super().__init__(**kwargs)
        self.sizes = sizes

    def build(self, input_shape):
        anchors = self.sizes * len(RATIOS)
        self.conv = self._conv(input_shape[-1], 3, "conv", activation="relu")
        self.objectness, self.deltas = self._conv(anchors, 1, "objectness"), self._conv(4 * anchors, 1, "deltas")
        for layer in (self.conv, self.objectness, self.deltas):
            layer.build(input_shape)

    def _conv(self, filters, kernel, name, **kwargs):
        deviation = keras.initializers.RandomNormal(stddev=0.01)
        return keras.layers.Conv2D(filters, kernel, padding="same", kernel_initializer=deviation, name=name, **kwargs)

    def call(self, features):
        hidden = self.conv(features)
        count = tf.shape(features)[0]
        objectness = tf.reshape(self.objectness(hidden), [count, -1])  # (B, h · w · anchors)
        deltas = tf.reshape(self.deltas(hidden), [count, -1, 4])
        return tf.cast(objectness, tf.float32), tf.cast(deltas, tf.float32)

    def get_config(self):
        return {**super().get_config(), "sizes": self.sizes}


def propose(objectness, deltas, anchors, image_sizes, pre_nms, post_nms):
    """Selects the proposals of each image (detectron2's find_top_rpn_proposals).

    It takes the best of every level, applies NMS within each level, and takes the best over all levels.

    Args:
        objectness: list over levels of (B, A_l) logits.
        deltas: list over levels of (B, A_l, 4).
        anchors: list over levels of (A_l, 4).
        image_sizes: (B, 2) height, width. Proposals are clipped to it; those without area are dropped.
        pre_nms: number of best proposals per level before NMS.
        post_nms: number of best proposals of all levels after it, P.

    Returns:
        boxes: (B, P, 4), best first, 0 for missing ones.
        valid: (B, P) bool.
        No gradient flows through them.
    """
    best = [_best(*level, image_sizes, pre_nms) for level in zip(objectness, deltas, anchors, strict=True)]
    boxes = tf.concat([boxes for boxes, _ in best], 1)  # (B, N, 4)
    nothing = float("-inf")
    scores = tf.concat(
        [
            tf.stack([logits if i == level else tf.fill(tf.shape(logits), nothing) for i in range(len(best))], -1)
            for level, (_, logits) in enumerate(best)
        ],
        1,
    )  # (B, N, levels): levels act as classes of the operation, so that boxes compete within a level only
    boxes, _, _, number = suppress_classes(boxes[:, :, None], positive(scores), post_nms, NMS_IOU, 0.0)
    return tf.stop_gradient(boxes), tf.range(post_nms)[None] < number[:, None]


def positive(logits):
    """Maps logits to positive numbers in the same order, and -inf to 0. A sigmoid would make large logits equal.

    TensorFlow's suppression fills up its output with boxes of zeros and the score -1, and ONNX' with the score 0. They
    would displace proposals with lower logits. In LiteRT files -inf is the lowest float32, which also becomes 0.
    """
    numbers = tf.where(logits >= 0.0, logits + 1.0, 1.0 / (1.0 - tf.minimum(logits, 0.0)))
    return tf.where(logits > tf.float32.min, numbers, 0.0)


def rpn_losses(objectness, deltas, anchors, truth, seed):
    """Computes the losses of the region proposal network, over 256 anchors per image, at most half of them positive.

    Args:
        objectness: (B, A) logits of all levels.
        deltas: (B, A, 4).
        anchors: (A, 4).
        truth: a `GroundTruth`.
        seed: (2,) integer, seed of the sample.

    Returns:
        Binary cross-entropy and L1 loss (detectron2's smooth L1 with beta 0), each divided by 256 · B; scalars.
    """
    positive, negative, matches = match_anchors(anchors, truth)
    drawn = sample(positive, negative, ANCHORS_PER_IMAGE, POSITIVE_SHARE, seed)
    is_drawn, is_positive = tf.cast(drawn.drawn, tf.float32), tf.cast(drawn.positive, tf.float32)
    logits = tf.gather(objectness, drawn.rows, batch_dims=1)  # (B, 256)
    boxes = tf.gather(truth.boxes, tf.gather(matches, drawn.rows, batch_dims=1), batch_dims=1)
    targets = encode(boxes, tf.gather(anchors, drawn.rows), None)
    distance = tf.reduce_sum(tf.abs(tf.gather(deltas, drawn.rows, batch_dims=1) - targets), -1)
    entropy = tf.nn.sigmoid_cross_entropy_with_logits(is_positive, logits)
    share = 1.0 / tf.cast(ANCHORS_PER_IMAGE * tf.shape(logits)[0], tf.float32)
    return share * tf.reduce_sum(entropy * is_drawn), share * tf.reduce_sum(distance * is_positive)


def _best(objectness, deltas, anchors, image_sizes, count):
    """Returns boxes (B, k, 4) and scores (B, k) of a level's best; -inf if clipping leaves no area."""
    scores, rows = tf.math.top_k(tf.stop_gradient(objectness), tf.minimum(count, tf.shape(objectness)[1]))
    chosen = tf.gather(tf.stop_gradient(deltas), rows, batch_dims=1)
    boxes = clip(decode(chosen, tf.gather(anchors, rows), None), image_sizes)
    return boxes, tf.where(tf.reduce_all(sides(boxes) > 0, -1), scores, float("-inf"))
