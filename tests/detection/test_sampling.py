"""Tests of the sampling of deformable attention on numbers computed by hand."""

import numpy as np
import pytest
import tensorflow as tf

from dupr_tf.detection.parts.sampling import attend

SHAPES, POINTS = [(2, 2), (1, 2)], [1, 2]
VALUES = np.array([1, 2, 3, 4, 10, 20], np.float32).reshape(1, 6, 1, 1)  # two rows of two cells, then one row


def weighted(places, weights=(1, 1, 1)):
    """Returns the sum at three places (x, y): the first in the level of four cells, the others in that of two."""
    locations = np.array(places, np.float32).reshape(1, 1, 1, 3, 2)
    return attend(tf.constant(VALUES), locations, np.array(weights, np.float32).reshape(1, 1, 1, 3), POINTS, SHAPES)


@pytest.mark.parametrize(("places", "weights", "expected"), [
    ([(0.25, 0.25), (0.25, 0.5), (0.75, 0.5)], (1, 1, 1), 1 + 10 + 20),  # centres of cells
    ([(0.75, 0.25), (0.25, 0.5), (0.75, 0.5)], (1, 0, 0), 2),
    ([(0.25, 0.75), (0.25, 0.5), (0.75, 0.5)], (1, 0, 0.5), 3 + 10),
    ([(0.5, 0.5), (0.375, 0.5), (0.75, 0.5)], (1, 1, 0), 2.5 + 12.5),  # between cells
    ([(0.0, 0.25), (2.0, 0.5), (0.75, -3.0)], (1, 1, 1), 0.5),  # half outside, and wholly
])  # fmt: skip
def test_sum_at_three_places(places, weights, expected):
    assert float(weighted(places, weights)[0, 0, 0]) == pytest.approx(expected)


def test_heads_queries_and_images_keep_their_order():
    rng = np.random.default_rng(0)
    values = rng.normal(size=(2, 6, 3, 4)).astype(np.float32)
    locations = np.tile(np.array([(0.75, 0.75), (0.25, 0.5), (0.75, 0.5)], np.float32), (2, 5, 3, 1, 1))
    weights = rng.uniform(size=(2, 5, 3, 3)).astype(np.float32)
    received = attend(tf.constant(values), locations, weights, POINTS, SHAPES)
    expected = np.einsum("bphd,bqhp->bqhd", values[:, [3, 4, 5]], weights)
    np.testing.assert_allclose(received, expected.reshape(2, 5, 12), rtol=1e-5, atol=1e-6)


def test_gradients_reach_values_places_and_weights():
    inputs = [tf.constant(VALUES), tf.fill([1, 1, 1, 3, 2], 0.45), tf.ones([1, 1, 1, 3])]
    with tf.GradientTape() as tape:
        tape.watch(inputs)
        total = tf.reduce_sum(attend(*inputs, POINTS, SHAPES))
    values, places, weights = tape.gradient(total, inputs)
    assert float(tf.reduce_sum(values)) == pytest.approx(1 + 2 * 0.95, rel=1e-4)  # a row of one cell loses 5 %
    np.testing.assert_allclose(places[0, 0, 0, 0], [2, 4], rtol=1e-4)  # (2 - 1) · 2 cells, (3 - 1) · 2
    assert weights.numpy().ravel()[0] == pytest.approx(1 + 0.4 + 0.8, rel=1e-4)
