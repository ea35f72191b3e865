"""Makes pairs of views for the localisation probes, with the geometry and colour changes of training."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import tensorflow as tf

from dupr_tf.config import DataConfig, ViewsConfig
from dupr_tf.data.labels.annotations import AnnotatedImages
from dupr_tf.data.views import DRAWS, box_in_view, cut_view, draw_crops, draw_pairs, intersect_views, uniform
from dupr_tf.errors import UserError
from dupr_tf.ops.photometric import PRESETS, apply, draw
from dupr_tf.probing.image_views import read_each

BATCH = 8  # pairs encoded at a time
OBJECT_DRAWS = 64  # crops drawn until one holds the object


def view_pairs_of(
    paths: Sequence[str], size: int, views: ViewsConfig, seed: int = 0, section: DataConfig | None = None
) -> Iterator[dict]:
    """Yields batches of pairs of views with their overlap, as in training: `view_1`, `boxes_1`, `flipped_1`, `valid` …

    Args:
        paths: image files; each gives a pair.
        size: side of a view, px.
        views: settings of crops; `photometric` names the change of colours of each view.
        seed: seed of all draws.
        section: settings for decoding images. Default: those of the schema.

    Yields:
        dicts of NumPy arrays as in `dupr_tf.batch`, views (b, size, size, 3) float32 in 0–255, and `index` (b,) int64,
        the position in `paths`.
    """

    def make(index, image):
        u = uniform(seed, 0, index, (1, views.draws, 2, *DRAWS))
        (crops,), (flipped,) = draw_pairs(u, [image.shape[:2]], size, views)
        boxes_1, boxes_2, valid = intersect_views(*crops, *flipped, size, views.min_overlap)
        return {**_cut(image, crops, flipped, size), "boxes_1": boxes_1, "boxes_2": boxes_2, "valid": valid}

    yield from _coloured(read_each(paths, make, BATCH, section), views.photometric, seed)


def object_pairs(
    annotated: AnnotatedImages, rows: Sequence[tuple[int, int]], size, views, seed=0, section=None
) -> Iterator[dict]:
    """Yields batches like `view_pairs_of`, but both views hold one whole object and its box serves as the overlap.

    As in the paper's appendix 6.2, no view is mirrored.

    Args:
        annotated: the images.
        rows: (image, object) of each pair.
        size, views, seed, section: as in `view_pairs_of`.
    """

    def make(index, image):
        i, k = rows[index]
        box = annotated.boxes[i][k][[1, 0, 3, 2]]  # y1 x1 y2 x2
        u = uniform(seed, 0, index, (OBJECT_DRAWS, 2, *DRAWS))
        crops, flipped = crops_holding(box, *image.shape[:2], u, views), np.zeros(2, bool)
        boxes = box_in_view(box, crops, flipped, size).astype(np.float32)
        return {**_cut(image, crops, flipped, size), "boxes_1": boxes[0], "boxes_2": boxes[1], "valid": True}

    paths = [annotated.paths[i] for i, _ in rows]
    yield from _coloured(read_each(paths, make, BATCH, section), views.photometric, seed)


def _cut(image, crops, flipped, size) -> dict:
    """Cuts both views, (2, 4) crops and (2,) flips, out of an image."""
    views = {f"view_{n + 1}": cut_view(image, crops[n], flipped[n], size) for n in range(2)}
    return {**views, "flipped_1": flipped[0], "flipped_2": flipped[1]}


def crops_holding(box, height: int, width: int, u: np.ndarray, views: ViewsConfig) -> np.ndarray:
    """Selects two crops that both hold a box: each is the first such of many random resized crops.

    If none holds a large object, a crop of any aspect between its box and the whole image is used.

    Args:
        box: (4,) `(y1, x1, y2, x2)` px.
        height, width: size of the image, px.
        u: (draws, 2, *DRAWS) uniform numbers.
        views: settings whose `crop_area` and `crop_aspect` are read.

    Returns:
        (2, 4) int64 crops.
    """
    crops = draw_crops(u, height, width, views.crop_area, views.crop_aspect)  # (draws, 2, 4)
    holds = (crops[..., :2] <= box[:2]).all(-1) & (crops[..., 2:] >= box[2:]).all(-1)  # (draws, 2)
    first = crops[holds.argmax(0), [0, 1]]  # (2, 4)
    v, end = u[0, :, 0], np.array([height, width])  # (2, 4) numbers
    between = [np.floor(v[:, :2] * box[:2]), np.minimum(np.ceil(box[2:] + v[:, 2:] * (end - box[2:])), end)]
    return np.where(holds.any(0)[:, None], first, np.concatenate(between, 1).astype(np.int64))


def _coloured(batches, photometric: str, seed: int) -> Iterator[dict]:
    recipe = PRESETS[photometric]
    for index, pair in batches:
        for number in (1, 2):
            # Each image's draws depend on the seed and its position alone, not on its batch.
            rows = [draw(1, tf.constant([seed + number, int(i)], tf.int64), photometric) for i in index]
            draws = type(rows[0])(*(tf.concat(parts, 0) for parts in zip(*rows, strict=True)))
            pair[f"view_{number}"] = 255 * apply(pair[f"view_{number}"], draws, recipe).numpy()
        yield {**pair, "index": index}


def check_overlaps(measured: Sequence) -> None:
    """Raises UserError if no pair of views overlapped enough to be measured."""
    if not measured:
        raise UserError("data", "No pair of views overlaps enough.", "Use more images, or less elongated ones.")
