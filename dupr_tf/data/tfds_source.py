"""Images of a data set of TensorFlow Datasets that is prepared on this machine. Nothing is ever downloaded."""

from __future__ import annotations

import hashlib
import os
import re

import numpy as np
import tensorflow as tf

from dupr_tf.data.image_source import ImageSource
from dupr_tf.data.shards import read_record, record_offsets

NAME = re.compile(r"(?P<name>\w+(/[\w.-]+)?(:\d+\.\d+\.\d+)?)(:(?P<split>.+))?")


class TfdsSource(ImageSource):
    """The images of a split, in the order of its files; a record's checksums are compared each time it is read.

    The files of the data set are read where they are. When they are opened, 12 bytes before each record are read, to
    learn where the records begin (8 bytes of memory each).

    Args:
        name: `NAME[/CONFIG][:VERSION][:SPLIT]`, e.g. `imagenette/full-size:train[:10%]`; without a split, `train`.
            `TFDS_DATA_DIR` says where data sets are, if not in `~/tensorflow_datasets`.

    Raises:
        ValueError: the data set is not prepared, has no such split, no image or several, or damaged files.
    """

    def __init__(self, name: str):
        builder, split = _builder(name)
        self.label = f"{builder.info.full_name} {split}"
        self.feature = _image_feature(builder, name)
        offsets = [_wanted_offsets(part) for part in _instructions(builder, split, name)]
        if not sum(len(wanted) for _, wanted in offsets):
            raise ValueError(f"Expected images in {self.label}, received none. Fix: another split")
        self.ends = np.cumsum([len(wanted) for _, wanted in offsets])
        self.files = [file for file, _ in offsets]
        self.offsets = np.concatenate([wanted for _, wanted in offsets])
        self._constants = [tf.constant(values) for values in (self.files, self.ends, self.offsets)]

    def __len__(self) -> int:
        return len(self.offsets)

    def name(self, index: int) -> str:
        file = self.files[int(np.searchsorted(self.ends, index, side="right"))]
        return f"{self.label} example {index} (byte {self.offsets[index]} of {file})"

    def digest(self, root: str) -> str:
        files = "\0".join(os.path.basename(file) for file in self.files)
        return hashlib.sha256(files.encode() + self.offsets.tobytes()).hexdigest()

    def read(self, index):
        files, ends, offsets = self._constants
        index = tf.cast(index, tf.int64)
        shard = tf.searchsorted(ends, index[None], side="right")[0]
        serialized = read_record(files[shard], offsets[index])
        return tf.io.parse_single_example(serialized, {self.feature: tf.io.FixedLenFeature([], tf.string)})[
            self.feature
        ]


def _builder(name):
    from tensorflow_datasets.core import read_only_builder, registered

    match = NAME.fullmatch(name)
    if match is None:
        raise ValueError(
            f"Expected tfds:NAME[/CONFIG][:VERSION][:SPLIT], received tfds:{name}. Fix: --data tfds:NAME:train"
        )
    try:
        builder = read_only_builder.builder_from_files(match["name"], data_dir=os.environ.get("TFDS_DATA_DIR"))
    except registered.DatasetNotFoundError:
        raise ValueError(
            f"Expected a data set that is prepared on this machine, received tfds:{name}. Fix: "
            f"`tfds build {match['name']}` first, or set TFDS_DATA_DIR to the folder it is in"
        ) from None
    return builder, match["split"] or "train"


def _image_feature(builder, name) -> str:
    import tensorflow_datasets as tfds

    file_format = builder.info.file_format
    if file_format != tfds.core.FileFormat.TFRECORD:
        raise ValueError(
            f"Expected a data set in TFRecord files, received tfds:{name} in {file_format.value}. "
            "Fix: tfds build --file_format=tfrecord"
        )
    images = sorted(k for k, feature in builder.info.features.items() if isinstance(feature, tfds.features.Image))
    if len(images) > 1 and "image" in images:
        images = ["image"]
    if len(images) != 1:
        raise ValueError(
            f"Expected one image in each example, or one that is called image, received {images or 'none'} in "
            f"tfds:{name}. Fix: another data set"
        )
    return images[0]


def _instructions(builder, split, name):
    try:
        return builder.info.splits[split].file_instructions
    except (KeyError, ValueError, AssertionError):
        splits = ", ".join(builder.info.splits)
        raise ValueError(f"Expected a split of {splits}, received {split} in tfds:{name}. Fix: one of these") from None


def _wanted_offsets(part):
    """(file, (n,) int64 offsets) of what a split takes of a file."""
    offsets = record_offsets(part.filename)
    if len(offsets) != part.examples_in_shard:
        raise ValueError(
            f"Expected {part.examples_in_shard} examples in {part.filename}, received {len(offsets)}. "
            "Fix: prepare it again"
        )
    return part.filename, np.array(offsets[part.skip : part.skip + part.take], np.int64)
