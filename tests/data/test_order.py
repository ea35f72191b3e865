"""Batches of one orientation: still a permutation, still a function of seed and position."""

import numpy as np
import pytest

from dupr_tf.data.order import grouped_epoch, grouped_positions


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
def test_batches_are_of_one_orientation_but_for_two_an_epoch(count):
    tall = np.random.default_rng(0).random(count) < 0.4
    run = np.concatenate([grouped_epoch(tall, 4, 0, epoch) for epoch in range(8)])
    batches = tall[run[: len(run) // 4 * 4]].reshape(-1, 4)
    mixed = (batches.any(1) & ~batches.all(1)).sum()
    assert mixed <= 2 * 8 + 1
    assert batches.all(1).sum() >= 8 * 4  # of about 6 of tall ones an epoch


def test_orientations_are_not_in_order():
    tall = np.arange(400) % 2 > 0
    first = [tall[grouped_epoch(tall, 4, 0, epoch)][::4] for epoch in range(2)]
    assert 20 < first[0][:50].sum() + first[1][:50].sum() < 80


def test_positions_and_images_go_on_where_they_were_left():
    sizes = np.array([[10, 20], [20, 10], [10, 10]] * 7)
    whole = [(int(at), int(image)) for at, image in grouped_positions(sizes, 4, 5, 12)]
    assert [at for at, _ in whole] == list(range(48))
    assert [tuple(map(int, pair)) for pair in grouped_positions(sizes, 4, 5, 12, start=7)] == whole[28:]
    assert sorted(image for _, image in whole[21:42]) == list(range(21))  # the second epoch
