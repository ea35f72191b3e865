"""Which image comes at which position of a run: a function of the seed and the position, so a run can be resumed."""

from __future__ import annotations

import functools

import numpy as np
import tensorflow as tf

from dupr_tf.data.image_source import as_written


def shuffled(position, count, seed):
    """The image at a position of the run: every epoch is a permutation of its own.

    Args:
        position: () int64.
        count: images of an epoch.
        seed: int.
    """
    return tf.random.experimental.index_shuffle(
        position % count, seed=tf.stack([tf.constant(seed, tf.int64), position // count]), max_index=count - 1
    )


def grouped_positions(sizes: np.ndarray, batch: int, seed: int, steps: int, start: int = 0) -> tf.data.Dataset:
    """Like `shuffled`, with wide and tall images in batches of their own as far as they go: less padding.

    Args:
        sizes: (N, 2) height and width of the images.
        batch: images a step.
        seed: of the order.
        steps: of the whole run.
        start: first step to produce.

    Returns:
        A dataset of (position in the run, image), both () int64.
    """
    tall = sizes[:, 0] > sizes[:, 1]
    epoch_order = functools.lru_cache(2)(lambda epoch: grouped_epoch(tall, batch, seed, epoch))

    def images_of(step):
        positions = np.arange(step * batch, (step + 1) * batch)
        return positions, np.array([epoch_order(int(at) // len(tall))[at % len(tall)] for at in positions])

    def of_step(step):
        pair = tf.numpy_function(images_of, [step], [tf.int64, tf.int64], stateful=False)
        return tuple(tf.ensure_shape(column, [batch]) for column in pair)

    return tf.data.Dataset.range(start, steps).map(as_written(of_step)).unbatch()


def grouped_epoch(tall: np.ndarray, batch: int, seed: int, epoch: int) -> np.ndarray:
    """(N,) a permutation for one epoch, in which batches are of one orientation where they can be.

    Where N is no multiple of the batch, an epoch begins within one: its first images complete that.
    """
    count, rng = len(tall), np.random.default_rng([seed, epoch])
    order = rng.permutation(count)
    lead = min(count, -epoch * count % batch)
    rest = order[lead:]
    groups, left = [], []
    for own in (rest[tall[rest]], rest[~tall[rest]]):
        full = len(own) // batch * batch
        groups += list(own[:full].reshape(-1, batch))
        left.append(own[full:])
    mixed = np.concatenate(left)
    rng.shuffle(mixed)
    full = len(mixed) // batch * batch
    groups += list(mixed[:full].reshape(-1, batch))
    return np.concatenate([order[:lead], *(groups[i] for i in rng.permutation(len(groups))), mixed[full:]])
