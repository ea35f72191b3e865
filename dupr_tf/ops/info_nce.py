"""Computes InfoNCE against a memory bank, without holding all logits at once (DUPR eqs. 1, 5, 6).

At B = 256 the logits of P4 would be (50176, 65536): 13 GB in float32. `info_nce` reads the bank in blocks with a
running log-sum-exp. This also carries the softmax-weighted sum of keys, which *is* the gradient, so the backward pass
is one multiplication. If all logits fit a small budget, they are computed at once, which is faster.
"""

from __future__ import annotations

import tensorflow as tf

from dupr_tf.errors import UserError

DIRECT_BYTES = 32 << 20  # logits up to this size are computed in one block
KEY_BLOCK = {
    "CPU": 1024,
    "GPU": 8192,
    "TPU": 8192,
}  # keys per block: cache-sized on a CPU, launch-bound on a GPU


def info_nce(queries, positives, bank_keys, temperature, block_keys=None):
    """Computes the contrastive loss of each query (DUPR eqs. 1, 5, 6; MoCo eq. 1).

    Args:
        queries: (N, C) L2-normalised embeddings.
        positives: (N, C) L2-normalised keys; row n belongs to query n.
        bank_keys: (K, C) negatives. No gradient flows to them.
        temperature: tau > 0.
        block_keys: keys processed at once. Default: chosen by size and device.

    Returns:
        (N,) float32 losses `logsumexp([q.p, q.bank] / tau) - q.p / tau`.
    """
    return info_nce_with_accuracy(queries, positives, bank_keys, temperature, block_keys)[0]


def info_nce_with_accuracy(queries, positives, bank_keys, temperature, block_keys=None):
    """Computes `info_nce`, and if each query is nearer to its positive than to every key of the bank.

    Returns:
        (N,) float32 losses, and (N,) float32 of 1.0 (positive wins) or 0.0. No gradient flows through the second.
    """
    if not isinstance(temperature, tf.Tensor) and temperature <= 0:
        raise UserError("temperature", f"Expected a number above 0, received {temperature}.", "The paper uses 0.2.")
    queries, positives = tf.cast(queries, tf.float32), tf.cast(positives, tf.float32)
    bank_keys = tf.stop_gradient(tf.cast(bank_keys, tf.float32))
    block = block_keys or _choose_block(queries, bank_keys)

    @tf.custom_gradient
    def loss_of(queries, positives):
        positive = tf.reduce_sum(queries * positives, axis=-1) / temperature  # (N,)
        largest, total, weighted = _walk_bank(queries, bank_keys, temperature, block)
        hit = tf.cast(positive > largest, tf.float32)
        # Add the positive to the running sum.
        peak = tf.maximum(largest, positive)
        scale, positive_part = tf.exp(largest - peak), tf.exp(positive - peak)
        total = total * scale + positive_part
        losses = tf.math.log(total) + peak - positive
        share = (positive_part / total)[:, None]  # softmax probability of the positive
        pulled = weighted * (scale / total)[:, None]  # sum over the bank of probability x key

        def grad(loss_gradient, _):
            upstream = (loss_gradient / temperature)[:, None]
            return upstream * (pulled + (share - 1.0) * positives), upstream * (share - 1.0) * queries

        return (losses, hit), grad

    return loss_of(queries, positives)


def _walk_bank(queries, bank_keys, temperature, block):
    """Computes the running max, sum of exp and sum of exp x key of the bank logits: `(N,), (N,), (N, C)`."""
    size = bank_keys.shape[0] or tf.shape(bank_keys)[0]

    def absorb(state, keys):
        peak, total, weighted = state
        logits = tf.matmul(queries, keys, transpose_b=True) / temperature  # (N, block)
        new_peak = tf.maximum(peak, tf.reduce_max(logits, axis=-1))
        weights = tf.exp(logits - new_peak[:, None])
        scale = tf.exp(peak - new_peak)
        total = total * scale + tf.reduce_sum(weights, axis=-1)
        weighted = weighted * scale[:, None] + tf.matmul(weights, keys)
        return new_peak, total, weighted

    none_seen = tf.reduce_sum(queries, axis=-1) * 0.0 - 1e30
    state = (none_seen, tf.zeros_like(none_seen), tf.zeros_like(queries))
    full = size // block
    if isinstance(size, int) and full <= 1 and size <= block:
        return absorb(state, bank_keys)
    state = tf.while_loop(
        lambda i, *_: i < full,
        lambda i, *state: (
            i + 1,
            *absorb(state, tf.slice(bank_keys, [i * block, 0], [block, bank_keys.shape[-1]])),
        ),
        (tf.constant(0), *state),
        shape_invariants=(tf.TensorShape([]), *(s.shape for s in state)),
        parallel_iterations=1,
        maximum_iterations=full,
    )[1:]
    rest = bank_keys[full * block :]
    if isinstance(size, int):
        return absorb(state, rest) if size % block else state
    return tf.cond(tf.shape(rest)[0] > 0, lambda: absorb(state, rest), lambda: state)


def _choose_block(queries, bank_keys):
    number, size = queries.shape[0], bank_keys.shape[0]
    if number and size and 4 * number * size <= DIRECT_BYTES:
        return size
    return _key_block()


def _key_block():
    return KEY_BLOCK["GPU" if tf.config.list_logical_devices("GPU") else "CPU"]


def block_bytes(queries: int, keys: int, block: int | None = None) -> int:
    """Returns the bytes of the logits and their exponentials that are held at a time.

    Args:
        queries: N of one call.
        keys: K.
        block: keys processed at once. Default: the block size for this machine's devices.
    """
    logits = 4 * queries * keys
    return 2 * (logits if logits <= DIRECT_BYTES else 4 * queries * min(keys, block or _key_block()))
