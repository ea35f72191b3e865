"""What a folder of images is like, and how its views will overlap: from headers, and from the project's own draws."""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Iterator

import numpy as np
import tensorflow as tf

from dupr_tf.config import STRIDE_OF, Config
from dupr_tf.data.image_source import Files, ImageSource
from dupr_tf.data.images.header import upright_size, upright_size_of
from dupr_tf.data.views import draw_pair
from dupr_tf.ops.boxes import intersect_views

MOST_FILES, MOST_PACKED = 2000, 200  # headers looked at; packed images have to be read whole
PAIRS = 2000  # drawn


@dataclasses.dataclass(frozen=True)
class Sizes:
    """The upright sizes of images spread evenly over a source."""

    count: int  # images in the source
    looked: int
    sizes: np.ndarray  # (n, 2) height, width, px, of those that could be read
    unreadable: list[str]  # names

    @property
    def short_sides(self) -> np.ndarray:
        return self.sizes.min(1)

    @property
    def aspects(self) -> np.ndarray:
        """Long side over short side."""
        return self.sizes.max(1) / self.sizes.min(1)


@dataclasses.dataclass(frozen=True)
class Overlap:
    """What the views of a config are like on images of these sizes."""

    pairs: int
    first: float  # share whose first draw overlaps enough for a patch loss
    valid: float  # share after `views.draws` draws
    sides: np.ndarray  # (n,) px, the overlap's shorter side in either view, of the valid pairs
    enlarged: float  # share of views cut out of fewer pixels than they have
    support: dict[str, float]  # {level with a patch loss: median side of a patch, in cells of its feature map}


def look_at_sizes(source: ImageSource) -> Sizes:
    """Reads the sizes of images spread evenly over a source."""
    most = MOST_FILES if isinstance(source, Files) else MOST_PACKED
    chosen = np.unique(np.linspace(0, len(source) - 1, min(most, len(source))).round().astype(int))
    sizes, unreadable = [], []
    for index, size in zip(chosen, _sizes(source, chosen), strict=True):
        if size is None or min(size) < 1:
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
                content = source.read(tf.constant(index, tf.int64)).numpy()
                yield upright_size_of(io.BytesIO(content))
        except (OSError, ValueError, SyntaxError, tf.errors.OpError):  # Pillow's and TensorFlow's words for damaged
            yield None


def simulate_overlap(sizes: np.ndarray, config: Config, pairs: int = PAIRS) -> Overlap:
    """Draws pairs of views as training does and looks at their geometry; no image is read.

    Args:
        sizes: (n, 2) height, width, px.
        config: `data.image_size`, `views`, and the patch levels are read.
        pairs: to draw; the sizes are gone round.
    """
    size, views = config.data.image_size, config.views
    once = views.model_copy(update={"draws": 1})
    shapes = tf.constant(sizes[np.arange(pairs) % len(sizes)], tf.int32)

    def draw(number, shape):
        seed = tf.stack([tf.constant(config.train.seed, tf.int64), number])
        _, _, first = intersect_views(*_geometry(shape, seed, size, once), size, views.min_overlap)
        crop_1, crop_2, *flips = _geometry(shape, seed, size, views)
        boxes_1, boxes_2, valid = intersect_views(crop_1, crop_2, *flips, size, views.min_overlap)
        least = tf.minimum(tf.reduce_min(boxes_1[2:] - boxes_1[:2]), tf.reduce_min(boxes_2[2:] - boxes_2[:2]))
        crops = tf.stack([crop_1, crop_2])
        enlarged = tf.reduce_min(crops[:, 2:] - crops[:, :2], -1) < size  # (2,)
        return first, valid, least, tf.reduce_mean(tf.cast(enlarged, tf.float32))

    numbers = tf.data.Dataset.from_tensor_slices((tf.range(pairs, dtype=tf.int64), shapes))
    (drawn,) = numbers.map(draw, num_parallel_calls=tf.data.AUTOTUNE).batch(pairs)
    first, valid, least, enlarged = (value.numpy() for value in drawn)
    sides = least[valid]
    return Overlap(
        pairs, float(first.mean()), float(valid.mean()), sides, float(enlarged.mean()), _support(sides, config)
    )


def _geometry(shape, seed, size, views):
    crops, flipped = draw_pair(shape[0], shape[1], seed, size, views)
    return crops[0], crops[1], flipped[0], flipped[1]


def _support(sides: np.ndarray, config: Config) -> dict[str, float]:
    if not len(sides):
        return {}
    side = float(np.median(sides))
    return {level: side / size / STRIDE_OF[level] for level, size in config.model.patch_sizes.items()}
