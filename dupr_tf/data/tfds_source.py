"""Images of a data set of TensorFlow Datasets that is prepared on this machine. Nothing is ever downloaded."""

from __future__ import annotations

import hashlib
import os
import re

import numpy as np
import tensorflow as tf

from dupr_tf.data.formats import TFDS, check_tfds
from dupr_tf.data.image_source import ImageSource
from dupr_tf.data.shards import read_record, record_offsets
from dupr_tf.errors import UserError

NAME = re.compile(r"(?P<name>\w+(/[\w.-]+)?(:\d+\.\d+\.\d+)?)(:(?P<split>.+))?")


class TfdsSource(ImageSource):
    """The images of a split, in the order of its files; a record's checksums are compared each time it is read.

    The files of the data set are read where they are. When they are opened, 12 bytes before each record are read, to
    learn where the records begin (8 bytes of memory each).

    Args:
        name: `NAME[/CONFIG][:VERSION][:SPLIT]`, e.g. `imagenette/full-size:train[:10%]`; without a split, `train`.
            `TFDS_DATA_DIR` says where data sets are, if not in `~/tensorflow_datasets`.

    Raises:
        UserError: the data set is not prepared, has no such split, no image or several, or damaged files.
    """

    def __init__(self, name: str):
        builder, split = _builder(name)
        self.label = f"{builder.info.full_name} {split}"
        self.feature = _image_feature(builder, name)
        offsets = [_wanted_offsets(part) for part in _instructions(builder, split, name)]
        if not sum(len(wanted) for _, wanted in offsets):
            raise UserError(None, f"{self.label} has no images.", "Choose another split.")
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


def open_tfds(root: str) -> tuple[str, TfdsSource]:
    """The root as it is, `tfds:NAME`, and the images of that data set."""
    check_tfds(root)
    return str(root), TfdsSource(str(root).removeprefix(TFDS))


def _builder(name):
    from tensorflow_datasets.core import read_only_builder, registered

    match = NAME.fullmatch(name)
    if match is None:
        raise UserError(
            None, f"Expected tfds:NAME[/CONFIG][:VERSION][:SPLIT], received tfds:{name}.", "Pass tfds:NAME:train."
        )
    try:
        builder = read_only_builder.builder_from_files(match["name"], data_dir=os.environ.get("TFDS_DATA_DIR"))
    except registered.DatasetNotFoundError:
        raise UserError(
            None,
            f"tfds:{name} is not prepared on this machine.",
            f"Run `tfds build {match['name']}` first, or set TFDS_DATA_DIR to the folder it is in.",
        ) from None
    return builder, match["split"] or "train"


def _image_feature(builder, name) -> str:
    import tensorflow_datasets as tfds

    file_format = builder.info.file_format
    if file_format != tfds.core.FileFormat.TFRECORD:
        raise UserError(
            None,
            f"The files of tfds:{name} are {file_format.value}, where only TFRecord can be read.",
            "Run tfds build --file_format=tfrecord.",
        )
    images = sorted(k for k, feature in builder.info.features.items() if isinstance(feature, tfds.features.Image))
    if len(images) > 1 and "image" in images:
        images = ["image"]
    if len(images) != 1:
        raise UserError(
            None,
            f"Expected one image in each example of tfds:{name}, or one called image, received {images or 'none'}.",
            "Choose another data set.",
        )
    return images[0]


def _instructions(builder, split, name):
    try:
        return builder.info.splits[split].file_instructions
    except (KeyError, ValueError, AssertionError):
        splits = ", ".join(builder.info.splits)
        raise UserError(None, f"tfds:{name} has no split {split}.", f"Choose from {splits}.") from None


def _wanted_offsets(part):
    """(file, (n,) int64 offsets) of what a split takes of a file."""
    offsets = record_offsets(part.filename)
    if len(offsets) != part.examples_in_shard:
        raise UserError(
            None,
            f"{part.filename} has {len(offsets)} examples, where {part.examples_in_shard} were written.",
            "Prepare the data set again.",
        )
    return part.filename, np.array(offsets[part.skip : part.skip + part.take], np.int64)
