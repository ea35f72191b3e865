"""Differences of single gradients from float64: python -m tests.fidelity_gradients [resnet18] [224].

It prints what docs/fidelity.md states. A variable's difference is relative to its largest gradient.
"""

from __future__ import annotations

import os
import sys

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np
import tensorflow as tf

from dupr_tf.models.layers import norm_layers
from dupr_tf.models.resnet import ResNetBackbone, pyramid

BATCH, CLASSES = 4, 10


def smooth_images(size: int) -> np.ndarray:
    """Draws (BATCH, size, size, 3) normalised images with detail at several scales."""
    random = np.random.default_rng(0)
    images = np.zeros((BATCH, size, size, 3))
    for cells in (2, 7, 28, size):
        images += tf.image.resize(random.normal(size=(BATCH, cells, cells, 3)), (size, size), "bicubic").numpy() / 2
    return images


def gradients(backbone, images, head) -> dict[str, np.ndarray]:
    """Returns the gradients of a cross-entropy behind P5, by the variable's path."""
    with tf.GradientTape() as tape:
        features = tf.reduce_mean(pyramid(backbone, ("P5",))(images, training=True)["P5"], [1, 2])
        logits = tf.linalg.matmul(features, tf.cast(head, features.dtype))
        loss = tf.reduce_mean(tf.nn.sparse_softmax_cross_entropy_with_logits(np.arange(BATCH) % CLASSES, logits))
    found = tape.gradient(loss, backbone.trainable_variables)
    return {
        variable.path: np.asarray(gradient, np.float64)
        for variable, gradient in zip(backbone.trainable_variables, found, strict=True)
        if gradient is not None
    }


def differences(architecture: str, size: int) -> np.ndarray:
    """Returns each variable's largest gradient difference from float64, as a share of its largest gradient."""
    backbone = ResNetBackbone(architecture)
    twin = ResNetBackbone.from_config({**backbone.get_config(), "dtype": "float64"})
    twin.set_weights(backbone.get_weights())
    for layer in norm_layers(twin):
        layer.synchronized = True  # Keras' own code: the fused operation has no float64
    images = smooth_images(size)
    head = np.random.default_rng(1).normal(size=(backbone.output_shape[-1], CLASSES)) * 0.1
    single = gradients(backbone, images.astype(np.float32), head)
    exact = gradients(twin, images, head)
    return np.array([
        np.abs(single[path] - exact[path]).max() / np.abs(exact[path]).max() for path in single
    ])  # fmt: skip


if __name__ == "__main__":
    architecture = sys.argv[1] if len(sys.argv) > 1 else "resnet18"
    for size in [int(size) for size in sys.argv[2:]] or [64, 224]:
        shares = differences(architecture, size)
        print(f"{architecture}, {size} px: median {np.median(shares):.1e}, largest {shares.max():.1e}", flush=True)
