"""Scalars that a step logs besides its losses, from embeddings it already has. No gradient flows through them."""

from __future__ import annotations

import keras
import tensorflow as tf

MATCHED_CELLS = 64  # most query cells compared per image; limits the work on P2's 56 x 56 cells


def similarities(queries, positives, bank_mean):
    """Computes the cosine of each query with its positive, and its mean cosine with the keys of the bank.

    Args:
        queries: (N, C) of unit length.
        positives: (N, C) of unit length.
        bank_mean: (C,) mean of the bank's keys.

    Returns:
        Two (N,) float32 tensors.
    """
    queries = tf.stop_gradient(queries)
    return tf.reduce_sum(queries * positives, -1), tf.linalg.matvec(queries, bank_mean)


def match_accuracy(queries, positives):
    """Computes the share of patch cells whose most similar key is their own, among all cells of their pair.

    Args:
        queries: (b, S, S, C) of unit length.
        positives: (b, S, S, C) of unit length.

    Returns:
        (b,) float32; guessing gives 1 / S². At most `MATCHED_CELLS` evenly spread cells are compared.
    """
    cells = queries.shape[1] * queries.shape[2]
    looked_at = [i * cells // min(cells, MATCHED_CELLS) for i in range(min(cells, MATCHED_CELLS))]
    rows, keys = (tf.reshape(x, [x.shape[0], cells, x.shape[-1]]) for x in (tf.stop_gradient(queries), positives))
    similarity = tf.matmul(tf.gather(rows, looked_at, axis=1), keys, transpose_b=True)  # (b, compared cells, cells)
    hits = tf.equal(tf.argmax(similarity, axis=-1, output_type=tf.int32), tf.constant(looked_at))
    return tf.reduce_mean(tf.cast(hits, tf.float32), axis=-1)


def spread(keys):
    """Measures how much keys differ, from 0 (all the same) to 1 (evenly spread).

    Args:
        keys: (..., C) of unit length.

    Returns:
        () float32.
    """
    mean = tf.reduce_mean(tf.reshape(tf.cast(keys, tf.float32), [-1, keys.shape[-1]]), axis=0)
    return tf.sqrt(tf.maximum(1.0 - tf.reduce_sum(mean * mean), 0.0))


def nan_if_diverged(loss, weights, optimizer):
    """Returns the loss, or NaN if it or a weight is not finite after the step.

    A gradient that is not finite shows in the weights. A step that loss scaling skips counts as finite. The scale
    falls below 1 if gradients overflow even unscaled; then such steps count as not finite.

    Args:
        loss: () float32.
        weights: variables that the step has changed.
        optimizer: the optimiser that changed them.

    Returns:
        () float32.
    """
    finite = tf.math.is_finite(loss) & tf.reduce_all([tf.reduce_all(tf.math.is_finite(v.value)) for v in weights])
    if isinstance(optimizer, keras.optimizers.LossScaleOptimizer):
        finite &= optimizer.dynamic_scale.value >= 1.0
    return tf.where(finite, loss, float("nan"))
