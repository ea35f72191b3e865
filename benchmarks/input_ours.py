"""Times our input pipeline, and the photometrics of our step."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import tensorflow as tf

from benchmarks.photos import photos
from dupr_tf.config import parse_config
from dupr_tf.data.images.bad_images import BadImages
from dupr_tf.data.images.resize import RESIZER
from dupr_tf.data.images.source import Files
from dupr_tf.data.pipeline import view_pairs
from dupr_tf.ops.photometric import PRESETS, apply_and_normalise, draw
from dupr_tf.training.feed import feed

BATCH, BATCHES, STEPS = 64, 12, 10_000
READ_AHEAD = 6  # batches: more than reader and dataset keep ready


def build(data, files, size):
    """Returns work: `BATCHES` batches of the pre-training pipeline, both views through the step's photometrics."""
    return _work(Files(photos(data, files)), size)


def packed(data, files, size):
    """Returns the same work on shards, which hold the files unchanged."""
    from dupr_tf.data.images.listing import open_source
    from dupr_tf.data.shards.pack import PackSettings, pack  # ArrayRecord has no wheel on Windows

    folder = Path(photos(data, files)[0]).parent
    shards = folder.with_name(folder.name + "_shards")
    pack(folder, shards, PackSettings(shuffle=False))
    return _work(open_source(shards)[1], size)


def _work(source, size):
    config = parse_config({"data": {"image_size": size, "threads": 1}, "train": {"batch_size": BATCH, "epochs": 1000}})
    bad = BadImages(source, 0.0)
    reader = view_pairs(source, config, 0, STEPS, bad)
    batches = iter(feed(reader))

    def run(count):
        for _ in range(count):
            batch = next(batches)
            views = [_augmented(batch[name]) for name in ("view_1", "view_2")]
        views[-1].numpy()
        assert not bad.count
        return BATCH * count

    def work():
        return run(BATCHES)

    def prepare():
        """Consumes the batches that were read in advance since the last repeat."""
        run(READ_AHEAD)

    views = [_augmented(next(batches)["view_1"]).numpy()]
    work.prepare, work.facts = prepare, {"version": tf.__version__, "resizer": RESIZER, **statistics(views)}
    return work


def photometric(count, size):
    """Returns work: the photometrics alone, one batch at a time."""
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
    """Returns images with detail at every scale: noise of 7 px, enlarged."""
    coarse = np.random.default_rng(0).integers(0, 256, (count, 7, 7, 3)).astype(np.float32)
    return tf.cast(tf.image.resize(coarse, (size, size), "bicubic", antialias=True), tf.uint8).numpy()


def statistics(views) -> dict:
    """Returns mean and standard deviation of each channel, which shows that the pipelines agree on the same files."""
    views = np.concatenate(views)
    return {
        "channel_means": [round(float(x), 3) for x in views.mean((0, 1, 2))],
        "channel_stds": [round(float(x), 3) for x in views.std((0, 1, 2))],
    }
