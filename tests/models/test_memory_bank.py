"""Tests of the memory bank: its initial rows, what an enqueue overwrites, and how the ring wraps."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from dupr_tf.errors import UserError
from dupr_tf.models import MemoryBank
from tests import oracles_step

FEW = settings(max_examples=8, deadline=None, derandomize=True, database=None)
MODES = ("eager", "graph", "xla")
every_mode = pytest.mark.parametrize("mode", MODES)


def state(bank):
    return np.array(bank.keys), int(bank.next_row)


def enqueue_in(mode, bank):
    if mode == "eager":
        return bank.enqueue
    enqueue = tf.function(
        lambda keys, where=True: bank.enqueue(keys, where), jit_compile=mode == "xla", autograph=False
    )
    return enqueue


def rows(*values):
    return tf.constant([[float(value)] * 2 for value in values])


# --- start -------------------------------------------------------------------------------------------


def test_rows_start_as_distinct_unit_noise():
    keys, next_row = state(MemoryBank(500, 64, seed=3))
    assert keys.shape == (500, 64)
    assert keys.dtype == np.float32
    assert next_row == 0
    np.testing.assert_allclose(np.linalg.norm(keys, axis=1), 1, atol=1e-5)
    # Normalised Gaussian rows have cosines of mean 0 and deviation 1 / sqrt(C), and share no direction.
    cosines = (keys @ keys.T)[~np.eye(500, dtype=bool)]
    assert cosines.std() == pytest.approx(1 / 8, rel=0.03)
    assert np.linalg.norm(keys.mean(axis=0)) == pytest.approx(1 / np.sqrt(500), rel=0.35)


def test_noise_is_a_function_of_the_seed():
    one, same, other = (state(MemoryBank(6, 4, seed=seed))[0] for seed in (1, 1, 2))
    np.testing.assert_array_equal(one, same)
    assert np.abs(one - other).max() > 0.1


# --- ring --------------------------------------------------------------------------------------------


@every_mode
def test_enqueue_wraps_and_overwrites_the_oldest(mode):
    bank = MemoryBank(5, 2)
    start = state(bank)[0]
    enqueue = enqueue_in(mode, bank)
    enqueue(rows(1, 2, 3))
    keys, next_row = state(bank)
    np.testing.assert_array_equal(keys[:3, 0], [1, 2, 3])
    np.testing.assert_array_equal(keys[3:], start[3:])  # no other row is changed
    assert next_row == 3
    enqueue(rows(4, 5, 6))  # wraps: 4 and 5 fill the end, 6 replaces 1
    keys, next_row = state(bank)
    np.testing.assert_array_equal(keys[:, 0], [6, 2, 3, 4, 5])
    assert next_row == 1


@every_mode
def test_filling_to_the_last_row_returns_to_the_first(mode):
    bank = MemoryBank(4, 2)
    enqueue = enqueue_in(mode, bank)
    for values, expected in (((1, 2), 2), ((3, 4), 0), ((5, 6), 2)):
        enqueue(rows(*values))
        assert state(bank)[1] == expected
    np.testing.assert_array_equal(state(bank)[0][:, 0], [5, 6, 3, 4])


@every_mode
def test_as_many_keys_as_rows_replace_all_rows_in_order(mode):
    bank = MemoryBank(3, 2)
    bank.enqueue(rows(9))
    enqueue_in(mode, bank)(rows(1, 2, 3))
    keys, next_row = state(bank)
    np.testing.assert_array_equal(keys[:, 0], [3, 1, 2])
    assert next_row == 1


@every_mode
@FEW
@given(counts=st.lists(st.sampled_from([1, 3, 7]), min_size=1, max_size=8))
def test_any_sequence_agrees_with_the_oracle(mode, counts):
    bank, enqueue = RINGS[mode]
    bank.next_row.assign(0)
    keys, next_row = state(bank)
    for i, count in enumerate(counts):
        new = np.random.default_rng(i).normal(size=(count, 3)).astype(np.float32)
        enqueue(tf.constant(new))
        keys, next_row = oracles_step.enqueue(keys, next_row, new)
    np.testing.assert_array_equal(state(bank)[0], keys)
    assert state(bank)[1] == next_row


def ring(mode):
    bank = MemoryBank(7, 3)
    return bank, enqueue_in(mode, bank)


RINGS = {mode: ring(mode) for mode in MODES}


@every_mode
def test_enqueue_where_false_leaves_the_bank_unchanged(mode):
    bank = MemoryBank(5, 2)
    bank.enqueue(rows(1, 2, 3, 4))
    keys, next_row = state(bank)
    enqueue = enqueue_in(mode, bank)
    enqueue(rows(7, 8), tf.constant(False))
    np.testing.assert_array_equal(state(bank)[0], keys)
    assert state(bank)[1] == next_row
    enqueue(rows(7, 8), tf.constant(True))
    np.testing.assert_array_equal(state(bank)[0][:, 0], [8, 2, 3, 4, 7])


@every_mode
def test_enqueue_where_false_keeps_nan_keys_out(mode):
    bank = MemoryBank(3, 2)
    enqueue_in(mode, bank)(rows(float("nan")), tf.constant(False))
    assert np.all(np.isfinite(state(bank)[0]))


@every_mode
def test_rows_read_before_an_enqueue_stay_unchanged(mode):
    bank = MemoryBank(3, 2)
    start = state(bank)[0]

    def read_then_enqueue(keys):
        before = bank.read()
        bank.enqueue(keys)
        return before, bank.read()

    if mode != "eager":
        read_then_enqueue = tf.function(read_then_enqueue, jit_compile=mode == "xla")
    before, after = read_then_enqueue(rows(1, 2))
    np.testing.assert_array_equal(before, start)
    np.testing.assert_array_equal(after[:2, 0], [1, 2])


# --- as part of a model ------------------------------------------------------------------------------


def test_bank_has_two_variables_and_none_to_train():
    bank = MemoryBank(3, 2)
    assert bank.trainable_variables == []
    assert [(v.name, tuple(v.shape)) for v in bank.variables] == [("keys", (3, 2)), ("next_row", ())]


def test_no_gradient_reaches_the_bank_or_the_enqueued_keys():
    bank, query = MemoryBank(3, 2), tf.Variable([[1.0, 2.0]])
    with tf.GradientTape() as tape:
        bank.enqueue(query * 2.0)
        loss = tf.reduce_sum(bank.read() * 3.0)
    assert tape.gradient(loss, query) is None
    np.testing.assert_array_equal(state(bank)[0][0], [2, 4])


@pytest.mark.parametrize("policy", ["mixed_bfloat16", "mixed_float16"])
def test_bank_stays_float32_under_mixed_precision(policy):
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(policy)
    try:
        bank = MemoryBank(3, 2)
        bank.enqueue(tf.constant([[0.5, 0.25]], policy.removeprefix("mixed_")))
        assert bank.read().dtype == tf.float32
        np.testing.assert_array_equal(bank.read()[0], [0.5, 0.25])
    finally:
        keras.config.set_dtype_policy(before)


def test_bank_is_rebuilt_from_its_config():
    bank = MemoryBank(6, 4, seed=5, name="bank_image_P5")
    again = MemoryBank.from_config(bank.get_config())
    assert (again.name, again.size, again.dim, again.seed) == ("bank_image_P5", 6, 4, 5)
    np.testing.assert_array_equal(state(again)[0], state(bank)[0])


@every_mode
def test_more_keys_than_rows_are_refused(mode):
    bank = MemoryBank(3, 2)
    with pytest.raises(UserError) as error:
        enqueue_in(mode, bank)(rows(1, 2, 3, 4))
    assert error.value.field == "bank_size" and "4 keys" in error.value.problem and "3" in error.value.problem


@pytest.mark.parametrize("sizes", [(0, 4), (4, 0)])
def test_sizes_must_be_positive(sizes):
    with pytest.raises(UserError) as error:
        MemoryBank(*sizes)
    assert error.value.field == "bank_size"
