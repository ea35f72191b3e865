"""Scalars that a step logs beside its losses, from embeddings it has anyway. No gradient flows through them."""

from __future__ import annotations

import tensorflow as tf

MATCHED_CELLS = 64  # query cells of an image that are looked at, at most: little work on P2's 56 x 56 cells too


def similarities(queries, positives, bank_mean):
    """Cosine of each query with its positive, and its mean cosine with the keys of the bank.

    Args:
        queries: (N, C) of unit length.
        positives: (N, C), likewise.
        bank_mean: (C,) mean of the bank's keys.

    Returns:
        (N,) float32 twice.
    """
    queries = tf.stop_gradient(queries)
    return tf.reduce_sum(queries * positives, -1), tf.linalg.matvec(queries, bank_mean)


def match_accuracy(queries, positives):
    """Share of the cells of a patch grid whose most similar key, among all cells of their own pair, is their own.

    Args:
        queries: (b, S, S, C) of unit length.
        positives: (b, S, S, C), likewise.

    Returns:
        (b,) float32; guessing gives 1 / S². At most `MATCHED_CELLS` cells are looked at, evenly spread.
    """
    cells = queries.shape[1] * queries.shape[2]
    looked_at = [i * cells // min(cells, MATCHED_CELLS) for i in range(min(cells, MATCHED_CELLS))]
    rows, keys = (tf.reshape(x, [x.shape[0], cells, x.shape[-1]]) for x in (tf.stop_gradient(queries), positives))
    similarity = tf.matmul(tf.gather(rows, looked_at, axis=1), keys, transpose_b=True)  # (b, looked at, cells)
    hits = tf.equal(tf.argmax(similarity, axis=-1, output_type=tf.int32), tf.constant(looked_at))
    return tf.reduce_mean(tf.cast(hits, tf.float32), axis=-1)


def spread(keys):
    """How much keys differ, from 0 (all the same) to 1 (spread evenly).

    Args:
        keys: (..., C) of unit length.

    Returns:
        () float32.
    """
    mean = tf.reduce_mean(tf.reshape(tf.cast(keys, tf.float32), [-1, keys.shape[-1]]), axis=0)
    return tf.sqrt(tf.maximum(1.0 - tf.reduce_sum(mean * mean), 0.0))
