"""From the bytes of a file to two views: the header first, then one decoding of what the views need of the image.

What a file is, its bytes say and not its name. Every image is seen upright, in RGB, and refused from its header where
it has too many pixels. What cannot be used raises inside TensorFlow; `bad_images.unusable_reason` says why.
"""

from __future__ import annotations

import numpy as np
import tensorflow as tf

from dupr_tf.data import pillow_images
from dupr_tf.data.orientation import orientation, stored_box, upright, upright_sides
from dupr_tf.data.views import draw_pair, make_pair

JPEG_FACTORS = (1, 2, 4, 8)  # by which a JPEG can be shrunk while it is decoded
JPEG_END = b"\xff\xd9"
DCT = "INTEGER_ACCURATE"  # Pillow's: the pixels are the same
MARGIN = 2  # px around a window: the decoder smooths colours with their neighbours
SURPLUS = 2  # pixels that must stay for each pixel of a view, so that the antialiased resize still decides
EMPTY = np.zeros((0, 0, 3), np.uint8)
MAX_PIXELS = 100_000_000  # the default of data.max_pixels; 300 MB once decoded


def read_pair(content, seed, size, views, max_pixels=MAX_PIXELS):
    """Two views of an image, as a dict (see `make_pair`).

    A JPEG tells its size in its header, so the crops are drawn first; only the window that holds both is decoded, and
    a crop many times larger than its view is decoded at a half, a quarter or an eighth of its size.

    Args:
        content: () string, a file as `read_image` takes it.
        seed: (2,) int64 of the geometry.
        size: side of a view, px.
        views: `ViewsConfig`.
        max_pixels: an image of more is refused.
    """

    content, turn = tf.convert_to_tensor(content, tf.string), orientation(content)
    # A window says nothing of the rows below it: a JPEG without its end is decoded whole, to see whether it is cut.
    end = tf.strings.substr(content, tf.maximum(tf.strings.length(content) - len(JPEG_END), 0), len(JPEG_END))
    in_part = tf.io.is_jpeg(content) & tf.equal(end, JPEG_END)
    stored, whole = tf.cond(
        in_part, lambda: (allowed_jpeg(content, max_pixels), EMPTY), lambda: _decoded(content, max_pixels)
    )
    sides = upright_sides(stored, turn)
    crops, flipped = draw_pair(sides[0], sides[1], seed, size, views)
    way = tf.where(in_part, _factor_index(crops, size), len(JPEG_FACTORS))
    image, crops = _window(content, whole, way, sides, turn, crops)
    return make_pair(tf.ensure_shape(image, [None, None, 3]), crops, flipped, size, views.min_overlap)


def read_image(content, max_pixels=MAX_PIXELS):
    """The whole of an image, upright: EXIF's orientation is applied, alpha dropped, 16 bits become 8.

    Args:
        content: () string, the bytes of a JPEG, PNG, GIF, BMP, WebP or TIFF; of an animation, the first frame counts.
        max_pixels: an image of more is refused from its header.

    Returns:
        (H, W, 3) uint8 RGB.

    Raises:
        tf.errors.InvalidArgumentError: the bytes cannot be used.
    """
    content = tf.convert_to_tensor(content, tf.string)  # as plain bytes, NumPy would strip zeros from their end
    return tf.ensure_shape(upright(_decoded(content, max_pixels)[1], orientation(content)), [None, None, 3])


def _decoded(content, max_pixels):
    """Sides and pixels of a whole image; a JPEG's or PNG's as they are stored."""

    def jpeg():
        with tf.control_dependencies([allowed_jpeg(content, max_pixels)]):
            return tf.io.decode_jpeg(content, channels=3, dct_method=DCT)

    def png():
        sides = tf.io.decode_raw(tf.strings.substr(content, 16, 8), tf.int32, little_endian=False)  # of IHDR: W, H
        with tf.control_dependencies([_allowed(sides[::-1], max_pixels)]):
            return tf.io.decode_png(content, channels=3)

    def other():
        image, reason = tf.numpy_function(
            lambda c: pillow_images.decode(pillow_images.as_bytes(c), max_pixels),
            [content],
            [tf.uint8, tf.string],
            stateful=False,
        )
        with tf.control_dependencies([_assert(tf.equal(reason, ""), "refused by Pillow", reason)]):
            return tf.ensure_shape(tf.identity(image), [None, None, 3])

    is_png = tf.equal(tf.strings.substr(content, 0, len(pillow_images.PNG)), pillow_images.PNG)
    image = tf.switch_case(tf.where(tf.io.is_jpeg(content), 0, tf.where(is_png, 1, 2)), [jpeg, png, other])
    return tf.shape(image)[:2], image


def allowed_jpeg(content, max_pixels):
    """The sides (2,) H, W of a JPEG; raises `tf.errors.InvalidArgumentError` where they make too many pixels."""
    return _allowed(tf.image.extract_jpeg_shape(content)[:2], max_pixels)


def _allowed(sides, max_pixels):
    """The sides (2,) H, W of an image; fails where they make too many pixels, before anything is decoded."""
    few = tf.reduce_prod(tf.cast(sides, tf.int64)) <= max_pixels
    with tf.control_dependencies([_assert(few, "more pixels than data.max_pixels", sides)]):
        return tf.identity(sides)


def _assert(condition, message, data):
    """`tf.debugging.Assert` without the branch it puts around the operation: every image would pay for that."""
    return tf.raw_ops.Assert(condition=condition, data=[message, data])


def _factor_index(crops, size):
    """Index in `JPEG_FACTORS` of the largest factor that leaves `SURPLUS` pixels for each pixel of either view."""
    side = tf.reduce_min(crops[:, 2:] - crops[:, :2])
    return tf.reduce_sum(tf.cast([side >= SURPLUS * size * factor for factor in JPEG_FACTORS[1:]], tf.int32))


def _window(content, whole, way, sides, turn, crops):
    """The upright part of an image that holds both crops, and the crops in it.

    Args:
        content: () string, the file.
        whole: (H, W, 3) its pixels as stored, where it was decoded whole.
        way: () int32 index in `JPEG_FACTORS` of the factor to decode it by, or one more: take it from `whole`.
        sides: (2,) int32 of the upright image.
        turn: () int32 orientation.
        crops: (2, 4) int32; they move to whole pixels of what is decoded, so that the boxes stay exact.
    """
    factor = tf.gather((*JPEG_FACTORS, 1), way)
    crops = tf.cast(tf.round(crops / factor), tf.int32)
    sides = -(-sides // factor)
    origin = tf.maximum(tf.reduce_min(crops[:, :2], 0) - MARGIN, 0)  # (2,) y, x
    end = tf.minimum(tf.reduce_max(crops[:, 2:], 0) + MARGIN, sides)
    box = tf.concat([origin, end], 0)

    def ways(y1, x1, y2, x2):
        window = tf.stack([y1, x1, y2 - y1, x2 - x1])
        jpeg = [
            lambda ratio=ratio: tf.image.decode_and_crop_jpeg(content, window, channels=3, ratio=ratio, dct_method=DCT)
            for ratio in JPEG_FACTORS
        ]
        return [*jpeg, lambda: whole[y1:y2, x1:x2]]

    def turned():
        return upright(tf.switch_case(way, ways(*tf.unstack(stored_box(box, sides, turn)))), turn)

    # Flat, with the few turned images last: branches not taken cost the many ordinary photographs time as well.
    image = tf.switch_case(tf.where(turn > 1, len(JPEG_FACTORS) + 1, way), [*ways(*tf.unstack(box)), turned])
    return image, crops - tf.tile(origin, [2])
