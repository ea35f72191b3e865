"""Batches for semantic segmentation: images and the class of every pixel, 255 where there is none.

Sample order and augmentation are functions of the seed and the position in the run.
"""

from __future__ import annotations

import os

import numpy as np
import tensorflow as tf

from dupr_tf.config import Config
from dupr_tf.data.decoding import MAX_PIXELS, read_image
from dupr_tf.data.image_source import as_written
from dupr_tf.data.order import shuffled
from dupr_tf.data.placing import (
    drawn_place,
    scaled_sides,
    scaled_without_mean,
    short_side_scale,
    square_image,
    square_values,
    with_mean,
)
from dupr_tf.data.segment_classes import IGNORED
from dupr_tf.data.segments import SegmentedImages


def segment_train_batches(segmented: SegmentedImages, config: Config, steps: int, start: int = 0) -> tf.data.Dataset:
    """Augmented batches of the steps `start` to `steps`: random scale, crop or padding to a square, flip.

    Args:
        segmented: the training split.
        config: of it `data.image_size` S, `train.batch_size` B, `train.seed`, and `detector.scale_jitter`, a factor
            on the image's own size, or on the one that `detector.test_short_side` gives it.
        steps: number of steps of the whole run.
        start: first step to produce.

    Returns:
        A dataset of `{"images": (B, S, S, 3) float32 in 0–255, "segments": (B, S, S) int32, "image_sizes": (B, 2)
        float32, all S}`. Padding has the mean colour and the class 255.
    """
    count, size, detector = len(segmented), config.data.image_size, config.detector
    batch, seed = config.train.batch_size, config.train.seed
    paths = tf.constant([os.fsencode(path) for path in segmented.paths])

    def example(position):
        index = shuffled(position, count, seed)
        image = read_image(tf.io.read_file(paths[index]), config.data.max_pixels)
        segments = tf.numpy_function(lambda i: segmented.truth(i), [index], tf.uint8, stateful=False)
        draws = tf.random.stateless_uniform([4], tf.random.experimental.stateless_fold_in([seed, 1], position))
        base = _test_scale(tf.shape(image)[:2], detector.test_short_side, detector.max_long_side)
        place = drawn_place(tf.shape(image)[:2], draws, size, detector.scale_jitter, base)
        segments = square_values(tf.ensure_shape(segments, [None, None]), size, *place, outside=IGNORED)
        return {
            "images": square_image(image, size, *place),
            "segments": tf.cast(segments, tf.int32),
            "image_sizes": tf.fill([2], float(size)),
        }

    positions = tf.data.Dataset.range(start * batch, steps * batch)
    examples = positions.map(as_written(example), num_parallel_calls=tf.data.AUTOTUNE)
    return examples.batch(batch, drop_remainder=True).prefetch(2)


def segment_eval_batches(
    segmented: SegmentedImages,
    batch_size: int,
    max_pixels: int = MAX_PIXELS,
    short_side: int | None = None,
    max_long_side: int = 1333,
) -> tf.data.Dataset:
    """Every image once, whole, padded below and on the right to multiples of 32 with the mean colour.

    Args:
        segmented: N images; wide ones come first, tall ones after them.
        batch_size: images a batch, at most.
        max_pixels: an image of more is refused.
        short_side: px images are scaled to; none: they keep their size.
        max_long_side: px, with `short_side`.

    Returns:
        A dataset of `{"images": (b, H, W, 3) float32, "image_sizes": (b, 2) float32 height and width of what is
        picture, "index": (b,) int64 position in `segmented`}`.
    """
    order = np.argsort(segmented.sizes[:, 0] > segmented.sizes[:, 1], kind="stable")

    def example(path, index):
        image = read_image(tf.io.read_file(path), max_pixels)
        sides = tf.shape(image)[:2]
        scale = _test_scale(sides, short_side, max_long_side)
        picture = scaled_without_mean(image, scale, scaled_sides(sides, scale))
        return {"images": picture, "image_sizes": tf.cast(sides, tf.float32) * scale, "index": index}

    paths = [os.fsencode(segmented.paths[i]) for i in order]
    examples = tf.data.Dataset.from_tensor_slices((paths, order.astype(np.int64)))
    examples = examples.map(as_written(example), num_parallel_calls=tf.data.AUTOTUNE).padded_batch(batch_size)
    return examples.map(as_written(lambda batch: {**batch, "images": with_mean(batch["images"])})).prefetch(2)


def segments_to_original(predicted: np.ndarray, image_size: np.ndarray, size: np.ndarray) -> np.ndarray:
    """Classes of an original's pixels, each that of the predicted pixel it lies in.

    Args:
        predicted: (H, W) of a padded input.
        image_size: (2,) height and width of what is picture in it.
        size: (2,) height and width of the original.

    Returns:
        (height, width), of the dtype of `predicted`.
    """
    at = []
    for own, part, most in zip(size, image_size, predicted.shape, strict=True):
        centres = (np.arange(int(own)) + 0.5) * (float(part) / int(own))
        at.append(np.minimum(centres.astype(int), most - 1))
    return predicted[at[0][:, None], at[1][None]]


def _test_scale(sides, short_side, max_long_side):
    return tf.constant(1.0) if short_side is None else short_side_scale(sides, short_side, max_long_side)
