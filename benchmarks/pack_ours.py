"""Our two sources of images."""

from __future__ import annotations

from pathlib import Path

import tensorflow as tf

from benchmarks.photos import photos
from dupr_tf.data.image_source import Files, map_contents
from dupr_tf.data.pack import PackSettings, pack
from dupr_tf.data.pipeline import shuffled_index
from dupr_tf.data.shards import Shards

PASSES = 10


def files(data, files):
    """Every file by itself."""
    return _work(Files(photos(data, files)))


def shards(data, files):
    """The same, packed without changing a byte."""
    folder = Path(photos(data, files)[0]).parent
    packed = folder.with_name(folder.name + "_packed")
    pack(folder, packed, PackSettings(shuffle=False))
    return _work(Shards(packed))


def _work(source):
    numbers = tf.data.Dataset.range(PASSES * len(source))

    def index_of(number):
        return shuffled_index(number % len(source), len(source), 0, number // len(source))

    lengths = map_contents(source, numbers, index_of, lambda _, content: tf.strings.length(content)).batch(256)

    def work():
        total = lengths.reduce(tf.constant(0, tf.int64), lambda a, b: a + tf.reduce_sum(tf.cast(b, tf.int64)))
        assert int(total) > 0
        return PASSES * len(source)

    return work
