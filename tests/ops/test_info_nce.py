"""Tests InfoNCE against hand-made cases and the oracle, in one block and streamed over several."""

import functools
import math

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from dupr_tf import ops
from dupr_tf.errors import UserError
from tests import oracles

FEW = settings(max_examples=10, deadline=None, derandomize=True, database=None)
MODES = ("eager", "graph", "xla")
every_mode = pytest.mark.parametrize("mode", MODES)
# The bank has 11 keys. Block sizes divide it (1, 11), leave a rest (4), or exceed it (100).
every_block = pytest.mark.parametrize("block", [None, 1, 4, 11, 100])
K = 11


@functools.cache
def function(mode, temperature, block):
    def call(queries, positives, bank_keys):
        return ops.info_nce_with_accuracy(queries, positives, bank_keys, temperature, block)

    return call if mode == "eager" else tf.function(call, jit_compile=mode == "xla")


def contrast(mode, queries, positives, bank_keys, temperature=0.2, block=None):
    tensors = [tf.constant(rows, tf.float32) for rows in (queries, positives, bank_keys)]
    return [out.numpy() for out in function(mode, temperature, block)(*tensors)]


def unit_rows(rng, count, dim=8):
    rows = rng.normal(size=(count, dim))
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


# --- by hand -----------------------------------------------------------------------------------------


@every_mode
@every_block
def test_orthogonal_vectors_have_losses_known_by_hand(mode, block):
    axes = np.eye(K + 2)
    losses, hits = contrast(mode, axes[[0, 0]], axes[[1, 0]], axes[2:], 0.2, block)
    # No similarity gives a uniform choice among K + 1. Equal query and positive give e^5 against K times e^0.
    np.testing.assert_allclose(losses, [math.log(K + 1), math.log(math.exp(5) + K) - 5], rtol=1e-5)
    np.testing.assert_array_equal(hits, [0, 1])  # the first query is a tie of 0 with 0


@every_mode
@every_block
def test_hit_is_nearer_than_every_key(mode, block):
    query = np.array([[1.0, 0.0]])
    bank = np.stack([np.linspace(-1.0, 0.5, K), np.ones(K)], axis=1)[::-1]  # the nearest key, 0.5, comes first
    for similarity, hit in ((0.75, 1), (0.5, 0), (0.25, 0)):
        assert contrast(mode, query, [[similarity, 0.0]], bank, 0.2, block)[1] == [hit]
        assert contrast(mode, query, [[similarity, 0.0]], bank[::-1], 0.2, block)[1] == [hit]


@every_mode
@every_block
def test_logits_of_thousands_do_not_overflow(mode, block):
    axes = np.eye(3)
    bank = np.concatenate([axes[[0]], np.repeat(axes[[2]], K - 1, axis=0)])
    queries = axes[[0, 0]]
    losses, _ = contrast(mode, queries, axes[[1, 0]], bank, 0.001, block)
    np.testing.assert_allclose(losses, [1000.0, math.log(2)], atol=1e-3)  # float32 holds 1000 to 6e-5


# --- against the oracle ------------------------------------------------------------------------------


@every_mode
@pytest.mark.parametrize(("temperature", "block"), [(0.2, None), (0.2, 4), (0.07, 4), (1.0, 1)])
@FEW
@given(seed=st.integers(0, 2**16), closeness=st.sampled_from([0.0, 0.5, 1.0]))
def test_losses_hits_and_gradients_agree_with_the_oracle(mode, temperature, block, seed, closeness):
    rng = np.random.default_rng(seed)
    queries, bank = unit_rows(rng, 5), unit_rows(rng, K)
    positives = closeness * queries + (1 - closeness) * unit_rows(rng, 5)
    upstream = rng.normal(size=5)
    variables = [tf.Variable(rows, dtype=tf.float32) for rows in (queries, positives, bank)]
    with tf.GradientTape() as tape:
        losses, hits = function(mode, temperature, block)(*variables)
        weighted = tf.reduce_sum(losses * tf.constant(upstream, tf.float32))
    gradients = tape.gradient(weighted, variables)

    expected = oracles.info_nce(queries, positives, bank, temperature)
    np.testing.assert_allclose(losses, expected, rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(hits, oracles.contrastive_hits(queries, positives, bank))
    wanted = oracles.info_nce_gradients(queries, positives, bank, temperature)
    for gradient, want in zip(gradients[:2], wanted, strict=True):
        np.testing.assert_allclose(gradient, want * upstream[:, None], rtol=1e-4, atol=1e-5)
    assert gradients[2] is None or not np.any(gradients[2])


def test_info_nce_gives_the_loss_without_hits():
    rng = np.random.default_rng(1)
    tensors = [tf.constant(unit_rows(rng, count), tf.float32) for count in (5, 5, K)]
    losses, hits = ops.info_nce_with_accuracy(*tensors, 0.2)
    np.testing.assert_array_equal(ops.info_nce(*tensors, 0.2), losses)
    np.testing.assert_allclose(losses, oracles.info_nce(*[t.numpy() for t in tensors], 0.2), rtol=1e-5)
    assert losses.dtype == hits.dtype == tf.float32


def test_no_gradient_flows_through_the_hits():
    rng = np.random.default_rng(2)
    variables = [tf.Variable(unit_rows(rng, 3), dtype=tf.float32) for _ in range(2)]
    bank = tf.constant(unit_rows(rng, K), tf.float32)
    with tf.GradientTape() as tape:
        losses, hits = ops.info_nce_with_accuracy(*variables, bank, 0.2)
        scalar = tf.reduce_sum(hits) + 0.0 * tf.reduce_sum(losses)
    assert not any(np.any(gradient) for gradient in tape.gradient(scalar, variables))


# --- sizes, dtypes, errors ---------------------------------------------------------------------------


@pytest.mark.parametrize("block", [None, 4])
def test_unknown_sizes_are_accepted(block):
    signature = [tf.TensorSpec([None, 8], tf.float32)] * 3
    call = tf.function(lambda q, p, k: ops.info_nce(q, p, k, 0.2, block), input_signature=signature)
    rng = np.random.default_rng(3)
    for number, size in ((5, 4), (2, 11), (3, 8), (1, 3)):
        rows = [unit_rows(rng, count).astype(np.float32) for count in (number, number, size)]
        np.testing.assert_allclose(call(*rows), oracles.info_nce(*rows, 0.2), rtol=1e-5)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_embeddings_are_contrasted_in_float32(dtype):
    rng = np.random.default_rng(4)
    queries, positives, bank = (tf.cast(unit_rows(rng, count), dtype) for count in (5, 5, K))
    losses = ops.info_nce(queries, positives, tf.cast(bank, tf.float32), 0.07)
    rounded = [tf.cast(rows, tf.float64).numpy() for rows in (queries, positives, bank)]
    assert losses.dtype == tf.float32
    np.testing.assert_allclose(losses, oracles.info_nce(*rounded, 0.07), rtol=1e-5)


def all_tensors(graph):
    """Yields the tensors of a function's graph and of the functions (loop bodies, gradients) that it calls."""
    for operation in graph.get_operations():
        yield from operation.outputs
    for name in graph._functions:
        yield from all_tensors(graph._get_function(name).graph)


def test_full_logits_are_never_held_forward_or_backward():
    number, size, dim = 4096, 16384, 8  # the logits would be 256 MB

    @tf.function
    def loss_and_gradients(queries, positives, bank_keys):
        with tf.GradientTape() as tape:
            tape.watch([queries, positives])
            loss = tf.reduce_mean(ops.info_nce(queries, positives, bank_keys, 0.2))
        return loss, tape.gradient(loss, [queries, positives])

    specs = [tf.TensorSpec([rows, dim], tf.float32) for rows in (number, number, size)]
    graph = loss_and_gradients.get_concrete_function(*specs).graph
    sizes = [t.shape.num_elements() or 0 for t in all_tensors(graph) if t.shape.rank is not None]
    assert max(sizes) >= number * dim  # confirms that the graph was searched
    assert max(sizes) <= number * size // 8


@pytest.mark.parametrize("temperature", [0.0, -0.2])
def test_temperature_must_be_positive(temperature):
    rows = tf.eye(3)
    with pytest.raises(UserError) as error:
        ops.info_nce(rows, rows, rows, temperature)
    assert error.value.field == "temperature"
