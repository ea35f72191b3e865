"""Batches for a detector: images decoded upright, augmented or letterboxed, with their boxes.

Boxes are `(x1, y1, x2, y2)` in pixels, KerasCV's "xyxy". Sample order and augmentation are functions of the
seed and the position in the run, so a run can be repeated exactly.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

import numpy as np
import tensorflow as tf

from dupr_tf.config import Config
from dupr_tf.data.annotations import AnnotatedImages
from dupr_tf.data.bad_images import unusable_reason
from dupr_tf.data.decoding import MAX_PIXELS, read_image

PAD_COLOUR = (123.675, 116.28, 103.53)  # ImageNet's mean: 0 once the backbone has normalised it
MIN_VISIBLE_SHARE = 0.2  # of a box's area; a crop that leaves less of it removes the box
MIN_SIDE = 2.0  # px, likewise


def train_batches(annotated: AnnotatedImages, config: Config, steps: int, start: int = 0) -> tf.data.Dataset:
    """Augmented batches of the steps `start` to `steps`: random scale, crop or padding, flip.

    Images without a box to learn from are left out. Every epoch has its own order; a batch may span two.

    Args:
        annotated: the training split.
        config: of it `data.image_size` S, `train.batch_size` B, `train.seed` and `detector.scale_jitter`.
        steps: number of steps of the whole run.
        start: first step to produce.

    Returns:
        A dataset of `{"images": (B, S, S, 3) float32 in 0–255, "bounding_boxes": {"boxes": (B, M, 4) float32,
        "classes": (B, M) float32}}`; M is the most boxes of an image, the rest is filled with -1.
    """
    table = _TrainingTable(annotated)
    size, batch, seed = config.data.image_size, config.train.batch_size, config.train.seed
    jitter = config.detector.scale_jitter

    def example(position):
        path, boxes, classes = table.row(_shuffled(position, table.count, seed))
        image = read_image(tf.io.read_file(path), config.data.max_pixels)
        draws = tf.random.stateless_uniform([4], tf.random.experimental.stateless_fold_in([seed, 1], position))
        image, boxes = augment(image, boxes, draws, size, jitter)
        boxes, classes = _visible(boxes, classes, size)
        return {"images": image, "bounding_boxes": _padded(boxes, classes, table.most_boxes)}

    positions = tf.data.Dataset.range(start * batch, steps * batch)
    examples = positions.map(example, num_parallel_calls=tf.data.AUTOTUNE)
    return examples.batch(batch, drop_remainder=True).prefetch(2)


def eval_batches(
    annotated: AnnotatedImages, image_size: int, batch_size: int, max_pixels: int = MAX_PIXELS
) -> tf.data.Dataset:
    """All images in order, letterboxed: `{"images": (b, S, S, 3), "scale": (b,)}`, b at most `batch_size`."""

    def example(path):
        image, scale = letterbox(read_image(tf.io.read_file(path), max_pixels)[None], image_size)
        return {"images": image[0], "scale": scale}

    paths = tf.data.Dataset.from_tensor_slices([os.fsencode(path) for path in annotated.paths])
    return paths.map(example, num_parallel_calls=tf.data.AUTOTUNE).batch(batch_size).prefetch(2)


def letterbox(images: tf.Tensor, image_size: int) -> tuple[tf.Tensor, tf.Tensor]:
    """Scales images to fit a square, aspect kept, in its top left corner; the rest has the mean colour.

    Args:
        images: (B, H, W, 3), 0–255, any dtype.
        image_size: side S of the square.

    Returns:
        (B, S, S, 3) float32 and the scale, a scalar: a box of the square divided by it is one of the image.
    """
    longest = tf.reduce_max(tf.shape(images)[1:3])
    scale = tf.cast(image_size, tf.float32) / tf.cast(longest, tf.float32)
    return _place(images, image_size, scale, tf.zeros([2])), scale


def to_original(boxes: np.ndarray, scale: float, size: Sequence[int]) -> np.ndarray:
    """Boxes (n, 4) of a letterboxed image, clipped, in pixels of the original of `size` (height, width)."""
    height, width = size
    return np.clip(np.asarray(boxes, np.float32) / scale, 0, [width, height, width, height]).astype(np.float32)


def augment(image, boxes, draws, image_size, scale_jitter):
    """Scale, crop or pad, flip: one resampling, so that the boxes follow the pixels exactly.

    Args:
        image: (H, W, 3), 0–255.
        boxes: (n, 4) xyxy in its pixels.
        draws: (4,) uniform in [0, 1): scale, vertical and horizontal position, flip.
        image_size: side S of the result.
        scale_jitter: (min, max) of the factor on the scale that just fits the square; drawn log-uniformly.

    Returns:
        (S, S, 3) float32 and the boxes (n, 4) in it; they may reach beyond it.
    """
    side = tf.cast(tf.shape(image)[:2], tf.float32)  # (2,) H, W
    low, high = (np.log(factor).astype(np.float32) for factor in scale_jitter)
    scale = image_size / tf.reduce_max(side) * tf.exp(low + draws[0] * (high - low))
    offset = draws[1:3] * (image_size - side * scale)  # (2,) y, x; negative where the scaled image is the larger
    square = _place(image[None], image_size, scale, offset)[0]
    boxes = boxes * scale + tf.stack([offset[1], offset[0], offset[1], offset[0]])
    mirrored = tf.stack([image_size - boxes[:, 2], boxes[:, 1], image_size - boxes[:, 0], boxes[:, 3]], 1)
    flip = draws[3] < 0.5
    square = tf.cond(flip, lambda: tf.reverse(square, [1]), lambda: square)
    return square, tf.where(flip, mirrored, boxes)


def _place(images, image_size, scale, offset):
    """Moves the point (y, x) to (y, x)·scale + offset in a square of mean colour, antialiased."""
    shape = tf.shape(images)  # B, H, W, 3
    square = tf.raw_ops.ScaleAndTranslate(
        # The op leaves zeros where there is no image: with the mean taken off, that is the mean colour.
        images=_add_colour(images, shape, [-value for value in PAD_COLOUR]),
        size=[image_size, image_size],
        scale=tf.stack([scale, scale]),
        translation=offset,
        kernel_type="triangle",
        antialias=True,
    )
    square = _add_colour(square, tf.shape(square), PAD_COLOUR)
    return tf.ensure_shape(square, [None, image_size, image_size, 3])


def _add_colour(images, shape, colour):
    """Adds a colour to every pixel; by rows, as a broadcast over just three channels is far slower."""
    rows = tf.reshape(tf.cast(images, tf.float32), [-1, shape[2] * 3])
    return tf.reshape(rows + tf.tile(tf.constant(colour, tf.float32), [shape[2]]), shape)


def _visible(boxes, classes, image_size):
    """Clips boxes to the square; drops those of which too little is left."""
    clipped = tf.clip_by_value(boxes, 0.0, float(image_size))
    before, after = boxes[:, 2:] - boxes[:, :2], clipped[:, 2:] - clipped[:, :2]  # (n, 2) width, height
    share = tf.reduce_prod(after, 1) / tf.reduce_prod(before, 1)
    kept = (share >= MIN_VISIBLE_SHARE) & (tf.reduce_min(after, 1) >= MIN_SIDE)
    return clipped[kept], classes[kept]


def _padded(boxes, classes, most):
    missing = most - tf.shape(boxes)[0]
    boxes = tf.pad(boxes, [[0, missing], [0, 0]], constant_values=-1.0)
    classes = tf.pad(tf.cast(classes, tf.float32), [[0, missing]], constant_values=-1.0)
    return {"boxes": tf.ensure_shape(boxes, [most, 4]), "classes": tf.ensure_shape(classes, [most])}


def _shuffled(position, count, seed):
    """The image at a position of the run: every epoch is a permutation of its own."""
    return tf.random.experimental.index_shuffle(
        position % count, seed=tf.stack([tf.constant(seed, tf.int64), position // count]), max_index=count - 1
    )


class _TrainingTable:
    """Paths and flat boxes of the images that have something to learn from."""

    def __init__(self, annotated: AnnotatedImages):
        kept = annotated.with_boxes()
        if not kept:
            raise ValueError("Expected boxes to train on, received images without any. Fix: annotated images")
        self.count = len(kept)
        boxes = [annotated.boxes[i][~annotated.ignored[i]] for i in kept]
        labels = [annotated.labels[i][~annotated.ignored[i]] for i in kept]
        counts = [len(rows) for rows in boxes]
        self.most_boxes = max(counts)
        self.paths = tf.constant([os.fsencode(annotated.paths[i]) for i in kept])
        self.ends = tf.constant(np.cumsum([0, *counts]), tf.int64)
        self.boxes, self.labels = tf.constant(np.concatenate(boxes)), tf.constant(np.concatenate(labels))

    def row(self, index):
        """Path, boxes (n, 4) and classes (n,) of one image."""
        first, last = self.ends[index], self.ends[index + 1]
        return self.paths[index], self.boxes[first:last], self.labels[first:last]


def unreadable_images(annotated: AnnotatedImages, max_pixels: int = MAX_PIXELS) -> dict[str, str]:
    """{path: reason} of the images that cannot be used; slow, for saying what went wrong after a run has failed."""
    reasons = {path: unusable_reason(path, max_pixels) for path in annotated.paths}
    return {path: reason for path, reason in reasons.items() if reason}
