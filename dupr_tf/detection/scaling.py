"""Scales images at test within TensorFlow's graph, for SavedModels, as defined in `data.placing`.

The pixels equal those of the batches. They may differ by one grey level where the arithmetic differs in the last bits.
"""

from __future__ import annotations

import tensorflow as tf

from dupr_tf.data.placing import PAD_COLOUR, STRIDE
from dupr_tf.detection.parts.target import LITERT, current_target


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
    return tf.reshape(padded, [-1, side, side, 3]), size


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
        least, most = _wide(tf.reduce_min(sides), tf.reduce_max(sides))
        fits = short_side * most <= max_long_side * least
        size = tf.where(fits, scaled_size(sides, short_side, least), scaled_size(sides, max_long_side, most))
    return _pad(_resize(images, size), size, (size + STRIDE - 1) // STRIDE * STRIDE), size


def pad_to_stride(images):
    """Pads images (B, H, W, 3) float32 below and on the right to multiples of `STRIDE`, if they need it."""
    height, width = images.shape[1:3]
    if None not in (height, width) and height % STRIDE == width % STRIDE == 0:
        return images
    size = tf.shape(images)[1:3]
    return _pad(images, size, (size + STRIDE - 1) // STRIDE * STRIDE)


def scaled_size(sides, numerator, denominator):
    """Multiplies sides by a fraction and rounds exactly, halves up, to at least 1 px. Returns (2,) int32."""
    sides, numerator, denominator = _wide(sides, numerator, denominator)
    return tf.cast(tf.maximum((2 * sides * numerator + denominator) // (2 * denominator), 1), tf.int32)


def nearest_pixels(length, source):
    """Returns (length,) integers: the pixel of a row of `source` under the centre of each of `length` pixels."""
    length, source = _wide(length, source)
    return (2 * tf.range(length) + 1) * source // (2 * length)


def _wide(*values):
    """Casts integers to int64, whose products do not overflow. LiteRT divides int32 only, enough for 32,000 px."""
    dtype = tf.int32 if current_target() == LITERT else tf.int64
    return [tf.cast(value, dtype) for value in values]


def _resize(images, size):
    """Resizes the height, then the width, and rounds to whole grey levels after each, as cykooz does.

    cykooz resizes the batches. With the other order or without rounding, up to a fifth of the pixels differ by a grey
    level. ONNX and LiteRT lack the operation behind `tf.image.resize(antialias=True)`, so this is a matrix product for
    each axis.
    """
    count, height, width = tf.unstack(tf.shape(images)[:3])
    down, across = resize_weights(height, size[0]), resize_weights(width, size[1])
    rows = tf.matmul(down, tf.reshape(tf.cast(images, tf.float32), [count, height, width * 3]))  # (B, H', W · 3)
    rows = tf.reshape(_round(rows), [count * size[0], width, 3])
    columns = tf.matmul(across, rows)  # (B · H', W', 3)
    return tf.reshape(_round(columns), [count, size[0], size[1], 3])


def _round(pixels):
    """Rounds to whole grey levels, halves up; a sum that the last bits put just below a half counts as one."""
    return tf.floor(pixels + (0.5 + 2**-12))


def resize_weights(source, length):
    """Returns (length, source) float32: the share of each pixel of a row in each resized pixel.

    The filter is TensorFlow's bilinear one with antialiasing.

    Args:
        source, length: () int32, pixels before and after.
    """
    scale = tf.cast(source, tf.float32) / tf.cast(length, tf.float32)
    centres = (tf.range(tf.cast(length, tf.float32)) + 0.5) * scale - 0.5
    distance = tf.abs(tf.range(tf.cast(source, tf.float32))[None] - centres[:, None]) / tf.maximum(scale, 1.0)
    weights = tf.maximum(1.0 - distance, 0.0)
    return weights / tf.reduce_sum(weights, 1, keepdims=True)


def _pad(images, size, frame):
    """Places images (B, h, w, 3) of a size (2,) in the corner of a frame (2,) of mean colour."""
    below, right = tf.unstack(frame - size)
    pads = [[0, 0], [0, below], [0, right]]
    channels = zip(tf.unstack(images, axis=-1), PAD_COLOUR, strict=True)
    return tf.stack([tf.pad(channel, pads, constant_values=colour) for channel, colour in channels], -1)
