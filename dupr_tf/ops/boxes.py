"""Geometry of view pairs: from two crops of one image to the same region in both views."""

from __future__ import annotations

import tensorflow as tf


def intersect_views(crop_1, crop_2, flipped_1, flipped_2, view_size, min_overlap=32.0):
    """The overlap of two crops, as a box in each view (DUPR section 3.2: B1 and B2).

    Args:
        crop_1: (..., 4) crop of view 1, `(y1, x1, y2, x2)` in pixels of the source image.
        crop_2: (..., 4) crop of view 2, likewise.
        flipped_1: (...) bool, view 1 is mirrored left-right after cropping.
        flipped_2: (...) bool.
        view_size: side of both views, px.
        min_overlap: least side of the overlap, px in each view, for the pair to be valid.

    Returns:
        boxes_1, boxes_2: (..., 4) float32 `(y1, x1, y2, x2)` in pixels of each view; an empty overlap gives the whole
            view, so that nothing downstream meets a degenerate box.
        valid: (...) bool, the overlap is at least `min_overlap` high and wide in both views.
    """
    crop_1, crop_2 = tf.cast(crop_1, tf.float32), tf.cast(crop_2, tf.float32)
    overlap = tf.concat(
        [tf.maximum(crop_1[..., :2], crop_2[..., :2]), tf.minimum(crop_1[..., 2:], crop_2[..., 2:])], axis=-1
    )
    boxes_1 = box_in_view(overlap, crop_1, flipped_1, view_size)
    boxes_2 = box_in_view(overlap, crop_2, flipped_2, view_size)
    # A hair of slack: 32 px of overlap must not fail for a rounding error of the division.
    least = tf.cast(min_overlap, tf.float32) - 1e-3
    sides = tf.concat([boxes_1[..., 2:] - boxes_1[..., :2], boxes_2[..., 2:] - boxes_2[..., :2]], axis=-1)
    valid = tf.reduce_all(sides >= least, axis=-1)
    size = tf.cast(view_size, tf.float32)
    whole = tf.stack([0.0, 0.0, size, size])
    exists = tf.reduce_all(sides > 0.0, axis=-1)[..., None]
    return tf.where(exists, boxes_1, whole), tf.where(exists, boxes_2, whole), valid


def box_in_view(box, crop, flipped, view_size):
    """Maps a box of the source image into a view of it.

    Args:
        box: (..., 4) `(y1, x1, y2, x2)` in pixels of the source image.
        crop: (..., 4) the view's crop, likewise.
        flipped: (...) bool, the view is mirrored left-right.
        view_size: side of the view, px.

    Returns:
        (..., 4) float32 box in pixels of the view; a flip exchanges its left and right ends.
    """
    size = tf.cast(view_size, tf.float32)
    origin, extent = crop[..., :2], crop[..., 2:] - crop[..., :2]
    scale = size / extent
    y1, x1 = tf.unstack((box[..., :2] - origin) * scale, axis=-1)
    y2, x2 = tf.unstack((box[..., 2:] - origin) * scale, axis=-1)
    left, right = tf.where(flipped, size - x2, x1), tf.where(flipped, size - x1, x2)
    return tf.stack([y1, left, y2, right], axis=-1)
