"""Makes two views of one image: crops, resize, flips, and the region they share (docs/method.md, Views).

It uses NumPy and has no state. Boxes and crops are `(y1, x1, y2, x2)`. Most functions take the images of a block at
once. Each row of the result depends only on its own row of the input.
"""

from __future__ import annotations

import math

import numpy as np

from dupr_tf.data.images.resize import resize

CROP_TRIES = 10  # tries of torchvision's RandomResizedCrop before it falls back to the centre
DRAWS = CROP_TRIES + 1, 4  # shape of the uniform numbers for a crop and its flip


def uniform(seed: int, stream: int, number: int, shape: tuple[int, ...]) -> np.ndarray:
    """Draws uniform numbers in [0, 1), float64. They depend on the arguments only, on any machine and in any thread.

    Args:
        seed: seed of the run, 0 to 2**31 - 1.
        stream: number such as the epoch, 0 to 2**32 - 1. Two streams share no number.
        number: number such as that of the image, 0 to 2**64 - 1.
        shape: shape of the result.
    """
    return np.random.Generator(np.random.Philox(key=[(seed << 32) + stream, number])).random(shape)


def draw_pairs(u, sides, size, views, redraw=True):
    """Draws the crops and flips of pairs of views.

    Args:
        u: (n, views.draws, 2, *DRAWS) uniform numbers.
        sides: (n, 2) height and width of the images, px.
        size: side of a view, px.
        views: `ViewsConfig`: `crop_area`, `crop_aspect`, `min_overlap`, `draws`.
        redraw: whether to take the first of the `draws` pairs that overlaps enough. If none does, or if false, the
            first pair is taken.

    Returns:
        crops: (n, 2, 4) int64 `(y1, x1, y2, x2)` in the images.
        flipped: (n, 2) bool.
    """
    sides = np.asarray(sides, np.float64)[:, None, None, :]  # axes for draws and views
    crops = draw_crops(u, sides[..., 0], sides[..., 1], views.crop_area, views.crop_aspect)  # (n, draws, 2, 4)
    flipped = u[..., CROP_TRIES, 2] < 0.5  # (n, draws, 2)
    rows = np.arange(len(u))
    chosen = np.zeros(len(u), np.int64)
    if redraw:
        *_, valid = intersect_views(
            crops[:, :, 0], crops[:, :, 1], flipped[:, :, 0], flipped[:, :, 1], size, views.min_overlap
        )
        chosen = valid.argmax(1)  # the first valid one, or 0
    return crops[rows, chosen], flipped[rows, chosen]


def draw_crops(u, height, width, crop_area, crop_aspect):
    """Draws random resized crops as torchvision does: the first of ten tries that fits, else the central crop.

    Args:
        u: (..., *DRAWS) uniform numbers in [0, 1). The last row places the crop.
        height, width: of the images, px; broadcast against `...`.
        crop_area: (min, max) share of the image's area.
        crop_aspect: (min, max) of width / height, drawn log-uniformly.

    Returns:
        (..., 4) int64 crops `(y1, x1, y2, x2)`.
    """
    height, width = np.asarray(height, np.float64), np.asarray(width, np.float64)
    tries = u[..., :CROP_TRIES, :]
    area = (height * width)[..., None] * (crop_area[0] + (crop_area[1] - crop_area[0]) * tries[..., 0])
    low, high = math.log(crop_aspect[0]), math.log(crop_aspect[1])
    aspect = np.exp(low + (high - low) * tries[..., 1])
    w, h = np.rint(np.sqrt(area * aspect)), np.rint(np.sqrt(area / aspect))  # (..., tries)
    fits = (w >= 1) & (w <= width[..., None]) & (h >= 1) & (h <= height[..., None])
    first, any_fits = fits.argmax(-1)[..., None], fits.any(-1)
    w, h = (np.take_along_axis(side, first, -1)[..., 0] for side in (w, h))
    centre_h, centre_w = _largest_allowed(height, width, crop_aspect)
    h, w = np.where(any_fits, h, centre_h), np.where(any_fits, w, centre_w)
    place_y, place_x = u[..., CROP_TRIES, 0], u[..., CROP_TRIES, 1]
    y = np.where(any_fits, np.floor(place_y * (height - h + 1)), np.floor((height - h) / 2))
    x = np.where(any_fits, np.floor(place_x * (width - w + 1)), np.floor((width - w) / 2))
    return np.stack([y, x, y + h, x + w], -1).astype(np.int64)


def _largest_allowed(height, width, crop_aspect):
    """Returns the sides of the largest crop with an allowed aspect."""
    aspect = width / height
    h = np.where(aspect < crop_aspect[0], np.rint(width / crop_aspect[0]), height)
    w = np.where(aspect > crop_aspect[1], np.rint(height * crop_aspect[1]), width)
    return np.maximum(h, 1), np.maximum(w, 1)


def intersect_views(crop_1, crop_2, flipped_1, flipped_2, view_size, min_overlap=32.0):
    """Computes the overlap of two crops, as a box in each view (DUPR section 3.2: B1 and B2).

    Args:
        crop_1: (..., 4) crop of view 1, `(y1, x1, y2, x2)` in pixels of the source image.
        crop_2: (..., 4) crop of view 2, in the same form.
        flipped_1: (...) bool, whether view 1 is mirrored left-right after cropping.
        flipped_2: (...) bool, the same for view 2.
        view_size: side of both views, px.
        min_overlap: least side of the overlap, px in each view, for the pair to be valid.

    Returns:
        boxes_1, boxes_2: (..., 4) float32 `(y1, x1, y2, x2)` in pixels of each view, within the view. An empty overlap
            gives the whole view, so that no later code gets an empty box.
        valid: (...) bool, whether the overlap is at least `min_overlap` high and wide in both views.
    """
    crop_1, crop_2 = np.asarray(crop_1, np.float64), np.asarray(crop_2, np.float64)
    overlap = np.concatenate(
        [np.maximum(crop_1[..., :2], crop_2[..., :2]), np.minimum(crop_1[..., 2:], crop_2[..., 2:])], -1
    )
    boxes_1 = box_in_view(overlap, crop_1, flipped_1, view_size)
    boxes_2 = box_in_view(overlap, crop_2, flipped_2, view_size)
    sides = np.concatenate([boxes_1[..., 2:] - boxes_1[..., :2], boxes_2[..., 2:] - boxes_2[..., :2]], -1)
    # A small tolerance: 32 px of overlap must not fail because the division rounds.
    valid = (sides >= min_overlap - 1e-3).all(-1)
    exists = (sides > 0).all(-1)[..., None]
    whole = np.array([0.0, 0.0, view_size, view_size])
    return *(
        np.where(exists, boxes, whole).clip(0, view_size).astype(np.float32) for boxes in (boxes_1, boxes_2)
    ), valid


def box_in_view(box, crop, flipped, view_size):
    """Maps a box of the source image into a view of it.

    Args:
        box: (..., 4) `(y1, x1, y2, x2)` in pixels of the source image.
        crop: (..., 4) the view's crop, in the same form.
        flipped: (...) bool, whether the view is mirrored left-right.
        view_size: side of the view, px.

    Returns:
        (..., 4) float64 box in pixels of the view. A flip exchanges its left and right sides.
    """
    origin, extent = crop[..., :2], crop[..., 2:] - crop[..., :2]
    first, last = ((box[..., ends] - origin) * view_size / extent for ends in (slice(0, 2), slice(2, 4)))
    left = np.where(flipped, view_size - last[..., 1], first[..., 1])
    right = np.where(flipped, view_size - first[..., 1], last[..., 1])
    return np.stack([first[..., 0], left, last[..., 0], right], -1)


def cut_view(image, crop, flipped, size):
    """Crops an image, resizes it with antialiasing as Pillow does, and mirrors it.

    Args:
        image: (H, W, 3) uint8 RGB.
        crop: (4,) int `(y1, x1, y2, x2)` in it.
        flipped: whether the view is mirrored left-right.
        size: side of the view, px.

    Returns:
        (size, size, 3) uint8.
    """
    y1, x1, y2, x2 = crop
    view = resize(image[y1:y2, x1:x2], size, size)
    return _mirror(view) if flipped else view


def _mirror(image):
    """Mirrors (H, W, 3) left-right, channel by channel: a fifth of the time of NumPy's copy of all three."""
    mirrored = np.empty_like(image)
    for channel in range(3):
        mirrored[..., channel] = image[:, ::-1, channel]
    return mirrored
