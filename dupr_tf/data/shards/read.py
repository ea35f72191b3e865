"""Reads packed images one by one, in any order, from ArrayRecord files."""

from __future__ import annotations

import bisect
import functools
import hashlib
import itertools
import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from dupr_tf.data.images.decode import Unusable
from dupr_tf.data.images.source import ImageSource
from dupr_tf.data.shards.index import REPAIR, name_in, read_manifest, read_sidecar
from dupr_tf.errors import UserError
from dupr_tf.text import one_line

RANDOM_ACCESS = "readahead_buffer_size:0,max_parallelism:0,footer_prefetch_bytes:65536"
MOST_OPEN = 10_000  # files
BUFFER = 32768  # bytes; larger buffers read more than an image


class Part(NamedTuple):
    """Describes records `first` to `first + count` of an ArrayRecord file with `records` records."""

    path: str
    first: int
    count: int
    records: int


class Records:
    """Reads records by number over several ArrayRecord files. Threads may share it, and it can be pickled.

    Each process opens a file when it first reads from it. It keeps at most half of its allowed number of files open.
    Other files are opened for each record (0.15 ms).
    """

    def __init__(self, parts: Sequence[Part]):
        import_array_record()
        self.parts = list(parts)
        self._ends = list(itertools.accumulate(part.count for part in self.parts))
        self._readers = {}

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_readers": {}}

    def place(self, index: int) -> tuple[int, int]:
        """Returns (number of the part, number of the record in its file)."""
        number = bisect.bisect_right(self._ends, index)
        part = self.parts[number]
        return number, index - self._ends[number] + part.count + part.first

    def read(self, index: int) -> bytes:
        """Reads the bytes of a record. Raises `Unusable` if the checksum differs or the file cannot be read."""
        number, record = self.place(index)
        reader = self._readers.get(number) or self._open(number)
        try:
            return reader.read(record, record + 1)[0]  # a list of numbers takes time for every record of the file
        except RuntimeError as error:
            raise Unusable(f"damaged: {one_line(error).split(' (')[0].split(';')[0]}") from None

    def check(self, fix: str) -> None:
        """Opens every file. Raises UserError with this fix if one is missing or has another number of records."""
        for number, part in enumerate(self.parts):
            try:
                self._open(number)
            except Unusable:
                raise UserError(None, f"{part.path} is damaged: it has no {part.records:,} records.", fix) from None

    def _open(self, number: int):
        part = self.parts[number]
        module = import_array_record()
        reader = module.ArrayRecordReader(part.path, RANDOM_ACCESS, file_reader_buffer_size=BUFFER)
        if not reader.ok() or reader.num_records() != part.records:
            raise Unusable(f"damaged: {part.path} does not have the {part.records:,} records that were written")
        if len(self._readers) < _files_to_keep():
            self._readers[number] = reader
        return reader


def import_array_record():
    """Imports the module that reads and writes ArrayRecord files. Raises UserError if it is not installed."""
    try:
        from array_record.python import array_record_module
    except ImportError:
        raise UserError(
            None,
            "Packed shards need the package array_record, which is not installed (there is none for Windows).",
            "Use the folder of images.",
        ) from None
    return array_record_module


def _files_to_keep() -> int:
    import resource  # not on Windows, where there is no ArrayRecord either

    files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return MOST_OPEN if files == resource.RLIM_INFINITY else min(MOST_OPEN, files // 2)


class ShardSource(ImageSource):
    """Reads the images that `dupr-tf pack` wrote.

    Its constructor compares the seals of manifest and sidecars, and size and number of records of each shard. When an
    image is read, ArrayRecord compares its checksum. `dupr-tf pack --verify` compares whole shards.

    Args:
        root: folder of the shards.

    Raises:
        UserError: packing has not ended, or a file is missing or damaged.
    """

    def __init__(self, root: str | Path):
        self.root = os.path.abspath(root)
        _, self.shards = read_manifest(self.root)
        for shard in self.shards:
            read_sidecar(self.root, shard)
        self._records = Records([Part(os.path.join(self.root, s.file), 0, s.images, s.images) for s in self.shards])
        self._records.check(REPAIR)

    def __len__(self) -> int:
        return len(self._records)

    def name(self, index: int) -> str:
        """Returns the name of an image in the packed folder, and its place in the shards."""
        number, record = self._records.place(index)
        where = f"record {record} of {self._records.parts[number].path}"
        try:
            return f"{name_in(_lines(self.root, self.shards[number])[record])} ({where})"
        except (UserError, OSError):  # a message must not fail because the sidecar was lost since the start
            return where

    def read(self, index: int) -> bytes:
        return self._records.read(index)

    def digest(self, root: str) -> str:
        return hashlib.sha256("".join(shard.seal for shard in self.shards).encode()).hexdigest()


_lines = functools.lru_cache(maxsize=1)(read_sidecar)  # names are read in order


def open_shards(root: str | Path) -> tuple[str, ShardSource]:
    """Returns the absolute root, and the images of its shards."""
    source = ShardSource(root)
    return source.root, source
