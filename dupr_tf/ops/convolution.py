"""Computes 3×3 convolutions with a faster kernel gradient on CPUs, and strided 1×1 ones with a safe one.

TensorFlow and PyTorch both use oneDNN. It computes a kernel gradient at two thirds of the speed of the convolution
itself, and at a third where a feature map is a few pixels wide. On CPUs this module uses two faster forms:

* where there are fewer positions than channels, one product of the nine shifted inputs with the output gradient;
* where the work is large, Winograd's domain (Lavin & Gray, 2016, F(2×2, 3×3)): 16 multiplications for each tile
  of 2×2 outputs instead of 36.

The forward pass and the input gradient are TensorFlow's own, so features are bit-identical.
"""

from __future__ import annotations

import numpy as np
import tensorflow as tf

WINOGRAD_WORK = 1 << 27  # multiplications of the plain form above which changing the domain pays off

# F(2×2, 3×3): a kernel's gradient is G^T (B^T d B ⊙ A e A^T) G, summed over tiles d of the input and e of the gradient.
G = np.array([[1, 0, 0], [0.5, 0.5, 0.5], [0.5, -0.5, 0.5], [0, 0, 1]], np.float32)


def convolve_3x3(images, kernel):
    """Convolves with stride 1 and a border of one zero pixel.

    Args:
        images: (N, H, W, C) float.
        kernel: (3, 3, C, K), of the same dtype.

    Returns:
        (N, H, W, K).
    """
    return _convolve_3x3(tf.convert_to_tensor(images), tf.convert_to_tensor(kernel))  # no variables from here on


@tf.custom_gradient
def _convolve_3x3(images, kernel):
    def gradients(upstream):
        images_gradient = tf.raw_ops.Conv2DBackpropInput(
            input_sizes=tf.shape(images), filter=kernel, out_backprop=upstream, strides=[1] * 4, padding="SAME"
        )
        return images_gradient, kernel_gradient(images, upstream)

    return tf.nn.conv2d(images, kernel, 1, "SAME"), gradients


def convolve_1x1(images, kernel, stride):
    """Convolves with a 1×1 kernel at a stride above 1.

    oneDNN's kernel gradient of this convolution writes beyond its memory for one image with 8 channels, on CPUs with
    AVX-512 (TensorFlow 2.21): the process dies there or later. A matrix product is the same gradient.

    Args:
        images: (N, H, W, C) float.
        kernel: (1, 1, C, K), of the same dtype.
        stride: pixels between two outputs.

    Returns:
        (N, ceil(H / stride), ceil(W / stride), K).
    """

    @tf.custom_gradient
    def convolve(images, kernel):
        def gradients(upstream):
            images_gradient = tf.raw_ops.Conv2DBackpropInput(
                input_sizes=tf.shape(images),
                filter=kernel,
                out_backprop=upstream,
                strides=[1, stride, stride, 1],
                padding="VALID",
            )
            seen = _rows(images[:, ::stride, ::stride])
            return images_gradient, tf.matmul(seen, _rows(upstream), transpose_a=True)[None, None]

        return tf.nn.conv2d(images, kernel, stride, "VALID"), gradients

    return convolve(tf.convert_to_tensor(images), tf.convert_to_tensor(kernel))


def kernel_gradient(images, upstream):
    """Computes the gradient of a loss w.r.t. the kernel of `convolve_3x3`.

    Args:
        images: (N, H, W, C), the input of the convolution.
        upstream: (N, H, W, K), the gradient w.r.t. its output.

    Returns:
        (3, 3, C, K).
    """
    return chosen_form(images, upstream)(images, upstream)


def chosen_form(images, upstream):
    """Returns the form of the kernel gradient that is fastest for these shapes on this machine."""
    static = images.shape.is_fully_defined() and upstream.shape.is_fully_defined()
    if not static or images.dtype != tf.float32 or tf.config.list_logical_devices("GPU"):
        return plainly
    positions, channels, filters = int(np.prod(images.shape[:3])), images.shape[3], upstream.shape[3]
    if positions < 2 * channels:
        return by_shifts
    return by_winograd if 9 * positions * channels * filters >= WINOGRAD_WORK else plainly


def plainly(images, upstream):
    """Computes `kernel_gradient` by TensorFlow's own operation."""
    return tf.raw_ops.Conv2DBackpropFilter(
        input=images,
        filter_sizes=[3, 3, images.shape[3], upstream.shape[3]],
        out_backprop=upstream,
        strides=[1] * 4,
        padding="SAME",
    )


def by_shifts(images, upstream):
    """Computes `kernel_gradient` as one product of the nine shifted inputs with the output gradient."""
    height, width, channels = images.shape[1:]
    padded = tf.pad(images, [[0, 0], [1, 1], [1, 1], [0, 0]])
    shifted = tf.concat([padded[:, y : y + height, x : x + width] for y in range(3) for x in range(3)], -1)
    product = tf.matmul(_rows(shifted), _rows(upstream), transpose_a=True)  # (9 C, K)
    return tf.reshape(product, [3, 3, channels, upstream.shape[3]])


def by_winograd(images, upstream):
    """Computes `kernel_gradient` in Winograd's domain."""
    channels, filters = images.shape[3], upstream.shape[3]
    products = tf.matmul(_input_tiles(images), _gradient_tiles(upstream), transpose_a=True)  # (16, C, K)
    back = np.kron(G, G).T  # (9, 16)
    return tf.reshape(tf.matmul(back, tf.reshape(products, [16, -1])), [3, 3, channels, filters])


@tf.function(jit_compile=True, autograph=False)
def _input_tiles(images):
    """Returns (16, tiles, C): B^T d B of every 4×4 tile d, at a stride of 2 pixels."""
    height, width = images.shape[1:3]
    padded = tf.pad(images, [[0, 0], [1, 1 + height % 2], [1, 1 + width % 2], [0, 0]])

    def along(axis, x):
        a, b = _every_second(x, axis)
        d = [*(_but(x, axis, -1) for x in (a, b)), *(_but(x, axis, 0) for x in (a, b))]
        return [d[0] - d[2], d[1] + d[2], d[2] - d[1], d[1] - d[3]]

    return tf.stack([_rows(tile) for row in along(1, padded) for tile in along(2, row)])


@tf.function(jit_compile=True, autograph=False)
def _gradient_tiles(upstream):
    """Returns (16, tiles, K): A e A^T of every 2×2 tile e."""
    height, width = upstream.shape[1:3]
    padded = tf.pad(upstream, [[0, 0], [0, height % 2], [0, width % 2], [0, 0]])

    def along(axis, x):
        a, b = _every_second(x, axis)
        return [a, a + b, a - b, -b]

    return tf.stack([_rows(tile) for row in along(1, padded) for tile in along(2, row)])


def _every_second(x, axis):
    return (x[:, 0::2], x[:, 1::2]) if axis == 1 else (x[:, :, 0::2], x[:, :, 1::2])


def _but(x, axis, index):
    """Drops the first (index 0) or the last (-1) element along an axis."""
    keep = slice(1, None) if index == 0 else slice(None, -1)
    return x[:, keep] if axis == 1 else x[:, :, keep]


def _rows(x):
    """Reshapes (N, H, W, C) to (N H W, C)."""
    return tf.reshape(x, [-1, x.shape[-1]])
