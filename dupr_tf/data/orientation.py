"""EXIF's orientation in TensorFlow's graph: images are cropped and boxes are drawn as if the upright image were stored.

An orientation is () int32, 1 to 8: rows and columns are swapped from 5 on, and then mirrored, vertically in
`FLIPPED_Y`, horizontally in `FLIPPED_X`, to become upright.
"""

from __future__ import annotations

import numpy as np
import tensorflow as tf

from dupr_tf.data.pillow_images import EXIF_REACH, as_bytes, exif_orientation

FLIPPED_Y, FLIPPED_X = (3, 4, 7, 8), (2, 3, 6, 7)
# Bytes that look like an orientation other than 1 in an EXIF block, of either byte order. Most photographs have an
# EXIF block, few are turned: only those few are looked at in Python.
TURNED = (
    r"\C*?(?:Exif\x00\x00|eXIf)(?:II\*\x00\C*?\x12\x01[\x03\x04]\x00\x01\x00\x00\x00[\x02-\x08]\x00"
    r"|MM\x00\*\C*?\x01\x12\x00(?:\x03\x00\x00\x00\x01|\x04\x00\x00\x00\x01\x00\x00)\x00[\x02-\x08])\C*"
)


def looks_turned(content):
    """() bool: whether the bytes of a JPEG or PNG may have another orientation than 1."""
    return tf.strings.regex_full_match(tf.strings.substr(content, 0, EXIF_REACH), TURNED)


def orientation(content):
    """() int32 orientation of the bytes of a JPEG or PNG."""

    def read():
        found = tf.numpy_function(
            lambda c: np.int32(exif_orientation(as_bytes(c))), [content], tf.int32, stateful=False
        )
        return tf.ensure_shape(found, [])

    return tf.cond(looks_turned(content), read, lambda: tf.constant(1))


def upright(image, turn):
    """The upright image (H, W, 3) of a stored one and its orientation."""

    def turned():
        swapped = tf.cond(turn >= 5, lambda: tf.transpose(image, [1, 0, 2]), lambda: image)
        return tf.reverse(swapped, tf.where(_flips(turn))[:, 0])

    return tf.cond(turn > 1, turned, lambda: image)


def upright_sides(sides, turn):
    """(2,) height and width of the upright image from those of the stored one. It undoes itself."""
    return tf.cond(turn >= 5, lambda: sides[::-1], lambda: sides)


def stored_box(box, sides, turn):
    """Where a box of the upright image lies in the stored one.

    Args:
        box: (4,) int32 `(y1, x1, y2, x2)`.
        sides: (2,) int32 height and width of the upright image.
        turn: () int32 orientation.
    """

    def turned():
        first, last = box[:2], box[2:]
        flips = _flips(turn)
        ends = tf.where(flips, sides - last, first), tf.where(flips, sides - first, last)
        return tf.concat([upright_sides(end, turn) for end in ends], 0)

    return tf.cond(turn > 1, turned, lambda: box)


def _flips(turn):
    """(2,) bool: whether rows, and columns, are mirrored."""
    return tf.stack([tf.reduce_any(tf.equal(turn, list(group))) for group in (FLIPPED_Y, FLIPPED_X)])
