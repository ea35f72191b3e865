"""Moving rows between the replicas of a strategy, and the shuffle that keeps batch norm from leaking.

Outside a strategy every function here does what one replica alone would do.
"""

from __future__ import annotations

import tensorflow as tf


def replica_context():
    """The replica context, or None where there is a single replica (or none)."""
    context = tf.distribute.get_replica_context()
    return None if context is None or context.num_replicas_in_sync == 1 else context


def replica_count() -> int:
    context = replica_context()
    return 1 if context is None else context.num_replicas_in_sync


def all_gather(rows):
    """(b, ...) on each replica -> (B, ...) on every replica, in replica order."""
    context = replica_context()
    if context is None:
        return rows
    if rows.dtype == tf.bool:  # the collectives add, and bools cannot be added
        return tf.cast(all_gather(tf.cast(rows, tf.int32)), tf.bool)
    gathered = context.all_gather(tf.identity(rows), axis=0)  # an argument of a graph has no device, which it needs
    total = None if rows.shape[0] is None else rows.shape[0] * context.num_replicas_in_sync
    return tf.ensure_shape(gathered, [total, *rows.shape[1:]])  # the collective forgets it


def own_rows(rows):
    """(B, ...) on every replica -> this replica's (b, ...)."""
    context = replica_context()
    if context is None:
        return rows
    share = rows.shape[0] // context.num_replicas_in_sync
    start = context.replica_id_in_sync_group * share
    return tf.slice(rows, [start] + [0] * (rows.shape.rank - 1), [share, *rows.shape[1:]])


def global_sum(value):
    """Sum of a scalar over replicas."""
    context = replica_context()
    return value if context is None else context.all_reduce(tf.distribute.ReduceOp.SUM, value)


def global_sums(values):
    """{name: sum of a scalar over replicas}, in one exchange."""
    if replica_context() is None:
        return values
    return dict(zip(values, tf.unstack(global_sum(tf.stack(list(values.values())))), strict=True))


def agree_on_finite(gradients):
    """Gradients that are all NaN on every replica if any is not finite on one.

    A loss-scaling optimiser looks at the first replica's alone; an overflow elsewhere would get past it.
    """
    if replica_context() is None:
        return gradients
    bad = tf.add_n([tf.cast(~tf.reduce_all(tf.math.is_finite(g)), tf.float32) for g in gradients])
    poison = tf.where(global_sum(bad) > 0.0, float("nan"), 0.0)
    return [g + tf.cast(poison, g.dtype) for g in gradients]


def permutation(count, seed):
    """A random order of `count` rows and the order that undoes it; a function of the seed, equal on all replicas."""
    order = tf.argsort(tf.random.stateless_uniform([count], seed=seed), stable=True)
    return order, tf.argsort(order, stable=True)
