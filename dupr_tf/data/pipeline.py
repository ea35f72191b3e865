"""Files in, ViewPair batches out. A batch is a function of (seed, step): a resumed run sees what a whole run would."""

from __future__ import annotations

import logging
import threading

import tensorflow as tf

from dupr_tf.batch import check_view_pairs
from dupr_tf.config import Config
from dupr_tf.data.decoding import read_image, read_pair

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
    files, last = tf.constant(paths), last_step * batch

    def position(number):
        """(epoch, image index) of the number-th sample of the run."""
        epoch, place = number // (per_epoch * batch), number % (per_epoch * batch)
        return epoch, shuffled_index(place, len(paths), config.train.seed, epoch)

    def pair_of(number, epoch, index, shown):
        """The number-th sample; image `shown` stands in for `index` where that cannot be read."""
        seed = sample_seed(config.train.seed, epoch, index)
        sample = read_pair(tf.io.read_file(files[shown]), seed, config.data.image_size, config.views)
        return {**sample, "index": shown}, number

    def pair(number):
        epoch, index = position(number)
        return pair_of(number, epoch, index, index)

    def pair_despite_bad_image(number):
        epoch, index = position(number)
        return pair_of(number, epoch, index, readable_index(files, index, config.train.seed, epoch, bad))[0]

    numbers = tf.data.Dataset.range(first_step * batch, last)
    samples = numbers.map(pair, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)
    samples = fill_gaps(samples.ignore_errors(), first_step * batch, last, pair_despite_bad_image)
    batches = samples.rebatch(batch, drop_remainder=True)
    dataset = batches.apply(tf.data.experimental.assert_cardinality(last_step - first_step)).prefetch(4)
    return check_view_pairs(dataset, batch, config.data.image_size)


def fill_gaps(samples, first, last, replace):
    """Puts a sample in the place of each that failed.

    An operation that fails inside a dataset loses its element and nothing else, which costs good images nothing; the
    gap shows in the numbers of those that are left.

    Args:
        samples: dataset of (sample, number), numbers rising from `first` to `last` - 1 with gaps.
        first, last: () int.
        replace: number -> sample for a gap.

    Returns:
        A dataset of samples with a leading axis, of any length, `last - first` rows in all.
    """
    spec = samples.element_spec[0]
    nothing = tf.nest.map_structure(lambda s: tf.zeros(s.shape, s.dtype), spec)
    end = tf.data.Dataset.from_tensors((nothing, tf.constant(last, tf.int64)))

    def gap_before(expected, element):
        return element[1] + 1, (*element, expected)

    def with_gap(sample, number, expected):
        own = tf.nest.map_structure(lambda x: tf.repeat(x[None], tf.cast(number < last, tf.int32), 0), sample)

        def filled():
            gap = tf.map_fn(replace, tf.range(expected, number), fn_output_signature=spec)
            return tf.nest.map_structure(lambda a, b: tf.concat([a, b], 0), gap, own)

        return tf.cond(expected < number, filled, lambda: own)

    samples = samples.concatenate(end).scan(tf.constant(first, tf.int64), gap_before)
    return samples.map(with_gap)


def shuffled_index(place, count, seed, epoch):
    """The image at a place of an epoch's order. A batch larger than the source goes round it."""
    place = tf.cast(place, tf.int64) % count
    key = tf.cast(tf.stack([tf.constant(seed, tf.int64), tf.cast(epoch, tf.int64)]), tf.int64)
    return tf.random.experimental.index_shuffle(place, seed=key, max_index=tf.constant(count - 1, tf.int64))


def sample_seed(seed, epoch, index):
    """(2,) seed of the geometry of one image in one epoch."""
    return tf.stack([tf.constant(seed, tf.int64) + tf.cast(epoch, tf.int64) * 2**32, tf.cast(index, tf.int64)])


def readable_index(files, index, seed, epoch, bad: BadImages):
    """`index`, or if that image is unreadable (which is noted) another, drawn from (seed, epoch, index, try)."""
    count = files.shape[0]

    def note(index):
        bad.add(int(index))
        return index

    def another(tried, index, _readable):
        noted = tf.ensure_shape(tf.numpy_function(note, [index], tf.int64), [])
        key = tf.stack([sample_seed(seed, epoch, noted)[0], noted * SUBSTITUTES + tried])
        drawn = tf.random.stateless_uniform([], seed=key, maxval=count, dtype=tf.int64)
        return tried + 1, drawn, is_readable(files[drawn])

    tried, index, readable = tf.while_loop(
        lambda tried, _index, readable: ~readable & (tried < SUBSTITUTES),
        another,
        (tf.constant(0, tf.int64), index, is_readable(files[index])),
    )
    with tf.control_dependencies([tf.debugging.Assert(readable, ["no readable image found in", tried, "tries"])]):
        return tf.identity(index)


def is_readable(path):
    """() bool: whether a file can be read and decoded, whole. Never raises: the operations run where Python catches."""

    def attempt(path):
        try:
            read_image(tf.io.read_file(path))
            return True
        except tf.errors.OpError:
            return False

    return tf.ensure_shape(tf.numpy_function(attempt, [path], tf.bool, stateful=False), [])


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
            read_image(tf.io.read_file(paths[index]))
            readable += 1
        except tf.errors.OpError:
            bad.add(index)
    if not readable:
        raise ValueError(
            f"Expected readable images, received {len(paths)} files none of which could be decoded (tried "
            f"{len(chosen)}, first {paths[0]}). Fix: --data a folder with photos"
        )
    bad.check()
