"""Our input pipeline, and the photometrics of our step."""

from __future__ import annotations

import numpy as np
import tensorflow as tf

from benchmarks.photos import photos
from dupr_tf.config import parse_config
from dupr_tf.data.images.bad_images import BadImages
from dupr_tf.data.pipeline import view_pairs
from dupr_tf.ops.photometric import PRESETS, apply_and_normalise, draw

BATCH, BATCHES = 64, 12  # many more a repeat than the pipeline holds ready


def build(data, files, size):
    """`BATCHES` batches of the pre-training pipeline, both views through the step's photometrics."""
    config = parse_config({"data": {"image_size": size}, "train": {"batch_size": BATCH, "epochs": 1000}})
    paths = photos(data, files)
    bad = BadImages(paths, 0.0)
    steps = 10_000
    batches = iter(view_pairs(paths, config, 0, steps, bad))

    def work():
        for _ in range(BATCHES):
            batch = next(batches)
            for name in ("view_1", "view_2"):
                views = _augmented(batch[name])
        views.numpy()
        return BATCH * BATCHES

    work.facts = {"version": tf.__version__, **statistics([_augmented(next(batches)["view_1"]).numpy()])}
    return work


def photometric(count, size):
    """The photometrics alone, a batch at a time."""
    images = tf.constant(noise(count, size))

    def work():
        _augmented(images).numpy()
        return count

    work.facts = {"version": tf.__version__}
    return work


@tf.function
def _augmented(images):
    seed = tf.random.uniform([2], maxval=2**31 - 1, dtype=tf.int32)
    return apply_and_normalise(images, draw(images.shape[0], seed), PRESETS["moco_v2"])


def noise(count, size):
    """Images with something in them at every scale: noise of 7 px, enlarged."""
    coarse = np.random.default_rng(0).integers(0, 256, (count, 7, 7, 3)).astype(np.float32)
    return tf.cast(tf.image.resize(coarse, (size, size), "bicubic", antialias=True), tf.uint8).numpy()


def statistics(views) -> dict:
    """Mean and standard deviation of each channel, to see that the pipelines make the same of the same files."""
    views = np.concatenate(views)
    return {
        "channel_means": [round(float(x), 3) for x in views.mean((0, 1, 2))],
        "channel_stds": [round(float(x), 3) for x in views.std((0, 1, 2))],
    }
