"""Images in, ViewPair batches out. A batch is a function of (seed, step): a resumed run sees what a whole run would."""

from __future__ import annotations

from collections.abc import Sequence

import tensorflow as tf

from dupr_tf.batch import check_view_pairs
from dupr_tf.config import Config
from dupr_tf.data.bad_images import BadImages
from dupr_tf.data.decoding import read_pair
from dupr_tf.data.image_source import ImageSource, as_source, as_written, map_contents
from dupr_tf.errors import UserError

INDEX_SHUFFLE = (
    498247692  # what tf.random.experimental.index_shuffle, which takes no seed an element, puts before a seed
)
SUBSTITUTES = 32  # images tried in place of an unreadable one before the run gives up


def view_pairs(
    images: ImageSource | Sequence[str],
    config: Config,
    first_step: int,
    last_step: int,
    bad: BadImages,
    worker: tuple[int, int] = (0, 1),
):
    """The batches of steps `first_step` .. `last_step` - 1.

    Every image comes once an epoch, in an order drawn from (seed, epoch); what is left over by full batches is dropped.

    Args:
        images: a source, or image files in the order of `list_images`.
        config: of the run; `data`, `views`, and `train.batch_size`, `train.seed` are read.
        first_step, last_step: optimiser steps.
        bad: gets the unreadable images.
        worker: (w, n): of every batch, only the w-th of n equal parts is read and returned.

    Returns:
        A `tf.data.Dataset` of ViewPair dicts.
    """
    source, rows = as_source(images), WorkerRows(config.train.batch_size, *worker)
    per_epoch = config.steps_per_epoch(len(source)) * config.train.batch_size
    first, last = first_step * rows.share, last_step * rows.share

    def position(number):
        """(epoch, image index) of this worker's number-th sample of the run."""
        number = rows.global_number(number)
        epoch = number // per_epoch
        return epoch, shuffled_index(number % per_epoch, len(source), config.train.seed, epoch)

    def cut(seed, content):
        return read_pair(content, seed, config.data.image_size, config.views, config.data.max_pixels)

    def pair_of(content, number, epoch, index, shown):
        """A sample; image `shown` stands in for `index` where that cannot be read."""
        return {**cut(sample_seed(config.train.seed, epoch, index), content), "index": shown}, number

    def pair(number, content):
        epoch, index = position(number)
        return pair_of(content, number, epoch, index, index)

    def pair_despite_bad_image(number):
        epoch, index = position(number)
        shown = usable_index(cut, source, index, config.train.seed, epoch, bad)
        return pair_of(source.read(shown), number, epoch, index, shown)[0]

    samples = map_contents(source, tf.data.Dataset.range(first, last), lambda number: position(number)[1], pair)
    samples = fill_gaps(samples.ignore_errors(), first, last, pair_despite_bad_image)
    batches = samples.rebatch(rows.share, drop_remainder=True)
    dataset = batches.apply(tf.data.experimental.assert_cardinality(last_step - first_step)).prefetch(4)
    return check_view_pairs(dataset, rows.share, config.data.image_size)


class WorkerRows:
    """Which samples of a run one of several workers reads: rows w · share .. (w + 1) · share - 1 of every batch.

    Args:
        batch: images a step, over all workers.
        worker, workers: this one, from 0, and how many.
    """

    def __init__(self, batch: int, worker: int = 0, workers: int = 1):
        if not 0 <= worker < workers or batch % workers:
            raise UserError(
                "train.batch_size",
                f"Expected a multiple of the {workers} workers, and a worker among them, received {batch} and worker "
                f"{worker}.",
                f"Use {max(1, batch // workers) * workers}.",
            )
        self.batch, self.share, self.first_row = batch, batch // workers, worker * (batch // workers)

    def global_number(self, number):
        """The number in the whole run of this worker's number-th sample."""
        return number // self.share * self.batch + self.first_row + number % self.share


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

    samples = samples.concatenate(end).scan(tf.constant(first, tf.int64), as_written(gap_before))
    return samples.map(as_written(with_gap))


def shuffled_index(place, count, seed, epoch):
    """The image at a place of an epoch's order; (...) of each. A batch larger than the source goes round it."""
    place, epoch = tf.cast(place, tf.int64) % count, tf.cast(epoch, tf.int64)
    key = tf.stack(
        [tf.fill(tf.shape(epoch), tf.constant(word, tf.int64)) for word in (INDEX_SHUFFLE, seed)] + [epoch], -1
    )
    return tf.raw_ops.RandomIndexShuffle(index=place, seed=key, max_index=tf.constant(count - 1, tf.int64), rounds=4)


def sample_seed(seed, epoch, index):
    """(2,) seed of the geometry of one image in one epoch."""
    return tf.stack([tf.constant(seed, tf.int64) + tf.cast(epoch, tf.int64) * 2**32, tf.cast(index, tf.int64)])


def usable_index(cut, source, index, seed, epoch, bad: BadImages):
    """`index`, or if that image is unusable (which is noted) another, drawn from (seed, epoch, index, try).

    Args:
        cut: (seed of the geometry, image's bytes) -> sample; fails as it will when the sample is made.
        source: of the images.
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
            cut(tf.constant(geometry), source.read(tf.constant(shown)))
            return True
        except tf.errors.OpError:
            bad.add(int(shown), "damaged: whole, it decodes, but not in part")
            return False

    def ask(question, *about):  # the operations run where Python catches what they raise
        return tf.ensure_shape(tf.numpy_function(question, about, tf.bool), [])

    def another(tried, shown, _usable):
        key = tf.stack([geometry[0], shown * SUBSTITUTES + tried])
        drawn = tf.random.stateless_uniform([], seed=key, maxval=len(source), dtype=tf.int64)
        return tried + 1, drawn, ask(usable_whole, drawn)

    tried, shown, is_usable = tf.while_loop(
        lambda tried, _shown, is_usable: ~is_usable & (tried < SUBSTITUTES),
        another,
        (tf.constant(0, tf.int64), index, ask(usable_after_all, geometry, index)),
    )
    with tf.control_dependencies([tf.debugging.Assert(is_usable, ["no readable image found in", tried, "tries"])]):
        return tf.identity(shown)
