"""Reads images of a TensorFlow Datasets data set that is prepared on this machine. Never downloads anything."""

from __future__ import annotations

import hashlib
import os
import re

from dupr_tf.data.images.decode import Unusable
from dupr_tf.data.images.source import ImageSource
from dupr_tf.data.layouts import TFDS, check_tfds
from dupr_tf.data.shards.read import Part, Records
from dupr_tf.errors import UserError

NAME = re.compile(r"(?P<name>\w+(/[\w.-]+)?(:\d+\.\d+\.\d+)?)(:(?P<split>.+))?")


class TfdsSource(ImageSource):
    """Reads the undecoded images of a split, in the order of its files.

    The ArrayRecord files of the data set are read in place, and only the image is unpacked. TFDS's own `as_data_source`
    decodes the other features too, and opens files without limit.

    Args:
        name: `NAME[/CONFIG][:VERSION][:SPLIT]`, e.g. `imagenette/full-size:train[:10%]`; without a split, `train`.
            `TFDS_DATA_DIR` is the folder of data sets; default `~/tensorflow_datasets`.

    Raises:
        UserError: the data set is not prepared as ArrayRecord, has no such split, no image or several, or is damaged.
    """

    def __init__(self, name: str):
        builder, split = _builder(name)
        self._label = f"{builder.info.full_name} {split}"
        self._feature = _image_feature(builder, name)
        instructions = _instructions(builder, split, name)
        self._records = Records([Part(i.filename, i.skip, i.take, i.examples_in_shard) for i in instructions])
        if not len(self):
            raise UserError(None, f"{self._label} has no images.", "Choose another split.")
        self._records.check("Prepare the data set again.")

    def __len__(self) -> int:
        return len(self._records)

    def name(self, index: int) -> str:
        number, record = self._records.place(index)
        return f"{self._label} example {index} (record {record} of {self._records.parts[number].path})"

    def read(self, index: int) -> bytes:
        from google.protobuf.message import DecodeError
        from tensorflow_datasets.proto import tf_example_pb2

        try:
            features = tf_example_pb2.Example.FromString(self._records.read(index)).features.feature
            return features[self._feature].bytes_list.value[0]
        except (DecodeError, IndexError):
            raise Unusable(f"damaged: no image in the feature {self._feature}") from None

    def digest(self, root: str) -> str:
        parts = [(self._label, os.path.basename(part.path), *part[1:]) for part in self._records.parts]
        return hashlib.sha256(repr(parts).encode()).hexdigest()


def open_tfds(root: str) -> tuple[str, TfdsSource]:
    """Returns the root `tfds:NAME` unchanged, and the images of that data set."""
    check_tfds(root)
    return str(root), TfdsSource(str(root).removeprefix(TFDS))


def _builder(name: str):
    from tensorflow_datasets.core import read_only_builder, registered

    match = NAME.fullmatch(name)
    if match is None:
        problem = f"Expected tfds:NAME[/CONFIG][:VERSION][:SPLIT], received tfds:{name}."
        raise UserError(None, problem, "Pass tfds:NAME:train.")
    command = f"`tfds build {match['name']} --file_format=array_record`"
    try:
        builder = read_only_builder.builder_from_files(match["name"], data_dir=os.environ.get("TFDS_DATA_DIR"))
    except registered.DatasetNotFoundError:
        problem = f"tfds:{name} is not prepared on this machine."
        raise UserError(None, problem, f"Run {command}, or set TFDS_DATA_DIR to the folder of the data set.") from None
    if builder.info.file_format.value != "array_record":
        problem = f"tfds:{name} is prepared as {builder.info.file_format.value}, which cannot be read at random."
        raise UserError(None, problem, f"Run {command}.")
    return builder, match["split"] or "train"


def _image_feature(builder, name: str) -> str:
    from tensorflow_datasets.core.features import Image

    images = sorted(key for key, feature in builder.info.features.items() if isinstance(feature, Image))
    if "image" in images or len(images) == 1:
        return "image" if "image" in images else images[0]
    problem = f"Expected one image in each example of tfds:{name}, or one called image, received {images or 'none'}."
    raise UserError(None, problem, "Choose another data set.")


def _instructions(builder, split: str, name: str) -> list:
    try:
        return builder.info.splits[split].file_instructions
    except (KeyError, ValueError, AssertionError):
        splits = ", ".join(builder.info.splits)
        raise UserError(None, f"tfds:{name} has no split {split}.", f"Choose from {splits}.") from None
