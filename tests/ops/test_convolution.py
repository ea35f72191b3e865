"""Tests the 3×3 convolution and each form of its kernel gradient, and the strided 1×1 one, against loops."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from dupr_tf.models.layers import TrainedConv2D
from dupr_tf.ops import convolution
from tests import oracles

MODES = ("eager", "graph", "xla")
FORMS = (convolution.plainly, convolution.by_shifts, convolution.by_winograd)
# Even and odd sides, a map of one pixel, and more or fewer filters than channels.
SHAPES = [(2, 4, 6, 3, 5), (1, 5, 7, 4, 2), (3, 1, 1, 2, 3), (2, 2, 3, 1, 1)]


def in_mode(function, mode):
    return function if mode == "eager" else tf.function(function, jit_compile=mode == "xla")


def arrays(shape):
    count, height, width, channels, filters = shape
    rng = np.random.default_rng(sum(shape))
    images = rng.normal(size=(count, height, width, channels))
    return images, rng.normal(size=(3, 3, channels, filters)), rng.normal(size=(count, height, width, filters))


def floats(*values):
    return [tf.constant(value, tf.float32) for value in values]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.__name__)
@pytest.mark.parametrize("mode", MODES)
def test_kernel_gradient_agrees_with_loops(mode, form, shape):
    images, kernel, upstream = arrays(shape)
    _, expected = oracles.convolve_3x3_gradients(images, kernel, upstream)
    result = in_mode(form, mode)(*floats(images, upstream))
    np.testing.assert_allclose(result, expected, atol=1e-5 * np.abs(expected).max())


@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.__name__)
@pytest.mark.parametrize("mode", MODES)
def test_layer_and_gradients_agree_with_loops(mode, form, monkeypatch):
    images, kernel, upstream = arrays(SHAPES[0])
    monkeypatch.setattr(convolution, "chosen_form", lambda *_: form)

    def features_and_gradients(images, kernel, upstream):
        with tf.GradientTape() as tape:
            tape.watch([images, kernel])
            features = convolution.convolve_3x3(images, kernel)
            loss = tf.reduce_sum(features * upstream)
        return features, *tape.gradient(loss, [images, kernel])

    results = in_mode(features_and_gradients, mode)(*floats(images, kernel, upstream))
    expected = oracles.convolve_3x3(images, kernel), *oracles.convolve_3x3_gradients(images, kernel, upstream)
    for result, value in zip(results, expected, strict=True):
        np.testing.assert_allclose(result, value, atol=1e-5 * np.abs(value).max())


@pytest.mark.parametrize("stride", [2, 3])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("mode", MODES)
def test_strided_1x1_convolution_and_gradients_agree_with_loops(mode, shape, stride):
    images, kernel, _ = arrays(shape)
    kernel = kernel[:1, :1]
    seen = images[:, ::stride, ::stride]
    upstream = np.random.default_rng(1).normal(size=(*seen.shape[:3], kernel.shape[3]))

    def features_and_gradients(images, kernel, upstream):
        with tf.GradientTape() as tape:
            tape.watch([images, kernel])
            features = convolution.convolve_1x1(images, kernel, stride)
            loss = tf.reduce_sum(features * upstream)
        return features, *tape.gradient(loss, [images, kernel])

    results = in_mode(features_and_gradients, mode)(*floats(images, kernel, upstream))
    images_gradient, kernel_gradient = np.zeros_like(images), np.zeros_like(kernel)
    features = np.zeros_like(upstream)
    for place in np.ndindex(*seen.shape[:3]):
        source = place[0], place[1] * stride, place[2] * stride
        features[place] = images[source] @ kernel[0, 0]
        images_gradient[source] = kernel[0, 0] @ upstream[place]
        kernel_gradient[0, 0] += np.outer(images[source], upstream[place])
    for result, value in zip(results, (features, images_gradient, kernel_gradient), strict=True):
        np.testing.assert_allclose(result, value, atol=1e-5 * max(1, np.abs(value).max()))


def chosen(shape, filters, dtype=tf.float32):
    taken = []

    @tf.function(
        input_signature=[tf.TensorSpec(shape, dtype), tf.TensorSpec([*shape[:3], filters], dtype)], autograph=False
    )
    def trace(images, upstream):
        taken.append(convolution.chosen_form(images, upstream))
        return images

    trace.get_concrete_function()
    return taken[0]


def test_form_follows_the_shape():
    assert chosen([16, 3, 3, 512], 512) is convolution.by_shifts  # 144 positions
    assert chosen([16, 24, 24, 64], 64) is convolution.by_winograd
    assert chosen([16, 16, 16, 32], 32) is convolution.plainly  # too little work for changing the domain
    assert chosen([16, None, None, 64], 64) is convolution.plainly  # unknown size
    assert chosen([16, 24, 24, 64], 64, tf.bfloat16) is convolution.plainly


@pytest.mark.parametrize("mode", MODES)
def test_layer_trains_its_kernel(mode):
    layer = TrainedConv2D(5, 3, padding="same", use_bias=False)
    images, kernel, upstream = arrays(SHAPES[0])
    layer.build(images.shape)
    layer.kernel.assign(kernel)

    def gradient(images, upstream):
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(layer(images) * upstream)
        return tape.gradient(loss, layer.kernel.value)

    expected = oracles.convolve_3x3_gradients(images, kernel, upstream)[1]
    result = in_mode(gradient, mode)(*floats(images, upstream))
    np.testing.assert_allclose(result, expected, atol=1e-5 * np.abs(expected).max())


@pytest.mark.parametrize(
    "changed",
    [
        {"strides": 2},
        {"padding": "valid"},
        {"kernel_size": 1},
        {"kernel_size": 1, "strides": 2},
        {"kernel_size": 1, "strides": 2, "padding": "valid"},
        {"dilation_rate": 2},
    ],
)
def test_other_convolutions_are_those_of_keras(changed):
    settings = {"filters": 4, "kernel_size": 3, "padding": "same", "kernel_initializer": "ones", **changed}
    images = floats(arrays(SHAPES[0])[0])[0]
    expected = keras.layers.Conv2D(**settings)(images)
    np.testing.assert_array_equal(TrainedConv2D(**settings)(images), expected)
