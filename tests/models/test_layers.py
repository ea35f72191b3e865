"""Compares the fused batch norm with Keras' own, and its moving variance with PyTorch's definition."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from dupr_tf.models.layers import FusedBatchNormalization

SHAPE = (4, 5, 6, 3)


def layers(**changes):
    """Returns our layer and Keras', built, with the same scale and shift."""
    pair = [
        kind(momentum=0.9, epsilon=1e-5, **changes)
        for kind in (FusedBatchNormalization, keras.layers.BatchNormalization)
    ]
    for layer in pair:
        layer.build(SHAPE)
        layer.gamma.assign([0.5, 1.5, -1.0])
        layer.beta.assign([0.1, 0.0, 2.0])
    return pair


@pytest.mark.parametrize("changes", [{"axis": 1}, {"scale": False}, {"center": False}, {"dtype": "float64"}], ids=str)
def test_unusual_layers_compute_as_those_of_keras(changes):
    x = images()
    ours, theirs = (kind(**changes) for kind in (FusedBatchNormalization, keras.layers.BatchNormalization))
    np.testing.assert_allclose(ours(x, training=True), theirs(x, training=True), atol=1e-5)


def images():
    return tf.random.stateless_normal(SHAPE, [1, 2]) * [1.0, 2.0, 0.3] + [3.0, 0.0, 1.0]


def output_and_gradients(layer, x):
    with tf.GradientTape() as tape:
        tape.watch(x)
        y = layer(x, training=True)
        loss = tf.reduce_sum(tf.sin(tf.cast(y, tf.float32)))
    return [y, *tape.gradient(loss, [x, layer.gamma, layer.beta])]


@pytest.mark.parametrize("mode", ["eager", "graph", "xla"])
def test_training_outputs_and_gradients_equal_those_of_keras(mode):
    ours, theirs = layers()
    wrap = {"eager": lambda f: f, "graph": tf.function, "xla": lambda f: tf.function(f, jit_compile=True)}[mode]
    results = [wrap(lambda x, layer=layer: output_and_gradients(layer, x))(images()) for layer in (ours, theirs)]
    for a, b in zip(*results, strict=True):
        np.testing.assert_allclose(a.numpy(), b.numpy(), atol=1e-4 * float(tf.reduce_max(tf.abs(b))), rtol=1e-4)


def test_moving_statistics_equal_those_of_torch():
    ours, _ = layers()
    x = images().numpy()
    ours(x, training=True)
    np.testing.assert_allclose(ours.moving_mean.numpy(), 0.1 * x.mean((0, 1, 2)), rtol=1e-5)
    np.testing.assert_allclose(ours.moving_variance.numpy(), 0.9 + 0.1 * x.var((0, 1, 2), ddof=1), rtol=1e-5)


def test_inference_and_frozen_layers_use_the_moving_statistics():
    ours, theirs = layers()
    ours.trainable = False
    np.testing.assert_array_equal(ours(images(), training=True), theirs(images(), training=False))
    np.testing.assert_array_equal(ours.moving_mean, np.zeros(3))


def test_half_precision_keeps_float32_statistics():
    ours = FusedBatchNormalization(dtype="mixed_bfloat16")
    y = ours(images(), training=True)
    assert y.dtype == tf.bfloat16 and ours.moving_mean.dtype == "float32"
    assert np.abs(np.asarray(tf.cast(y, tf.float32)).mean((0, 1, 2))).max() < 0.05
