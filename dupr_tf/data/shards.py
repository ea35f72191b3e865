"""Images out of packed shards, any of them at once: what makes a shuffle over all images exact, and a resume too.

Blocks of images are read in one call of Python, which is cheaper than reading files. Measured too: TensorFlow's own
record reader at an offset costs 50 µs an image more than a file does, a call of Python for each image 130 µs more.
"""

from __future__ import annotations

import hashlib
import logging
import os
import zlib
from pathlib import Path

import numpy as np
import tensorflow as tf

from dupr_tf.data.image_source import ImageSource
from dupr_tf.data.shard_files import FRAME, open_file, read_entries, read_manifest
from dupr_tf.errors import UserError

log = logging.getLogger(__name__)
KEPT_OPEN = 256  # shards; further ones are opened for each image, since a process may have 1,024 files


class Shards(ImageSource):
    """The images `dupr-tf pack` wrote.

    When it is opened, the manifest and every index are compared with their sha256, and the size of every shard. When an
    image is read, its bytes are compared with the CRC-32 in the index; what differs is never decoded, and takes the way
    of an unreadable image. `dupr-tf pack --verify` compares the sha256 of whole shards.

    Args:
        root: folder of the shards.

    Raises:
        UserError: packing has not ended, or manifest, index or shard are damaged.
    """

    def __init__(self, root: str | Path):
        _, shards = read_manifest(root)
        self.root = Path(root)
        self.files = [str(Path(os.path.abspath(root)) / shard.file) for shard in shards]
        self.entries = read_entries(root, shards)
        self.ends = np.cumsum([shard.images for shard in shards])
        self._open = {}

    def __len__(self) -> int:
        return len(self.entries)

    def name(self, index: int) -> str:
        """The image's name in the folder that was packed, and where it is now."""
        shard, row = self._place(index)
        where = f"record {index - (self.ends[shard - 1] if shard else 0)} of {self.files[shard]}"
        try:
            serialized = read_record(self.files[shard], int(row["record"])).numpy()
            name = tf.train.Example.FromString(serialized).features.feature["image/filename"].bytes_list.value[0]
        except tf.errors.OpError:
            return f"{where}, which is damaged"
        return f"{os.fsdecode(name)} ({where})"

    def digest(self, root: str) -> str:
        return hashlib.sha256(self.entries.tobytes()).hexdigest()  # lengths and checksums of the images' bytes

    def read(self, index):
        return self.read_block(tf.reshape(index, [1]))[0]

    def read_block(self, indices):
        """(n,) string of (n,) int64; "" where the bytes on the disk are not those that were packed."""
        contents = tf.numpy_function(self.contents, [indices], tf.string, stateful=False)
        return tf.ensure_shape(contents, [None])

    def _place(self, index):
        return int(np.searchsorted(self.ends, index, side="right")), self.entries[index]

    def contents(self, indices):
        """(n,) bytes of (n,) integers, as NumPy arrays; b"" where they are not those that were packed."""
        shards = np.searchsorted(self.ends, indices, side="right").tolist()
        rows = self.entries[indices]
        starts = (rows["record"] + rows["start"]).tolist()
        contents = map(self._content, shards, starts, rows["length"].tolist(), rows["crc32"].tolist())
        return np.array([*contents, None], object)[:-1]  # the None: bytes alone would become an array of fixed width

    def _content(self, shard, start, length, crc32) -> bytes:
        try:
            content = self._read(shard, start, length)
        except OSError as error:
            log.warning("cannot read %s: %s", self.files[shard], error)
            return b""
        return content if zlib.crc32(content) == crc32 else b""

    def _read(self, shard, start, length) -> bytes:
        file = self._open.get(shard)
        if file is None:
            file = open_file(self.files[shard])
            if len(self._open) >= KEPT_OPEN:
                with file:
                    return os.pread(file.fileno(), length, start)
            file = self._open.setdefault(
                shard, file
            )  # another thread may have been first: the other file closes itself
        return os.pread(file.fileno(), length, start)


def open_shards(root: str | Path) -> tuple[str, Shards]:
    """The absolute root, and the images of its shards."""
    return os.path.abspath(root), Shards(root)


def read_record(file, offset):
    """() string, the payload of the TFRecord that begins at an offset; DataLossError where its checksums differ."""
    records = tf.raw_ops.TFRecordDatasetV2(
        filenames=[file],
        compression_type="",
        buffer_size=tf.constant(0, tf.int64),
        byte_offsets=[tf.cast(offset, tf.int64)],
    )
    return tf.raw_ops.DatasetToSingleElement(
        dataset=tf.raw_ops.TakeDataset(
            input_dataset=records, count=tf.constant(1, tf.int64), output_types=[tf.string], output_shapes=[[]]
        ),
        output_types=[tf.string],
        output_shapes=[[]],
    )[0]


def record_offsets(path: str | Path) -> list[int]:
    """Where each record of a TFRecord file begins. Reads the 12 bytes before each, nothing else.

    Raises:
        UserError: the file ends within a record.
    """
    offsets, offset = [], 0
    before, behind = FRAME
    with open_file(path) as file:
        size = os.fstat(file.fileno()).st_size
        while offset < size:
            offsets.append(offset)
            offset += before + int.from_bytes(os.pread(file.fileno(), 8, offset), "little") + behind
    if offset != size:
        raise UserError(None, f"A record of {path} is cut or damaged.", "Copy it again.")
    return offsets
