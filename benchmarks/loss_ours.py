"""Times our InfoNCE, and the usual one in TensorFlow."""

from __future__ import annotations

import tensorflow as tf

from dupr_tf.ops import info_nce

TEMPERATURE = 0.2


def build(queries, keys, dim):
    """Returns work: `dupr_tf.ops.info_nce` and its gradients."""
    return _work(lambda q, p, bank: tf.reduce_mean(info_nce(q, p, bank, TEMPERATURE)), queries, keys, dim)


def naive(queries, keys, dim):
    """Returns work: InfoNCE with all logits at once."""

    def loss(q, p, bank):
        positive = tf.reduce_sum(q * p, -1, keepdims=True)
        logits = tf.concat([positive, tf.matmul(q, bank, transpose_b=True)], -1) / TEMPERATURE
        labels = tf.zeros([queries], tf.int32)
        return tf.reduce_mean(tf.nn.sparse_softmax_cross_entropy_with_logits(labels, logits))

    return _work(loss, queries, keys, dim)


def _work(loss, queries, keys, dim):
    bank = tf.Variable(_unit_rows(keys, dim, 0))
    q, p = _unit_rows(queries, dim, 1), _unit_rows(queries, dim, 2)

    @tf.function
    def gradients(q, p):
        with tf.GradientTape() as tape:
            tape.watch([q, p])
            value = loss(q, p, tf.convert_to_tensor(bank))
        return value, tape.gradient(value, [q, p])

    def work():
        float(gradients(q, p)[0])
        return queries

    return work


def _unit_rows(count, dim, seed):
    return tf.math.l2_normalize(tf.random.stateless_normal([count, dim], [seed, 0]), -1)
