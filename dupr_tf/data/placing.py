"""Where the pixels of an image go: into a square, or scaled to a short side; and where its boxes follow them.

Boxes are `(x1, y1, x2, y2)` in pixels. Every way in is one resampling, so that boxes follow the pixels exactly.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import tensorflow as tf

PAD_COLOUR = (123.675, 116.28, 103.53)  # ImageNet's mean: 0 once the backbone has normalised it
STRIDE = 32  # px: sides of a batch are multiples of it, so that every level of a backbone halves exactly


def letterbox(images: tf.Tensor, image_size: int) -> tuple[tf.Tensor, tf.Tensor]:
    """Scales images to fit a square, aspect kept, in its top left corner; the rest has the mean colour.

    Args:
        images: (B, H, W, 3), 0–255, any dtype.
        image_size: side S of the square.

    Returns:
        (B, S, S, 3) float32 and the scale, a scalar: a box of the square divided by it is one of the image.
    """
    longest = tf.reduce_max(tf.shape(images)[1:3])
    scale = tf.cast(image_size, tf.float32) / tf.cast(longest, tf.float32)
    return _in_square(images, image_size, scale, tf.zeros([2])), scale


def to_original(boxes: np.ndarray, scale: float, size: Sequence[int]) -> np.ndarray:
    """Boxes (n, 4) of a scaled image, clipped, in pixels of the original of `size` (height, width)."""
    height, width = size
    return np.clip(np.asarray(boxes, np.float32) / scale, 0, [width, height, width, height]).astype(np.float32)


def augment(image, boxes, draws, image_size, scale_jitter):
    """Scale, crop or pad, flip.

    Args:
        image: (H, W, 3), 0–255.
        boxes: (n, 4) xyxy in its pixels.
        draws: (4,) uniform in [0, 1): scale, vertical and horizontal position, flip.
        image_size: side S of the result.
        scale_jitter: (min, max) of the factor on the scale that just fits the square; drawn log-uniformly.

    Returns:
        (S, S, 3) float32 and the boxes (n, 4) in it; they may reach beyond it.
    """
    scale, offset, flip = drawn_place(tf.shape(image)[:2], draws, image_size, scale_jitter)
    square = _in_square(image[None], image_size, scale, offset)[0]
    return mirrored(square, flip), moved(boxes, scale, offset, flip, float(image_size))


def drawn_place(sides, draws, image_size, scale_jitter, base=None):
    """Scale (), offset (2,) y, x and flip () of an image in a square.

    Args:
        sides: (2,) H, W of the image.
        draws, image_size, scale_jitter: as `augment` has them.
        base: the scale the factor is applied to; none: the one that just fits the square.
    """
    sides = tf.cast(sides, tf.float32)
    low, high = (np.log(factor).astype(np.float32) for factor in scale_jitter)
    base = image_size / tf.reduce_max(sides) if base is None else base
    scale = base * tf.exp(low + draws[0] * (high - low))
    return scale, draws[1:3] * (image_size - sides * scale), draws[3] < 0.5


def moved(boxes, scale, offset, flip, width):
    """Boxes (n, 4) of an image where its point (y, x) lies at (y, x)·scale + offset, then mirrored or not."""
    boxes = boxes * scale + tf.stack([offset[1], offset[0], offset[1], offset[0]])
    across = tf.stack([width - boxes[:, 2], boxes[:, 1], width - boxes[:, 0], boxes[:, 3]], 1)
    return tf.where(flip, across, boxes)


def moved_back(boxes, scale, offset, flip, width):
    """What `moved` has made of boxes of the image, as boxes of the image."""
    across = tf.stack([width - boxes[:, 2], boxes[:, 1], width - boxes[:, 0], boxes[:, 3]], 1)
    boxes = tf.where(flip, across, boxes)
    return (boxes - tf.stack([offset[1], offset[0], offset[1], offset[0]])) / scale


def mirrored(image, flip):
    """(H, W, …), its columns reversed where `flip` is true."""
    return tf.cond(flip, lambda: tf.reverse(image, [1]), lambda: image)


def square_image(image, image_size, scale, offset, flip):
    """(S, S, 3) float32: an image at a place `drawn_place` gives."""
    return mirrored(_in_square(image[None], image_size, scale, offset)[0], flip)


def square_values(values, image_size, scale, offset, flip, outside):
    """(S, S): what `square_image` does, for values (H, W) that cannot be mixed; `outside` where there are none."""
    rows, row_inside = _nearest(tf.shape(values)[0], image_size, scale, offset[0])
    columns, column_inside = _nearest(tf.shape(values)[1], image_size, scale, offset[1])
    square = tf.gather(tf.gather(values, rows), columns, axis=1)
    square = tf.where(row_inside[:, None] & column_inside[None], square, tf.cast(outside, values.dtype))
    return mirrored(tf.ensure_shape(square, [image_size, image_size]), flip)


def _nearest(length, image_size, scale, offset):
    """The pixel under each centre of a row of `image_size`, and whether there is one."""
    at = tf.floor((tf.range(image_size, dtype=tf.float32) + 0.5 - offset) / scale)
    inside = (at >= 0) & (at < tf.cast(length, tf.float32))
    return tf.cast(tf.clip_by_value(at, 0.0, tf.cast(length - 1, tf.float32)), tf.int32), inside


def short_side_scale(sides, short_side, max_long_side):
    """The factor () that brings the short side of (2,) H, W to a length, or the long one to its most."""
    sides = tf.cast(sides, tf.float32)
    scale = tf.cast(short_side, tf.float32) / tf.reduce_min(sides)
    return tf.minimum(scale, tf.cast(max_long_side, tf.float32) / tf.reduce_max(sides))


def scaled_sides(sides, scale):
    """(2,) int32 sides of a scaled image, to the nearest pixel; at least one."""
    return tf.maximum(tf.cast(tf.floor(tf.cast(sides, tf.float32) * scale + 0.5), tf.int32), 1)


def scaled_without_mean(image, scale, sides):
    """An image (H, W, 3) scaled, less the mean colour, with zeros below and right of it up to multiples of `STRIDE`.

    Args:
        sides: (2,) int32 of the scaled picture.
    """
    padded = -(-sides // STRIDE) * STRIDE
    placed = _translated(image[None], sides, scale, tf.zeros([2]))
    placed = tf.pad(placed, [[0, 0], [0, padded[0] - sides[0]], [0, padded[1] - sides[1]], [0, 0]])
    return tf.ensure_shape(placed[0], [None, None, 3])


def scaled_batch(images, short_side, max_long_side):
    """Images (B, H, W, 3) of one size, as at test: (B, H', W', 3) float32, sides multiples of `STRIDE`, and the scale.

    Args:
        short_side: px they are scaled to; none: they keep their size.
        max_long_side: px, with `short_side`.
    """
    sides = tf.shape(images)[1:3]
    scale = tf.constant(1.0) if short_side is None else short_side_scale(sides, short_side, max_long_side)
    frame = scaled_sides(sides, scale)
    below, right = tf.unstack(-frame % STRIDE)
    placed = tf.pad(_translated(images, frame, scale, tf.zeros([2])), [[0, 0], [0, below], [0, right], [0, 0]])
    return with_mean(placed), scale


def with_mean(images):
    """(B, H, W, 3) with the mean colour added: what was zero has that colour."""
    return tf.ensure_shape(_add_colour(images, tf.shape(images), PAD_COLOUR), [None, None, None, 3])


def _in_square(images, image_size, scale, offset):
    """Moves the point (y, x) to (y, x)·scale + offset in a square of mean colour, antialiased."""
    square = with_mean(_translated(images, [image_size, image_size], scale, offset))
    return tf.ensure_shape(square, [None, image_size, image_size, 3])


def _translated(images, size, scale, offset):
    """Scaled and moved images less the mean colour, in a frame of `size`."""
    return tf.raw_ops.ScaleAndTranslate(
        # The op leaves zeros where there is no image: with the mean taken off, that is the mean colour.
        images=_add_colour(images, tf.shape(images), [-value for value in PAD_COLOUR]),
        size=size,
        scale=tf.stack([scale, scale]),
        translation=offset,
        kernel_type="triangle",
        antialias=True,
    )


def _add_colour(images, shape, colour):
    """Adds a colour to every pixel; by rows, as a broadcast over just three channels is far slower."""
    rows = tf.reshape(tf.cast(images, tf.float32), [-1, shape[2] * 3])
    return tf.reshape(rows + tf.tile(tf.constant(colour, tf.float32), [shape[2]]), shape)
