"""From the bytes of a file to two views: the header first, then one decoding of what the views need of the image."""

from __future__ import annotations

import tensorflow as tf

from dupr_tf.data.views import draw_pair, make_pair

JPEG_FACTORS = (1, 2, 4, 8)  # by which a JPEG can be shrunk while it is decoded
MARGIN = 2  # px around a window: the decoder smooths colours with their neighbours
SURPLUS = 2  # pixels that must stay for each pixel of a view, so that the antialiased resize still decides


def read_pair(content, seed, size, views):
    """Two views of an image, as a dict (see `make_pair`).

    A JPEG tells its size in its header, so the crops are drawn first; only the window that holds both is decoded, and
    a crop many times larger than its view is decoded at a half, a quarter or an eighth of its size.

    Args:
        content: () string, a JPEG, PNG, BMP or GIF (its first frame).
        seed: (2,) int64 of the geometry.
        size: side of a view, px.
        views: `ViewsConfig`.
    """

    def draw(height, width):
        return draw_pair(height, width, seed, size, views)

    image, crops, flipped = tf.cond(
        tf.io.is_jpeg(content), lambda: _jpeg_window(content, size, draw), lambda: _whole_image(content, draw)
    )
    return make_pair(tf.ensure_shape(image, [None, None, 3]), crops, flipped, size, views.min_overlap)


def read_image(content):
    """(H, W, 3) uint8 RGB of a file's bytes; of an animation, the first frame. Raises what TensorFlow raises."""
    image = tf.io.decode_image(content, channels=3, expand_animations=False)
    return tf.ensure_shape(image, [None, None, 3])


def _whole_image(content, draw):
    image = read_image(content)
    return image, *draw(tf.shape(image)[0], tf.shape(image)[1])


def _jpeg_window(content, size, draw):
    """The window of a JPEG that holds both crops, the crops in it, and the flips."""
    sides = tf.image.extract_jpeg_shape(content)[:2]  # H, W
    crops, flipped = draw(sides[0], sides[1])
    branches = [lambda factor=factor: _decode_window(content, sides, crops, factor) for factor in JPEG_FACTORS]
    image, crops = tf.switch_case(_factor_index(crops, size), branches)
    return image, crops, flipped


def _factor_index(crops, size):
    """Index in `JPEG_FACTORS` of the largest factor that leaves `SURPLUS` pixels for each pixel of either view."""
    side = tf.reduce_min(crops[:, 2:] - crops[:, :2])
    return tf.reduce_sum(tf.cast([side >= SURPLUS * size * factor for factor in JPEG_FACTORS[1:]], tf.int32))


def _decode_window(content, sides, crops, factor):
    """Decodes at 1 / factor; the crops move to whole pixels of that, so that the boxes stay exact."""
    if factor > 1:
        crops = tf.cast(tf.round(crops / factor), tf.int32)
        sides = -(-sides // factor)
    origin = tf.maximum(tf.reduce_min(crops[:, :2], 0) - MARGIN, 0)  # (2,) y, x
    end = tf.minimum(tf.reduce_max(crops[:, 2:], 0) + MARGIN, sides)
    image = tf.image.decode_and_crop_jpeg(
        content,
        tf.concat([origin, end - origin], 0),
        channels=3,
        ratio=factor,
        dct_method="INTEGER_ACCURATE",  # Pillow's: the pixels are the same
    )
    return image, crops - tf.tile(origin, [2])
