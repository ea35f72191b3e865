"""Files in, ViewPair batches out. A batch is a function of (seed, step): a resumed run sees what a whole run would."""

from __future__ import annotations

import logging
import threading

import numpy as np
import tensorflow as tf

from dupr_tf.batch import check_view_pairs
from dupr_tf.config import Config
from dupr_tf.data.views import make_pair

log = logging.getLogger(__name__)
SUBSTITUTES = 32  # images tried in place of an unreadable one before the run gives up


class TooManyBadImages(ValueError):
    """More unreadable images than `data.max_bad_share` allows."""


class BadImages:
    """The unreadable images met so far: named in the log once, counted, held against a budget.

    Args:
        paths: every image of the source.
        max_share: share of them that may be unreadable.
    """

    def __init__(self, paths: list[str], max_share: float):
        self.paths, self.max_share = paths, max_share
        self.found: dict[int, str] = {}
        self._lock = threading.Lock()

    def add(self, index: int) -> None:
        """Notes that image `index` cannot be read."""
        with self._lock:
            if index in self.found:
                return
            self.found[index] = self.paths[index]
            log.warning("skipped, cannot be decoded: %s", self.paths[index])

    @property
    def over_budget(self) -> bool:
        return len(self.found) > self.max_share * len(self.paths)

    def check(self) -> None:
        """Raises TooManyBadImages once the budget is spent."""
        if self.over_budget:
            raise TooManyBadImages(
                f"Expected at most {self.max_share:.2%} unreadable images (data.max_bad_share), received "
                f"{len(self.found)} of {len(self.paths)}, first {next(iter(self.found.values()))}. "
                "Fix: mend or remove them, or raise --data.max_bad_share"
            )


def view_pairs(paths: list[str], config: Config, first_step: int, last_step: int, bad: BadImages):
    """The batches of steps `first_step` .. `last_step` - 1.

    Every image comes once an epoch, in an order drawn from (seed, epoch); what is left over by full batches is dropped.

    Args:
        paths: image files, in the order of `list_images`.
        config: of the run; `data`, `views`, and `train.batch_size`, `train.seed` are read.
        first_step, last_step: optimiser steps.
        bad: gets the unreadable images.

    Returns:
        A `tf.data.Dataset` of ViewPair dicts.
    """
    batch, per_epoch = config.train.batch_size, config.steps_per_epoch(len(paths))
    files = tf.constant(paths)

    def position(number):
        """(epoch, image index) of the number-th sample of the run."""
        epoch, place = number // (per_epoch * batch), number % (per_epoch * batch)
        return epoch, shuffled_index(place, len(paths), config.train.seed, epoch)

    def pair(number):
        epoch, index = position(number)
        views, seed = config.views, sample_seed(config.train.seed, epoch, index)
        image, index = read_or_substitute(files, index, config.train.seed, epoch, bad)
        sample = make_pair(
            image,
            seed,
            config.data.image_size,
            views.crop_area,
            views.crop_aspect,
            views.min_overlap,
            views.draws,
        )
        return {**sample, "index": index}

    dataset = tf.data.Dataset.range(first_step * batch, last_step * batch)
    dataset = dataset.map(pair, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)
    return check_view_pairs(dataset.batch(batch, drop_remainder=True).prefetch(4), batch, config.data.image_size)


def shuffled_index(place, count, seed, epoch):
    """The image at a place of an epoch's order. A batch larger than the source goes round it."""
    place = tf.cast(place, tf.int64) % count
    key = tf.cast(tf.stack([tf.constant(seed, tf.int64), tf.cast(epoch, tf.int64)]), tf.int64)
    return tf.random.experimental.index_shuffle(place, seed=key, max_index=tf.constant(count - 1, tf.int64))


def sample_seed(seed, epoch, index):
    """(2,) seed of the geometry of one image in one epoch."""
    return tf.stack([tf.constant(seed, tf.int64) + tf.cast(epoch, tf.int64) * 2**32, tf.cast(index, tf.int64)])


def read_or_substitute(files, index, seed, epoch, bad: BadImages):
    """Decodes an image; an unreadable one is noted and replaced by one drawn from (seed, epoch, index, try)."""
    count = files.shape[0]

    def note(index):
        bad.add(int(index))
        return index

    def another(tried, index, _image, _readable):
        # In a cond, so that Python is called for unreadable images only.
        noted = tf.ensure_shape(tf.numpy_function(note, [index], tf.int64), [])
        key = tf.stack([sample_seed(seed, epoch, noted)[0], noted * SUBSTITUTES + tried])
        drawn = tf.random.stateless_uniform([], seed=key, maxval=count, dtype=tf.int64)
        return (tried + 1, drawn, *try_decode(files[drawn]))

    first = (tf.constant(0, tf.int64), index, *try_decode(files[index]))
    tried, index, image, readable = tf.while_loop(
        lambda tried, _index, _image, readable: ~readable & (tried < SUBSTITUTES),
        another,
        first,
        shape_invariants=(
            tf.TensorShape([]),
            tf.TensorShape([]),
            tf.TensorShape([None, None, 3]),
            tf.TensorShape([]),
        ),
    )
    with tf.control_dependencies([tf.debugging.Assert(readable, ["no readable image found in", tried, "tries"])]):
        return tf.identity(image), index


def try_decode(path):
    """(H, W, 3) uint8 RGB and whether reading and decoding worked; a black pixel where not. Never raises.

    A failing op would end the whole pipeline, so the ops run where Python can catch it; they release the GIL.
    """

    def attempt(path):
        try:
            return read_image(path).numpy(), True
        except tf.errors.OpError:
            return np.zeros([1, 1, 3], np.uint8), False

    image, readable = tf.numpy_function(attempt, [path], [tf.uint8, tf.bool], stateful=False)
    return tf.ensure_shape(image, [None, None, 3]), tf.ensure_shape(readable, [])


def read_image(path):
    """(H, W, 3) uint8 RGB of a file; of an animation, the first frame. Raises what TensorFlow raises."""
    return tf.io.decode_image(tf.io.read_file(path), channels=3, expand_animations=False)


def check_readable(paths: list[str], bad: BadImages, tries: int = 64) -> None:
    """Decodes images spread over the source before a run begins.

    Raises:
        ValueError: none of them can be decoded.
    """
    step = max(1, len(paths) // tries)
    chosen = range(0, len(paths), step)
    readable = 0
    for index in chosen:
        try:
            read_image(paths[index])
            readable += 1
        except tf.errors.OpError:
            bad.add(index)
    if not readable:
        raise ValueError(
            f"Expected readable images, received {len(paths)} files none of which could be decoded (tried "
            f"{len(chosen)}, first {paths[0]}). Fix: --data a folder with photos"
        )
    bad.check()
