"""Measures the sizes of a folder's images from headers, and the overlap of views from the draws of training."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Iterator

import numpy as np

from dupr_tf.config import STRIDE_OF, Config
from dupr_tf.data.images.decode import Unusable, read_header, upright_size
from dupr_tf.data.images.source import Files, ImageSource
from dupr_tf.data.views import DRAWS, draw_pairs, intersect_views, uniform
from dupr_tf.errors import UserError

MOST_FILES, MOST_PACKED = 2000, 200  # number of headers to read; packed images must be read whole
PAIRS = 2000  # pairs drawn


@dataclasses.dataclass(frozen=True)
class Sizes:
    """Holds the upright sizes of images spread evenly over a source."""

    count: int  # images in the source
    looked: int
    sizes: np.ndarray  # (n, 2) height, width, px, of the readable ones
    unreadable: list[str]  # names

    @property
    def short_sides(self) -> np.ndarray:
        return self.sizes.min(1)

    @property
    def aspects(self) -> np.ndarray:
        """Returns long side over short side."""
        return self.sizes.max(1) / self.sizes.min(1)


@dataclasses.dataclass(frozen=True)
class ViewOverlap:
    """Holds the geometry of a config's views on images of some sizes."""

    pairs: int
    first: float  # share of pairs whose first draw overlaps enough for a patch loss
    valid: float  # share after `views.draws` draws
    sides: np.ndarray  # (n,) px, the overlap's shorter side in either view, of the valid pairs
    enlarged: float  # share of views cut from fewer pixels than they have
    support: dict[str, float]  # {level with a patch loss: median side of a patch, in cells of its feature map}


def look_at_sizes(source: ImageSource) -> Sizes:
    """Reads the sizes of images spread evenly over a source."""
    most = MOST_FILES if isinstance(source, Files) else MOST_PACKED
    chosen = np.unique(np.linspace(0, len(source) - 1, min(most, len(source))).round().astype(int))
    sizes, unreadable = [], []
    for index, size in zip(chosen, _sizes(source, chosen), strict=True):
        if size is None:
            unreadable.append(source.name(int(index)))
        else:
            sizes.append(size)
    return Sizes(len(source), len(chosen), np.asarray(sizes, np.int64).reshape(-1, 2), unreadable)


def _sizes(source: ImageSource, chosen) -> Iterator[tuple[int, int] | None]:
    for index in chosen:
        try:
            if isinstance(source, Files):
                yield upright_size(source.paths[index])
            else:
                yield read_header(source.read(int(index)), sys.maxsize)[1:3]
        except (Unusable, UserError):
            yield None


def simulate_overlap(sizes: np.ndarray, config: Config, pairs: int = PAIRS) -> ViewOverlap:
    """Draws pairs of views as training does and measures their geometry; no image is read.

    Args:
        sizes: (n, 2) height, width, px.
        config: config whose `data.image_size`, `views` and patch levels are read.
        pairs: number of pairs. The sizes are used in turn.
    """
    size, views = config.data.image_size, config.views
    shapes = sizes[np.arange(pairs) % len(sizes)]
    u = np.stack([uniform(config.train.seed, 0, number, (views.draws, 2, *DRAWS)) for number in range(pairs)])

    def overlap(redraw):
        crops, flipped = draw_pairs(u, shapes, size, views, redraw)
        return crops, *intersect_views(*crops.swapaxes(0, 1), *flipped.T, size, views.min_overlap)

    *_, first = overlap(redraw=False)
    crops, *boxes, valid = overlap(redraw=True)
    sides = np.min([box[valid, 2:] - box[valid, :2] for box in boxes], axis=(0, 2))
    enlarged = (crops[..., 2:] - crops[..., :2]).min(-1) < size  # (pairs, 2)
    first, valid, enlarged = (float(shares.mean()) for shares in (first, valid, enlarged))
    return ViewOverlap(pairs, first, valid, sides, enlarged, _support(sides, config))


def _support(sides: np.ndarray, config: Config) -> dict[str, float]:
    if not len(sides):
        return {}
    side = float(np.median(sides))
    return {level: side / size / STRIDE_OF[level] for level, size in config.model.patch_sizes.items()}
