"""Scalars that a step logs beside its losses, from embeddings it has anyway. No gradient flows through them."""

from __future__ import annotations

import tensorflow as tf

MATCHED_CELLS = 64  # query cells an image, at most, whose match is looked for: it stays a trifle on P2's 56 x 56 too


def similarities(queries, positives, bank_mean):
    """Cosine of each query with its positive, and its mean cosine with the keys of the bank.

    Args:
        queries: (b, ..., C) of unit length.
        positives: (b, ..., C), likewise.
        bank_mean: (C,) mean of the bank's keys.

    Returns:
        (b, n) float32 twice; n is 1 for images and the number of cells for patches.
    """
    rows = tf.reshape(tf.stop_gradient(queries), [queries.shape[0], -1, queries.shape[-1]])  # (b, n, C)
    partners = tf.reshape(positives, [positives.shape[0], -1, positives.shape[-1]])
    return tf.reduce_sum(rows * partners, -1), tf.linalg.matvec(rows, bank_mean)


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


def spreads(keys):
    """{"std/name": () float32}: how much the keys of a step differ, from 0 (all the same) to 1 (spread evenly)."""
    found = {}
    for name, key in keys.items():
        rows = tf.reshape(tf.cast(key, tf.float32), [-1, key.shape[-1]])
        mean = tf.reduce_mean(rows, axis=0)  # of rows of length 1
        found[f"std/{name}"] = tf.sqrt(tf.maximum(1.0 - tf.reduce_sum(mean * mean), 0.0))
    return found


def bank_ages(step, enqueued, bank_size):
    """{"bank_age/kind": () float32}: steps since the oldest key of the banks of a kind was made.

    Until a bank is full, that is the age of the run: what is older is the noise it began with. Steps without a valid
    pair, in which patch banks rest, are not told apart.

    Args:
        step: () int64, steps taken before this one.
        enqueued: {"image" or "patch": keys a step puts into a bank}.
        bank_size: K.
    """
    return {
        f"bank_age/{kind}": tf.minimum(tf.cast(step, tf.float32), bank_size / count) for kind, count in enqueued.items()
    }
