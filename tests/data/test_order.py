"""Tests of batches of one orientation: their order is a permutation and a function of seed and position."""

import functools
import pickle

import numpy as np
import pytest

from dupr_tf.data.order import Order, grouped_epoch, shuffled_epoch


@pytest.mark.parametrize(("count", "batch"), [(64, 8), (50, 8), (7, 8), (1, 4), (8, 8), (33, 2)])
def test_every_epoch_is_a_permutation(count, batch):
    tall = np.random.default_rng(0).random(count) < 0.4
    epochs = [grouped_epoch(tall, batch, 3, epoch) for epoch in range(4)]
    assert all(sorted(epoch) == list(range(count)) for epoch in epochs)
    if count > 8:
        assert len({tuple(epoch) for epoch in epochs}) == 4
    np.testing.assert_array_equal(epochs[2], grouped_epoch(tall, batch, 3, 2))
    if count > 1:
        assert not np.array_equal(epochs[2], grouped_epoch(tall, batch, 4, 2))


@pytest.mark.parametrize("count", [64, 61])
def test_all_but_two_batches_per_epoch_have_one_orientation(count):
    tall = np.random.default_rng(0).random(count) < 0.4
    run = np.concatenate([grouped_epoch(tall, 4, 0, epoch) for epoch in range(8)])
    batches = tall[run[: len(run) // 4 * 4]].reshape(-1, 4)
    mixed = (batches.any(1) & ~batches.all(1)).sum()
    assert mixed <= 2 * 8 + 1
    assert batches.all(1).sum() >= 8 * 4  # of about 6 batches of tall images an epoch


def test_orientations_are_shuffled():
    tall = np.arange(400) % 2 > 0
    first = [tall[grouped_epoch(tall, 4, 0, epoch)][::4] for epoch in range(2)]
    assert 20 < first[0][:50].sum() + first[1][:50].sum() < 80


def test_position_gives_its_image_in_any_order_of_access():
    calls = []

    def permutation(epoch):
        calls.append(epoch)
        return shuffled_epoch(21, 5, epoch)

    expected = np.concatenate([shuffled_epoch(21, 5, epoch) for epoch in range(4)])
    assert len({tuple(epoch) for epoch in expected.reshape(4, 21)}) == 4
    order = Order(21, permutation)
    assert [order(position) for position in range(84)] == expected.tolist()
    assert calls == [0, 1, 2, 3]
    for position in (41, 42, 40, 43, 83, 0):  # threads near the end of an epoch
        assert order(position) == expected[position]
    assert len(calls) == 8


def test_order_can_be_pickled():
    order = Order(30, functools.partial(grouped_epoch, np.arange(30) % 3 > 0, 4, 7))
    sent = pickle.loads(pickle.dumps(order))
    assert [sent(position) for position in range(70)] == [order(position) for position in range(70)]
