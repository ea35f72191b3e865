"""Passes the batches of a reader to Keras' `fit` as a `tf.data.Dataset`."""

from __future__ import annotations

import tensorflow as tf

from dupr_tf.data.reader import Reader

AHEAD = 2  # batches read ahead


def feed(reader: Reader) -> tf.data.Dataset:
    """Creates a dataset of the remaining batches of a reader. Iterate over it once."""
    options = tf.data.Options()
    options.experimental_distribute.auto_shard_policy = tf.data.experimental.AutoShardPolicy.OFF
    dataset = tf.data.Dataset.from_generator(lambda: reader, output_signature=tensor_specs(reader.signature))
    dataset = dataset.apply(tf.data.experimental.assert_cardinality(len(reader)))
    return dataset.prefetch(AHEAD).with_options(options)


def tensor_specs(signature: dict) -> dict:
    """Converts the signature of a reader to `tf.TensorSpec`s."""
    return {
        name: tensor_specs(spec) if isinstance(spec, dict) else tf.TensorSpec(*spec) for name, spec in signature.items()
    }
