"""What the pipeline reads images from: files of their own, packed shards, or a data set of TensorFlow Datasets."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence

import tensorflow as tf

# For what a dataset maps: all of it is written in TensorFlow's operations, and AutoGraph, which finds nothing to
# rewrite in it, would read its source for seconds at every start.
as_written = tf.autograph.experimental.do_not_convert
BLOCK = 64  # images that a source with `read_block` reads at once


class ImageSource:
    """Encoded images by number, the same number for the same image in every run."""

    read_block = None  # a source may have it: (n,) int64 -> (n,) string, "" for what is damaged; cheaper than n `read`s

    def __len__(self) -> int:
        raise NotImplementedError

    def name(self, index: int) -> str:
        """How an image is called in messages."""
        raise NotImplementedError

    def read(self, index):
        """() string, the encoded image of a () int64. An operation of TensorFlow; fails, or is "", where damaged."""
        raise NotImplementedError

    def digest(self, root: str) -> str:
        """sha256 of what tells these images in this order from others, wherever `root` is; no image is read."""
        raise NotImplementedError


class Files(ImageSource):
    """An image a file.

    Args:
        paths: in the order of `list_images`.
    """

    def __init__(self, paths: Sequence[str]):
        self.paths = paths
        self._files = tf.constant([os.fsencode(path) for path in paths])  # names need not be UTF-8

    def __len__(self) -> int:
        return len(self.paths)

    def name(self, index: int) -> str:
        return self.paths[index]

    def read(self, index):
        return tf.io.read_file(self._files[index])

    def digest(self, root: str) -> str:
        names = "\0".join(os.path.relpath(path, root) for path in self.paths)
        return hashlib.sha256(names.encode("utf-8", "surrogateescape")).hexdigest()


def as_source(images: ImageSource | Sequence[str]) -> ImageSource:
    """A list of paths as a source; a source as it is."""
    return images if isinstance(images, ImageSource) else Files(images)


def map_contents(source: ImageSource, numbers, index_of, make):
    """A dataset of `make(number, content)` for a dataset of numbers.

    Args:
        source: of the contents.
        numbers: dataset of () int64.
        index_of: (...) int64 numbers -> the images to read, of the same shape.
        make: (() int64 number, () string content) -> what the dataset holds.
    """
    threads = {"num_parallel_calls": tf.data.AUTOTUNE, "deterministic": True}
    if source.read_block is None:
        return numbers.map(as_written(lambda number: make(number, source.read(index_of(number)))), **threads)
    blocks = numbers.batch(BLOCK).map(as_written(lambda block: (block, source.read_block(index_of(block)))), **threads)
    return blocks.unbatch().map(as_written(make), **threads)
