"""Times our two sources of images."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from benchmarks.photos import photos
from dupr_tf.data.images.source import Files, ImageSource
from dupr_tf.data.shards.pack import PackSettings, pack
from dupr_tf.data.shards.read import ShardSource

PASSES = 10


def files(data, files):
    """Reads one file for each image."""
    return _work(Files(photos(data, files)))


def shards(data, files):
    """Reads the same images from shards, which hold the files unchanged."""
    folder = Path(photos(data, files)[0]).parent
    packed = folder.with_name(folder.name + "_shards")
    pack(folder, packed, PackSettings(shuffle=False))
    return _work(ShardSource(packed))


def _work(source: ImageSource):
    orders = [np.random.default_rng(number).permutation(len(source)).tolist() for number in range(PASSES)]

    def work():
        assert sum(len(source.read(index)) for order in orders for index in order) > 0
        return PASSES * len(source)

    return work
