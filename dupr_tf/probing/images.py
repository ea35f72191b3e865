"""Images as a probe sees them, read like those of training: upright, antialiased, in order."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import tensorflow as tf

from dupr_tf.data.bad_images import unusable_reason
from dupr_tf.data.decoding import MAX_PIXELS, read_image
from dupr_tf.data.image_source import as_source, as_written
from dupr_tf.data.views import CROP_TRIES, crop_and_flip, draw_crops
from dupr_tf.errors import UserError
from dupr_tf.text import escape

log = logging.getLogger(__name__)
CENTRE_SHARE = 224 / 256  # of the short side: the evaluation crop of ImageNet's protocols
ASPECTS = (3 / 4, 4 / 3)
FLIP_PLACE = (CROP_TRIES, 2)  # the number of a draw that no crop uses


def centre_view(content, size):
    """The central square of an image, 7/8 of its short side, as (size, size, 3) uint8."""
    image = read_image(content)
    sides = tf.shape(image)[:2]
    side = tf.cast(tf.round(tf.cast(tf.reduce_min(sides), tf.float32) * CENTRE_SHARE), tf.int32)
    corner = (sides - side) // 2
    return crop_and_flip(image, tf.concat([corner, corner + side], 0), tf.constant(False), size)


def whole_view(content, size):
    """All of an image, squeezed into (size, size, 3) uint8."""
    image = read_image(content)
    return crop_and_flip(image, tf.concat([[0, 0], tf.shape(image)[:2]], 0), tf.constant(False), size)


def random_view(content, size, seed, crop_area):
    """A random resized crop, mirrored half of the time, as (size, size, 3) uint8; a function of `seed` (2,)."""
    image = read_image(content)
    u = tf.random.stateless_uniform([CROP_TRIES + 1, 4], seed=seed)
    crop = draw_crops(u, tf.shape(image)[0], tf.shape(image)[1], crop_area, ASPECTS)
    return crop_and_flip(image, crop, u[FLIP_PLACE] < 0.5, size)


def read_each(paths: Sequence[str], make: Callable, batch_size: int) -> Iterator[tuple[np.ndarray, object]]:
    """Batches of (indices (b,), what `make(index, content)` returns for each); unreadable images are passed over.

    Args:
        paths: image files.
        make: (() int64, () string) -> tensor or dict of tensors.
        batch_size: at most.

    Raises:
        UserError: not one of them could be read.
    """
    source, read = as_source(paths), 0
    samples = tf.data.Dataset.range(len(source)).map(
        as_written(lambda index: (index, make(index, source.read(index)))),
        num_parallel_calls=tf.data.AUTOTUNE,
        deterministic=True,
    )
    seen = []
    for indices, batch in samples.ignore_errors().batch(batch_size).prefetch(1):
        seen.append(indices.numpy())
        read += len(seen[-1])
        yield seen[-1], batch
    if read < len(paths):
        _tell_missing(paths, np.concatenate(seen) if seen else np.zeros(0, np.int64))


def _tell_missing(paths, seen) -> None:
    missing = sorted({*range(len(paths))} - set(seen.tolist()))
    reason = unusable_reason(paths[missing[0]], MAX_PIXELS) or "it decodes, but not into a view"
    if not len(seen):
        problem = f"None of the {len(paths)} images can be read, such as {escape(str(paths[missing[0]]))} ({reason})."
        raise UserError("data", problem, "Use other images.")
    log.warning("%d of %d images cannot be read: %s (%s)", len(missing), len(paths), paths[missing[0]], reason)


def spread(paths: Sequence[str], count: int) -> list[str]:
    """At most `count` of the paths, evenly spread over them."""
    chosen = np.linspace(0, len(paths) - 1, min(count, len(paths))).round().astype(int)
    return [paths[i] for i in chosen]
