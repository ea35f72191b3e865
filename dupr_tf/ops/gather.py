"""Exchanges rows between the replicas of a strategy, and shuffles them to keep batch norm from leaking.

Outside a strategy every function behaves as on a single replica.
"""

from __future__ import annotations

import tensorflow as tf


def replica_context():
    """Returns the replica context, or None if there is at most one replica."""
    context = tf.distribute.get_replica_context()
    return None if context is None or context.num_replicas_in_sync == 1 else context


def replica_count() -> int:
    context = replica_context()
    return 1 if context is None else context.num_replicas_in_sync


def all_gather(rows):
    """Gathers (b, ...) of each replica to (B, ...) on every replica, in replica order."""
    context = replica_context()
    if context is None:
        return rows
    if rows.dtype == tf.bool:  # collectives add, and bools cannot be added
        return tf.cast(all_gather(tf.cast(rows, tf.int32)), tf.bool)
    gathered = context.all_gather(tf.identity(rows), axis=0)  # identity gives a graph argument the device it needs
    total = None if rows.shape[0] is None else rows.shape[0] * context.num_replicas_in_sync
    return tf.ensure_shape(gathered, [total, *rows.shape[1:]])  # the collective loses the static shape


def own_rows(rows):
    """Returns this replica's (b, ...) of the (B, ...) that every replica holds."""
    context = replica_context()
    if context is None:
        return rows
    share = rows.shape[0] // context.num_replicas_in_sync
    start = context.replica_id_in_sync_group * share
    return tf.slice(rows, [start] + [0] * (rows.shape.rank - 1), [share, *rows.shape[1:]])


def global_sum(value):
    """Sums a tensor, or each of a list, over replicas."""
    context = replica_context()
    return value if context is None else context.all_reduce(tf.distribute.ReduceOp.SUM, value)


def global_sums(values):
    """Sums each scalar of {name: scalar} over replicas, in one exchange."""
    if replica_context() is None:
        return values
    return dict(zip(values, tf.unstack(global_sum(tf.stack(list(values.values())))), strict=True))


def agree_on_finite(gradients):
    """Sets all gradients to NaN on every replica if any gradient on any replica is not finite.

    A loss-scaling optimiser checks the first replica only and would miss an overflow elsewhere. A gradient may be None.
    """
    if replica_context() is None:
        return gradients
    bad = tf.add_n([tf.cast(~tf.reduce_all(tf.math.is_finite(g)), tf.float32) for g in gradients if g is not None])
    poison = tf.where(global_sum(bad) > 0.0, float("nan"), 0.0)
    return [None if g is None else g + tf.cast(poison, g.dtype) for g in gradients]


def permutation(count, seed):
    """Draws a random order of `count` rows and its inverse from the seed; both are equal on all replicas."""
    order = tf.argsort(tf.random.stateless_uniform([count], seed=seed), stable=True)
    return order, tf.argsort(order, stable=True)
