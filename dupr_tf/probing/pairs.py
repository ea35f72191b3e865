"""Pairs of views for the localisation probes: geometry as in training, colours changed as in training."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import tensorflow as tf

from dupr_tf.config import ViewsConfig
from dupr_tf.data.annotations import AnnotatedImages
from dupr_tf.data.decoding import read_image, read_pair
from dupr_tf.data.views import CROP_TRIES, crop_and_flip, draw_crops
from dupr_tf.errors import UserError
from dupr_tf.ops.boxes import box_in_view
from dupr_tf.ops.photometric import PRESETS, apply, draw
from dupr_tf.probing.images import read_each

BATCH = 8  # pairs encoded at a time
OBJECT_DRAWS = 64  # crops drawn until one holds the object


def view_pairs_of(paths: Sequence[str], size: int, views: ViewsConfig, seed: int = 0) -> Iterator[dict]:
    """Batches of pairs of views with their overlap, as in training: `view_1`, `boxes_1`, `flipped_1`, `valid` …

    Args:
        paths: image files; a pair of each.
        size: side of a view, px.
        views: how crops are drawn; `photometric` names the change of colours of each view.
        seed: of it all.

    Yields:
        dicts of NumPy arrays as in `dupr_tf.batch`, views (b, size, size, 3) float32 in 0–255, and `index` (b,) int64,
        the position in `paths`.
    """

    def make(index, content):
        return read_pair(content, tf.stack([tf.constant(seed, tf.int64), index]), size, views)

    yield from _coloured(read_each(paths, make, BATCH), views.photometric, seed)


def object_pairs(annotated: AnnotatedImages, rows: Sequence[tuple[int, int]], size, views, seed=0) -> Iterator[dict]:
    """Batches like those of `view_pairs_of`, but both views hold one object whole and its box stands for the overlap.

    As in the paper's appendix 6.2, no view is mirrored.

    Args:
        annotated: the images.
        rows: (image, object) of each pair.
        size, views, seed: as in `view_pairs_of`.
    """
    boxes = tf.constant([annotated.boxes[i][k][[1, 0, 3, 2]] for i, k in rows], tf.float32)  # y1 x1 y2 x2

    def make(index, content):
        image = read_image(content)
        crops = crops_holding(boxes[index], tf.shape(image)[0], tf.shape(image)[1], [seed, index], views)
        still = tf.constant(False)
        cut = {f"view_{n + 1}": crop_and_flip(image, crops[n], still, size) for n in range(2)}
        where = {
            f"boxes_{n + 1}": box_in_view(boxes[index], tf.cast(crops[n], tf.float32), still, size) for n in (0, 1)
        }
        return {**cut, **where, "flipped_1": still, "flipped_2": still, "valid": tf.constant(True)}

    paths = [annotated.paths[i] for i, _ in rows]
    yield from _coloured(read_each(paths, make, BATCH), views.photometric, seed)


def crops_holding(box, height, width, seed, views: ViewsConfig):
    """(2, 4) int32 crops that both hold a box `(y1, x1, y2, x2)`: each the first such of many random resized crops.

    Where none of them holds a large object, one from somewhere between its box and the whole image, of any aspect.
    """
    seed = tf.stack(seed)
    u = tf.random.stateless_uniform([OBJECT_DRAWS, 2, CROP_TRIES + 1, 4], seed=seed)
    crops = draw_crops(u, height, width, views.crop_area, views.crop_aspect)  # (draws, 2, 4)
    as_float = tf.cast(crops, tf.float32)
    holds = tf.reduce_all(as_float[..., :2] <= box[:2], -1) & tf.reduce_all(as_float[..., 2:] >= box[2:], -1)
    first = tf.argmax(tf.cast(holds, tf.int32), 0)  # (2,)
    found = tf.gather(tf.transpose(crops, [1, 0, 2]), first, batch_dims=1)
    v = u[0, :, 0]  # (2, 4)
    end = tf.cast(tf.stack([height, width]), tf.float32)
    between = tf.concat([tf.floor(v[:, :2] * box[:2]), tf.math.ceil(box[2:] + v[:, 2:] * (end - box[2:]))], 1)
    between = tf.concat([between[:, :2], tf.minimum(between[:, 2:], end)], 1)
    return tf.where(tf.reduce_any(holds, 0)[:, None], found, tf.cast(between, tf.int32))


def _coloured(batches, photometric: str, seed: int) -> Iterator[dict]:
    recipe = PRESETS[photometric]
    for index, pair in batches:
        found = {name: value.numpy() for name, value in pair.items()}
        for number in (1, 2):
            # Each image's draws depend on the seed and its position alone, whatever batch it came in.
            rows = [draw(1, tf.constant([seed + number, int(i)], tf.int64), photometric) for i in index]
            draws = type(rows[0])(*(tf.concat(parts, 0) for parts in zip(*rows, strict=True)))
            found[f"view_{number}"] = 255 * apply(found[f"view_{number}"], draws, recipe).numpy()
        yield {**found, "index": index}


def check_overlaps(measured: Sequence) -> None:
    """Raises UserError where no pair of views overlapped enough to be measured."""
    if not measured:
        raise UserError("data", "No pair of views overlaps enough.", "Use more images, or less elongated ones.")
