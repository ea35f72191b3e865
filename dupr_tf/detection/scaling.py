"""Scaling of images at test within TensorFlow's graph, for SavedModels, as defined in `data.placing`.

The pixels equal those of the batches. They may differ by one grey level where the arithmetic differs in the last bits.
"""

from __future__ import annotations

import tensorflow as tf

from dupr_tf.data.placing import PAD_COLOUR, STRIDE


def letterbox(images, side):
    """Scales images to fit a square, keeping the aspect, at its top left; the rest has the mean colour.

    Args:
        images: `(B, H, W, 3)`, 0–255, any dtype.
        side: side of the square, px.

    Returns:
        `(B, S, S, 3)` float32, and the size `(2,)` int32 of the unpadded part, height and width.
    """
    sides = tf.shape(images)[1:3]
    size = scaled_size(sides, side, tf.reduce_max(sides))
    padded = _pad(_resize(images, size), size, tf.fill([2], side))
    return tf.ensure_shape(padded, [None, side, side, 3]), size


def scaled_batch(images, short_side, max_long_side):
    """Scales images (B, H, W, 3) of one size to a short side, and pads them to multiples of `STRIDE`.

    Args:
        images: `(B, H, W, 3)`, 0–255, any dtype.
        short_side: px of the scaled short side. None: images keep their size.
        max_long_side: px, used with `short_side`.

    Returns:
        `(B, H', W', 3)` float32, and the size `(2,)` int32 of the unpadded part, height and width.
    """
    size = sides = tf.shape(images)[1:3]
    if short_side is not None:
        least, most = (tf.cast(side, tf.int64) for side in (tf.reduce_min(sides), tf.reduce_max(sides)))
        fits = short_side * most <= max_long_side * least
        size = tf.where(fits, scaled_size(sides, short_side, least), scaled_size(sides, max_long_side, most))
    return _pad(_resize(images, size), size, (size + STRIDE - 1) // STRIDE * STRIDE), size


def scaled_size(sides, numerator, denominator):
    """Multiplies sides by a fraction and rounds exactly, halves up, to at least 1 px. Returns (2,) int32."""
    sides, numerator, denominator = (tf.cast(value, tf.int64) for value in (sides, numerator, denominator))
    return tf.cast(tf.maximum((2 * sides * numerator + denominator) // (2 * denominator), 1), tf.int32)


def nearest_pixels(length, source):
    """Returns (length,) int64: the pixels of a row of `source` in which the centres of `length` resized pixels lie."""
    length, source = tf.cast(length, tf.int64), tf.cast(source, tf.int64)
    return (2 * tf.range(length) + 1) * source // (2 * length)


def _resize(images, size):
    """Resizes the height, then the width, and rounds to whole grey levels after each, as cykooz does.

    cykooz resizes the batches. With the other order or without rounding, up to a fifth of the pixels differ by a grey
    level. TensorFlow Lite has no counterpart of the operation behind `tf.image.resize(antialias=True)`, so this
    multiplies with its weights.
    """
    height, width = tf.unstack(tf.shape(images)[1:3])
    images = tf.einsum("bhwc,uh->buwc", tf.cast(images, tf.float32), _triangles(size[0], height))
    images = tf.einsum("bhwc,vw->bhvc", tf.floor(images + 0.5), _triangles(size[1], width))
    return tf.floor(images + 0.5)


def _triangles(length, source):
    """Returns the weights (length, source) of a bilinear resize that widens its triangles where it shrinks."""
    length, source = tf.cast(length, tf.float32), tf.cast(source, tf.float32)
    scale = source / length
    distances = (tf.range(length) + 0.5)[:, None] * scale - (tf.range(source) + 0.5)  # in pixels of the source
    weights = tf.nn.relu(1.0 - tf.abs(distances) / tf.maximum(scale, 1.0))
    return weights / tf.reduce_sum(weights, 1, keepdims=True)


def _pad(images, size, frame):
    """Places images (B, h, w, 3) of a size (2,) in the corner of a frame (2,) of mean colour."""
    below, right = tf.unstack(frame - size)
    pads = [[0, 0], [0, below], [0, right]]
    channels = zip(tf.unstack(images, axis=-1), PAD_COLOUR, strict=True)
    return tf.stack([tf.pad(channel, pads, constant_values=colour) for channel, colour in channels], -1)
