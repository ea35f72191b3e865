"""Measures the moving statistics of batch norms again before a trained detector is evaluated (precise BN)."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import tensorflow as tf

from dupr_tf.errors import UserError
from dupr_tf.models.layers import norm_layers


def measure_norms(model, batches: Iterable) -> int:
    """Replaces the moving statistics of every trained batch norm by the mean, over batches, of each batch's own.

    It follows Rethinking "Batch" in BatchNorm (Wu and Johnson, 2021, section 3), as detectron2's PreciseBN did at the
    time of the paper: the plain mean of batch means and of batch variances. A batch's variance is the value that
    training would put into the moving one (unbiased if the fused kernel computes it). Weights do not change. A layer
    that is frozen, or that a forward pass does not reach, keeps its statistics.

    Args:
        model: a detector. Called with a batch and `training=True`, it does what a training step does before the update.
        batches: as in training, each of at least one image; all have the same weight.

    Returns:
        The number of batches.

    Raises:
        UserError: there are no batches, but the model has norms to measure.
    """
    layers = [layer for layer in norm_layers(model) if layer.trainable]
    if not layers:
        return 0
    sums, momenta, count = None, [layer.momentum for layer in layers], 0
    # At momentum 0 the moving statistics are those of the last batch alone.
    for layer in layers:
        layer.momentum = 0.0
    try:
        step = tf.function(lambda batch: (model(batch, training=True), None)[1], autograph=False, reduce_retracing=True)
        for batch in batches:
            step(batch)
            values = [(layer.moving_mean.numpy(), layer.moving_variance.numpy()) for layer in layers]
            sums = values if sums is None else [(m + a, v + b) for (m, v), (a, b) in zip(sums, values, strict=True)]
            count += 1
    finally:
        for layer, momentum in zip(layers, momenta, strict=True):
            layer.momentum = momentum
    if sums is None:
        raise UserError("batches", "There are no batches to measure batch norms on.", "Pass at least one.")
    for layer, (mean, variance) in zip(layers, sums, strict=True):
        layer.moving_mean.assign(np.asarray(mean / count, np.float32))
        layer.moving_variance.assign(np.asarray(variance / count, np.float32))
    return count
