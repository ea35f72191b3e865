"""Passes the batches of a reader to Keras' `fit` as a `tf.data.Dataset`."""

from __future__ import annotations

import tensorflow as tf

from dupr_tf.data.reader import Reader

AHEAD = 2  # batches read ahead


def feed(reader: Reader) -> tf.data.Dataset:
    """Creates a dataset of the remaining batches of a reader. Iterate over it once.

    `Dataset.from_generator` would do the same. But TensorFlow 2.21 lets it lower a limit of glibc's allocator
    (M_TRIM_THRESHOLD). Freed memory then goes back to the system at once, and every step has to fetch new pages.
    """
    options = tf.data.Options()
    options.experimental_distribute.auto_shard_policy = tf.data.experimental.AutoShardPolicy.OFF
    options.autotune.enabled = False  # nothing here is tuned, and the end of `fit` would wait for the tuner, up to 60 s
    specs = tensor_specs(reader.signature)
    flat = tf.nest.flatten(specs)

    def read(_number):
        arrays = tf.numpy_function(lambda: tf.nest.flatten(next(reader)), [], [spec.dtype for spec in flat])
        shaped = [tf.ensure_shape(array, spec.shape) for array, spec in zip(arrays, flat, strict=True)]
        return tf.nest.pack_sequence_as(specs, shaped)

    return tf.data.Dataset.range(len(reader)).map(read).prefetch(AHEAD).with_options(options)


def tensor_specs(signature: dict) -> dict:
    """Converts the signature of a reader to `tf.TensorSpec`s."""
    return {
        name: tensor_specs(spec) if isinstance(spec, dict) else tf.TensorSpec(*spec) for name, spec in signature.items()
    }
