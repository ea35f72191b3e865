"""Files in, ViewPair batches out. A batch is a function of (seed, step): a resumed run sees what a whole run would."""

from __future__ import annotations

import os

import tensorflow as tf

from dupr_tf.batch import check_view_pairs
from dupr_tf.config import Config
from dupr_tf.data.bad_images import BadImages
from dupr_tf.data.decoding import read_pair

SUBSTITUTES = 32  # images tried in place of an unreadable one before the run gives up


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
    files, last = tf.constant([os.fsencode(path) for path in paths]), last_step * batch  # names need not be UTF-8

    def position(number):
        """(epoch, image index) of the number-th sample of the run."""
        epoch, place = number // (per_epoch * batch), number % (per_epoch * batch)
        return epoch, shuffled_index(place, len(paths), config.train.seed, epoch)

    def cut(seed, shown):
        content = tf.io.read_file(files[shown])
        return read_pair(content, seed, config.data.image_size, config.views, config.data.max_pixels)

    def pair_of(number, epoch, index, shown):
        """The number-th sample; image `shown` stands in for `index` where that cannot be read."""
        return {**cut(sample_seed(config.train.seed, epoch, index), shown), "index": shown}, number

    def pair(number):
        epoch, index = position(number)
        return pair_of(number, epoch, index, index)

    def pair_despite_bad_image(number):
        epoch, index = position(number)
        return pair_of(number, epoch, index, usable_index(cut, len(paths), index, config.train.seed, epoch, bad))[0]

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


def usable_index(cut, count, index, seed, epoch, bad: BadImages):
    """`index`, or if that image is unusable (which is noted) another, drawn from (seed, epoch, index, try).

    Args:
        cut: (seed of the geometry, image index) -> sample; fails as it will when the sample is made.
        count: images in the source.
        index: () int64.
        seed: of the run.
        epoch: () int64.
        bad: looks at the images.
    """

    geometry = sample_seed(seed, epoch, index)

    def usable_whole(shown):
        return not bad.is_bad(int(shown))

    def usable_after_all(geometry, shown):
        """Of the image that failed: there may have been an error in reading it that is over."""
        if bad.is_bad(int(shown)):
            return False
        try:
            cut(tf.constant(geometry), tf.constant(shown))
            return True
        except tf.errors.OpError:
            bad.add(int(shown), "damaged: whole, it decodes, but not in part")
            return False

    def ask(question, *about):  # the operations run where Python catches what they raise
        return tf.ensure_shape(tf.numpy_function(question, about, tf.bool), [])

    def another(tried, shown, _usable):
        key = tf.stack([geometry[0], shown * SUBSTITUTES + tried])
        drawn = tf.random.stateless_uniform([], seed=key, maxval=count, dtype=tf.int64)
        return tried + 1, drawn, ask(usable_whole, drawn)

    tried, shown, is_usable = tf.while_loop(
        lambda tried, _shown, is_usable: ~is_usable & (tried < SUBSTITUTES),
        another,
        (tf.constant(0, tf.int64), index, ask(usable_after_all, geometry, index)),
    )
    with tf.control_dependencies([tf.debugging.Assert(is_usable, ["no readable image found in", tried, "tries"])]):
        return tf.identity(shown)
