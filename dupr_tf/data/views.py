"""Two views of one image: crops, resize, flips, and where they overlap (METHOD section 2). Pure tf, no state.

Every draw is a function of a seed, and the seed of (run seed, epoch, image): neither threads nor prefetching matter.
"""

from __future__ import annotations

import math

import tensorflow as tf

from dupr_tf.ops.boxes import intersect_views

CROP_TRIES = 10  # as torchvision's RandomResizedCrop, before it falls back to the centre


def make_pair(image, crops, flipped, size, min_overlap):
    """Cuts two views out of an image, and says where they overlap.

    Args:
        image: (H, W, 3) uint8 RGB.
        crops: (2, 4) int32 `(y1, x1, y2, x2)` of the two views in it.
        flipped: (2,) bool, the views to mirror.
        size: side of a view, px.
        min_overlap: least side of the overlap, px in each view.

    Returns:
        dict of `view_1`, `view_2` (size, size, 3) uint8, `boxes_1`, `boxes_2` (4,) float32, `flipped_1`, `flipped_2`
        () bool, `valid` () bool.
    """
    boxes_1, boxes_2, valid = intersect_views(crops[0], crops[1], flipped[0], flipped[1], size, min_overlap)
    return {
        "view_1": crop_and_flip(image, crops[0], flipped[0], size),
        "view_2": crop_and_flip(image, crops[1], flipped[1], size),
        "boxes_1": boxes_1,
        "boxes_2": boxes_2,
        "flipped_1": flipped[0],
        "flipped_2": flipped[1],
        "valid": valid,
    }


def draw_pair(height, width, seed, size, views):
    """Draws the geometry of two views whose crops overlap, if a few draws can bring that about.

    Args:
        height, width: () int32 of the image.
        seed: (2,) int64.
        size: side of a view, px.
        views: `ViewsConfig`: `crop_area`, `crop_aspect` and `min_overlap`; of `draws` pairs the first valid one is
            taken, the first of all where none is.

    Returns:
        crops: (2, 4) int32 `(y1, x1, y2, x2)` in the image.
        flipped: (2,) bool.
    """
    u = tf.random.stateless_uniform([views.draws, 2, CROP_TRIES + 1, 4], seed=seed)
    crops = draw_crops(u, height, width, views.crop_area, views.crop_aspect)  # (draws, 2, 4)
    flipped = u[:, :, CROP_TRIES, 2] < 0.5  # (draws, 2)
    *_, valid = intersect_views(crops[:, 0], crops[:, 1], flipped[:, 0], flipped[:, 1], size, views.min_overlap)
    taken = tf.argmax(tf.cast(valid, tf.int32))  # the first valid, or 0
    return crops[taken], flipped[taken]


def draw_crops(u, height, width, crop_area, crop_aspect):
    """Random resized crops, torchvision's definition: the first of ten tries that fits, else the central crop.

    Args:
        u: (..., CROP_TRIES + 1, 4) uniform numbers in [0, 1); the last row of tries places the crop.
        height, width: () int32 of the image.
        crop_area, crop_aspect: (min, max), see `make_pair`.

    Returns:
        (..., 4) int32 crops `(y1, x1, y2, x2)`.
    """
    height, width = tf.cast(height, tf.float32), tf.cast(width, tf.float32)
    tries = u[..., :CROP_TRIES, :]
    area = height * width * (crop_area[0] + (crop_area[1] - crop_area[0]) * tries[..., 0])
    low, high = math.log(crop_aspect[0]), math.log(crop_aspect[1])
    aspect = tf.exp(low + (high - low) * tries[..., 1])
    w, h = tf.round(tf.sqrt(area * aspect)), tf.round(tf.sqrt(area / aspect))  # (..., tries)
    fits = (w >= 1) & (w <= width) & (h >= 1) & (h <= height)
    first = tf.argmax(tf.cast(fits, tf.int32), axis=-1)
    w, h = (tf.gather(side, first, batch_dims=first.shape.rank) for side in (w, h))
    any_fits = tf.reduce_any(fits, axis=-1)
    centre_h, centre_w = _largest_allowed(height, width, crop_aspect)
    h, w = tf.where(any_fits, h, centre_h), tf.where(any_fits, w, centre_w)
    y1 = tf.where(any_fits, tf.floor(u[..., CROP_TRIES, 0] * (height - h + 1)), tf.floor((height - h) / 2))
    x1 = tf.where(any_fits, tf.floor(u[..., CROP_TRIES, 1] * (width - w + 1)), tf.floor((width - w) / 2))
    y1, x1 = tf.minimum(y1, height - h), tf.minimum(x1, width - w)
    return tf.cast(tf.stack([y1, x1, y1 + h, x1 + w], axis=-1), tf.int32)


def _largest_allowed(height, width, crop_aspect):
    """Sides of the largest crop whose aspect is allowed."""
    aspect = width / height
    h = tf.where(aspect < crop_aspect[0], tf.round(width / crop_aspect[0]), height)
    w = tf.where(aspect > crop_aspect[1], tf.round(height * crop_aspect[1]), width)
    return tf.maximum(h, 1.0), tf.maximum(w, 1.0)


def crop_and_flip(image, crop, flipped, size):
    """Crops first, then resizes with antialiasing as Pillow does, then mirrors. Returns (size, size, 3) uint8."""
    y1, x1, y2, x2 = tf.unstack(crop)
    # What `tf.image.resize` ends in, without the dozen small operations it puts around it.
    view = tf.raw_ops.ScaleAndTranslate(
        images=image[None, y1:y2, x1:x2],
        size=[size, size],
        scale=float(size) / tf.cast(tf.stack([y2 - y1, x2 - x1]), tf.float32),
        translation=[0.0, 0.0],
        kernel_type="triangle",
        antialias=True,
    )[0]
    view = tf.cast(view + 0.5, tf.uint8)  # averages of 0–255 stay there
    return tf.cond(flipped, lambda: tf.reverse(view, [1]), lambda: view)
