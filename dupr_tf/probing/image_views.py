"""Reads images for probes in order, decoded and resized as in training. Imports no TensorFlow."""

from __future__ import annotations

import itertools
import logging
import operator
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from dupr_tf.config import DataConfig
from dupr_tf.data.detection import read_image
from dupr_tf.data.images.decode import Unusable
from dupr_tf.data.reader import Block, Reader
from dupr_tf.data.views import CROP_TRIES, cut_view, draw_crops
from dupr_tf.errors import UserError
from dupr_tf.text import escape

log = logging.getLogger(__name__)
CENTRE_SHARE = 224 / 256  # share of the short side: the evaluation crop of ImageNet's protocols
ASPECTS = (3 / 4, 4 / 3)


def centre_view(image: np.ndarray, size: int) -> np.ndarray:
    """Returns the central square of an image, 7/8 of its short side, as (size, size, 3) uint8."""
    sides = np.array(image.shape[:2])
    side = round(sides.min() * CENTRE_SHARE)
    corner = (sides - side) // 2
    return cut_view(image, (*corner, *(corner + side)), False, size)


def whole_view(image: np.ndarray, size: int) -> np.ndarray:
    """Squeezes a whole image into (size, size, 3) uint8."""
    return cut_view(image, (0, 0, *image.shape[:2]), False, size)


def random_view(image: np.ndarray, size: int, u: np.ndarray, crop_area: tuple[float, float]) -> np.ndarray:
    """Makes a random resized crop, mirrored half of the time, as (size, size, 3) uint8; `u` (*DRAWS) is uniform."""
    crop = draw_crops(u, *image.shape[:2], crop_area, ASPECTS)
    return cut_view(image, crop, u[CROP_TRIES, 2] < 0.5, size)


def read_each(
    paths: Sequence[str], make: Callable, batch_size: int, section: DataConfig | None = None
) -> Iterator[tuple[np.ndarray, Any]]:
    """Yields batches of (indices (b,), the results of `make(index, image)`); unreadable images are skipped.

    Args:
        paths: image files.
        make: (index, (H, W, 3) uint8) -> array or dict of arrays. It is called in threads, in any order.
        batch_size: images per batch; only the last batch has fewer.
        section: settings for decoding images, `max_pixels` and `depth`. Default: those of the schema.

    Raises:
        UserError: no image could be read.
    """
    unreadable: dict[int, str] = {}
    one_image = _OneImage(paths, make, section or DataConfig())
    reader = Reader(
        one_image, 0, len(paths), {}, threads=None, on_bad=unreadable.__setitem__, merge=operator.itemgetter(0)
    )
    with reader:
        readable = filter(None, reader)
        while rows := list(itertools.islice(readable, batch_size)):
            yield np.array([row["index"] for row in rows]), _stack([row["made"] for row in rows])
    if unreadable:
        _tell_unreadable(paths, unreadable)


class _OneImage:
    """Makes blocks of one image: the result of `make`, or no rows if the image cannot be used."""

    def __init__(self, paths: Sequence[str], make: Callable, section: DataConfig):
        self.paths, self.make, self.section = paths, make, section

    def __call__(self, index: int) -> Block:
        try:
            image = read_image(self.paths[index], self.section)
        except Unusable as error:
            return Block({}, ((index, str(error)),))
        return Block({"index": index, "made": self.make(index, image)})


def _stack(rows: list):
    return (
        {name: np.stack([row[name] for row in rows]) for name in rows[0]}
        if isinstance(rows[0], dict)
        else np.stack(rows)
    )


def _tell_unreadable(paths: Sequence[str], unreadable: dict[int, str]) -> None:
    first, reason = next(iter(unreadable.items()))
    named = f"{escape(str(paths[first]))} ({escape(reason)})"
    if len(unreadable) == len(paths):
        raise UserError("data", f"None of the {len(paths)} images can be read, such as {named}.", "Use other images.")
    log.warning("%d of %d images cannot be read: %s", len(unreadable), len(paths), named)


def spread(paths: Sequence[str], count: int) -> list[str]:
    """Selects at most `count` of the paths, evenly spread."""
    chosen = np.linspace(0, len(paths) - 1, min(count, len(paths))).round().astype(int)
    return [paths[i] for i in chosen]
