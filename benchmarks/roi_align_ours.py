"""Times our two forms of RoIAlign."""

from __future__ import annotations

import tensorflow as tf

from benchmarks.step_ours import view_pairs
from dupr_tf.ops.roi_align import roi_align, roi_align_reference

REPEATS = 5


def build(images, side, channels, bins, stride, reference=False):
    """Returns work: the forward pass, and the gradient w.r.t. the features."""
    form = roi_align_reference if reference else roi_align
    features = tf.random.stateless_normal([images, side, side, channels], [0, 0])
    batch = view_pairs(images, side * stride)
    boxes, flipped = tf.constant(batch["boxes_1"]), tf.constant(batch["flipped_1"])

    @tf.function
    def gradient(features):
        with tf.GradientTape() as tape:
            tape.watch(features)
            value = tf.reduce_sum(tf.square(form(features, boxes, bins, 1 / stride, 1, flipped)))
        return value, tape.gradient(value, features)

    def work():
        for _ in range(REPEATS):
            gradient(features)[1].numpy()
        return REPEATS * images

    return work
