"""Batches for a detector: images decoded upright, augmented, letterboxed or scaled, with their boxes and masks.

Boxes are `(x1, y1, x2, y2)` in pixels, KerasCV's "xyxy". Sample order and augmentation are functions of the
seed and the position in the run, so a run can be repeated exactly.
"""

from __future__ import annotations

import os

import numpy as np
import tensorflow as tf

from dupr_tf.config import Config
from dupr_tf.data.annotations import AnnotatedImages
from dupr_tf.data.bad_images import unusable_reason
from dupr_tf.data.decoding import MAX_PIXELS, read_image
from dupr_tf.data.image_source import as_written
from dupr_tf.data.masks import MASK_SIDE, crop_masks
from dupr_tf.data.order import grouped_positions, shuffled
from dupr_tf.data.placing import (
    PAD_COLOUR,
    augment,
    drawn_place,
    letterbox,
    mirrored,
    moved,
    moved_back,
    scaled_sides,
    scaled_without_mean,
    short_side_scale,
    square_image,
    to_original,
    with_mean,
)
from dupr_tf.data.segments import SegmentedImages
from dupr_tf.errors import UserError

__all__ = ["PAD_COLOUR", "augment", "eval_batches", "letterbox", "to_original", "train_batches", "unreadable_images"]
MIN_VISIBLE_SHARE = 0.2  # of a box's area; a crop that leaves less of it removes the box
MIN_SIDE = 2.0  # px, likewise


def train_batches(annotated: AnnotatedImages, config: Config, steps: int, start: int = 0) -> tf.data.Dataset:
    """Augmented batches of the steps `start` to `steps`.

    Images without a box to learn from are left out. Every epoch has its own order; a batch may span two. Without
    `detector.short_sides` an image is scaled, cropped or padded to a square of `data.image_size`, and the whole square
    counts as picture. With it, an image gets one of these short sides (and at most `max_long_side`), aspect kept;
    those of a batch are padded below and on the right with the mean colour to the largest, in multiples of 32, and
    batches are of wide or of tall images where they can be. Either way half of the images are mirrored.

    Args:
        annotated: the training split.
        config: of it `data.image_size` S, `train.batch_size` B, `train.seed` and `detector`.
        steps: number of steps of the whole run.
        start: first step to produce.

    Returns:
        A dataset of `{"images": (B, H, W, 3) float32 in 0–255, "image_sizes": (B, 2) float32 height and width of what
        is picture, "bounding_boxes": {"boxes": (B, M, 4) float32, "classes": (B, M) float32}}`; M is the most boxes of
        an image, the rest is filled with -1. Where masks were read, `bounding_boxes` also has `masks`
        (B, M, 56, 56) float32 0 or 1, each the part of the mask in its box.
    """
    table, batch, seed = _TrainingTable(annotated), config.train.batch_size, config.train.seed
    if config.detector.short_sides:
        positions = grouped_positions(table.sizes, batch, seed, steps, start)
    else:
        positions = tf.data.Dataset.range(start * batch, steps * batch).map(
            as_written(lambda at: (at, shuffled(at, table.count, seed)))
        )

    def example(position, index):
        path, boxes, classes = table.row(index)
        image = read_image(tf.io.read_file(path), config.data.max_pixels)
        draws = tf.random.stateless_uniform([4], tf.random.experimental.stateless_fold_in([seed, 1], position))
        image, frame, place = (
            _scaled(image, draws, config) if config.detector.short_sides else _square(image, draws, config)
        )
        boxes, kept = _visible(moved(boxes, *place, frame[1]), frame, crops=config.detector.short_sides is None)
        targets = {"boxes": boxes, "classes": tf.cast(tf.boolean_mask(classes, kept), tf.float32)}
        if table.masks is not None:
            targets["masks"] = table.crops(index, kept, moved_back(boxes, *place, frame[1]), place[-1])
        padded = {name: _padded(rows, table.most_boxes) for name, rows in targets.items()}
        return {"images": image, "image_sizes": frame, "bounding_boxes": padded}

    examples = positions.map(as_written(example), num_parallel_calls=tf.data.AUTOTUNE)
    batches = examples.padded_batch(batch, drop_remainder=True)
    return batches.map(_finished(config.detector.short_sides is not None)).prefetch(2)


def eval_batches(
    annotated: AnnotatedImages,
    image_size: int | None,
    batch_size: int,
    max_pixels: int = MAX_PIXELS,
    short_side: int | None = None,
    max_long_side: int = 1333,
) -> tf.data.Dataset:
    """Every image once, scaled and padded below and on the right; nothing is drawn.

    Args:
        annotated: N images.
        image_size: side S of the square images are letterboxed to, in order.
        batch_size: images a batch, at most.
        max_pixels: an image of more is refused.
        short_side: px; then images are scaled to it instead, wide ones first and tall ones after them, and a batch
            is as large as its largest image asks for, in multiples of 32.
        max_long_side: px, with `short_side`.

    Returns:
        A dataset of `{"images": (b, H, W, 3) float32, "image_sizes": (b, 2) float32 height and width of what is
        picture, "scale": (b,) float32, "index": (b,) int64 position in `annotated`}`. A box divided by its scale is
        one of the original.
    """
    order = np.arange(len(annotated))
    if short_side is not None:
        order = np.argsort(annotated.sizes[:, 0] > annotated.sizes[:, 1], kind="stable")

    def example(path, index):
        image = read_image(tf.io.read_file(path), max_pixels)
        if short_side is None:
            square, scale = letterbox(image[None], image_size)
            picture = square[0]
        else:
            scale = short_side_scale(tf.shape(image)[:2], short_side, max_long_side)
            picture = scaled_without_mean(image, scale, scaled_sides(tf.shape(image)[:2], scale))
        sides = tf.cast(tf.shape(image)[:2], tf.float32) * scale
        return {"images": picture, "image_sizes": sides, "scale": scale, "index": index}

    paths = [os.fsencode(annotated.paths[i]) for i in order]
    examples = tf.data.Dataset.from_tensor_slices((paths, order.astype(np.int64)))
    examples = examples.map(as_written(example), num_parallel_calls=tf.data.AUTOTUNE)
    return examples.padded_batch(batch_size).map(_finished(short_side is not None)).prefetch(2)


def _square(image, draws, config):
    """Image (S, S, 3), its frame (2,) height and width, and its place: scale, offset, flip."""
    size = config.data.image_size
    place = drawn_place(tf.shape(image)[:2], draws, size, config.detector.scale_jitter)
    return square_image(image, size, *place), tf.fill([2], float(size)), place


def _scaled(image, draws, config):
    """Like `_square`, for a short side that is drawn; padded, and less the mean colour."""
    sides = tf.constant(config.detector.short_sides)
    drawn = sides[tf.cast(draws[0] * len(config.detector.short_sides), tf.int32)]
    scale = short_side_scale(tf.shape(image)[:2], drawn, config.detector.max_long_side)
    flip = draws[3] < 0.5
    frame = tf.cast(tf.shape(image)[:2], tf.float32) * scale
    # Mirrored before it is scaled: a picture whose scaled width is no whole number of pixels keeps its left edge whole.
    picture = scaled_without_mean(mirrored(image, flip), scale, scaled_sides(tf.shape(image)[:2], scale))
    return picture, frame, (scale, tf.zeros([2]), flip)


def _finished(without_mean: bool):
    """The last step of a batch: the mean colour where it is still missing, masks as numbers."""

    def finish(batch):
        batch = dict(batch)
        if without_mean:
            batch["images"] = with_mean(batch["images"])
        if "masks" in batch.get("bounding_boxes", {}):
            targets = dict(batch["bounding_boxes"])
            batch["bounding_boxes"] = targets | {"masks": tf.cast(targets["masks"], tf.float32)}
        return batch

    return as_written(finish)


def _visible(boxes, frame, crops):
    """Boxes clipped to a frame (2,), and which of them (n,) were kept: those of which a crop leaves enough."""
    clipped = tf.clip_by_value(boxes, 0.0, tf.stack([frame[1], frame[0], frame[1], frame[0]]))
    if not crops:
        return clipped, tf.ones_like(boxes[:, 0], tf.bool)
    before, after = boxes[:, 2:] - boxes[:, :2], clipped[:, 2:] - clipped[:, :2]  # (n, 2) width, height
    share = tf.reduce_prod(after, 1) / tf.reduce_prod(before, 1)
    kept = (share >= MIN_VISIBLE_SHARE) & (tf.reduce_min(after, 1) >= MIN_SIDE)
    return clipped[kept], kept


def _padded(rows, most):
    """(most, …): rows that are missing are -1, or 0 for masks."""
    missing = [[0, most - tf.shape(rows)[0]], *([0, 0] for _ in rows.shape[1:])]
    rows = tf.pad(rows, missing, constant_values=tf.constant(0 if rows.dtype == tf.uint8 else -1, rows.dtype))
    return tf.ensure_shape(rows, [most, *rows.shape[1:]])


class _TrainingTable:
    """Paths, flat boxes and masks of the images that have something to learn from."""

    def __init__(self, annotated: AnnotatedImages):
        kept = annotated.with_boxes()
        if not kept:
            raise UserError("annotated", "None of the images has a box to train on.", "Use annotated images.")
        self.count, self.sizes = len(kept), annotated.sizes[kept]
        used = [np.flatnonzero(~annotated.ignored[i]) for i in kept]
        counts = [len(rows) for rows in used]
        self.most_boxes = max(counts)
        self.paths = tf.constant([os.fsencode(annotated.paths[i]) for i in kept])
        self.ends = tf.constant(np.cumsum([0, *counts]), tf.int64)
        self.boxes, self.labels = (
            tf.constant(np.concatenate([column[i][rows] for i, rows in zip(kept, used, strict=True)]))
            for column in (annotated.boxes, annotated.labels)
        )
        self.masks = None
        if annotated.masks is not None:
            self.masks = [[annotated.masks[i][k] for k in rows] for i, rows in zip(kept, used, strict=True)]

    def row(self, index):
        """Path, boxes (n, 4) and classes (n,) of one image."""
        first, last = self.ends[index], self.ends[index + 1]
        return self.paths[index], self.boxes[first:last], self.labels[first:last]

    def crops(self, index, kept, boxes, flip):
        """(k, 56, 56) uint8: the masks of the kept ones of an image's boxes, in these boxes (k, 4) of its pixels."""

        def cut(index, kept, boxes, flip):
            masks, (height, width) = self.masks[index], self.sizes[index]
            boxes = np.clip(boxes, 0, [width, height, width, height])
            crops = crop_masks([masks[k] for k in np.flatnonzero(kept)], (height, width), boxes)
            return np.ascontiguousarray(crops[:, :, ::-1]) if flip else crops

        crops = tf.numpy_function(cut, [index, kept, boxes, flip], tf.uint8, stateful=False)
        return tf.ensure_shape(crops, [None, MASK_SIDE, MASK_SIDE])


def unreadable_images(annotated, max_pixels: int = MAX_PIXELS) -> dict[str, str]:
    """{path: reason} of the images that cannot be used; slow, for saying what went wrong after a run has failed.

    Args:
        annotated: `AnnotatedImages` or `SegmentedImages`.
        max_pixels: an image of more is refused.
    """
    reasons = {path: unusable_reason(path, max_pixels) for path in annotated.paths}
    if isinstance(annotated, SegmentedImages):
        reasons |= annotated.unreadable_segments()
    return {path: reason for path, reason in reasons.items() if reason}
