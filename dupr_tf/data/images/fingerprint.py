"""Checks whether the image files of a run are still the same, with one `stat` for each file."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import os
import random
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from dupr_tf.files import open_file
from dupr_tf.text import escape

ROW = np.dtype([("name", "<u8"), ("size", "<i8"), ("time", "<i8")])  # hash of the name, bytes, nanoseconds
SAMPLED = 1000  # images whose first bytes are compared
HEAD = 1 << 16  # bytes
THREADS, CHUNK = 8, 4096  # a network file system answers several requests at a time
NAMED = 3  # changed images that a message names


@dataclasses.dataclass(frozen=True)
class Fingerprint:
    """Name, size and time of each file, and sha256 digests of the first bytes of a sample of them.

    Args:
        paths: the files, in order.
        root: folder that names are relative to.
    """

    paths: Sequence[str]
    root: str | os.PathLike

    @functools.cached_property
    def rows(self) -> np.ndarray:
        """Returns an array (files,) of `ROW`. Size and time are -1 for a missing file."""
        chunks = [self.paths[first : first + CHUNK] for first in range(0, len(self.paths), CHUNK)]
        with ThreadPoolExecutor(THREADS) as pool:
            rows = [row for chunk in pool.map(self._stat, chunks) for row in chunk]
        return np.array(rows, ROW)

    @functools.cached_property
    def heads(self) -> dict[int, str]:
        """Returns {position: sha256} of the first `HEAD` bytes of up to `SAMPLED` files; "" for a missing file."""
        positions = random.Random(0).sample(range(len(self.paths)), min(SAMPLED, len(self.paths)))
        return {position: self.head(position) for position in sorted(positions)}

    def name(self, position: int) -> str:
        return relative_name(self.paths[position], self.root)

    def head(self, position: int) -> str:
        try:
            with open_file(self.paths[position]) as file:
                return hashlib.sha256(file.read(HEAD)).hexdigest()
        except OSError:
            return ""

    def changes(self, rows: np.ndarray, heads: dict[int, str]) -> list[str]:
        """Lists the files that differ from a record of the same number of files.

        A file with another size has changed. If only the time differs, the first bytes are compared, if recorded.

        Args:
            rows, heads: the rows and digests in the record.
        """
        now, changed = self.rows, []
        for position in np.flatnonzero((now["size"] != rows["size"]) | (now["time"] != rows["time"])).tolist():
            before, after = int(rows["size"][position]), int(now["size"][position])
            if before != after:
                changed.append(f"{escape(self.name(position))} (was {_size(before)}, is {_size(after)})")
            elif position in heads and heads[position] != self.head(position):
                changed.append(f"{escape(self.name(position))} (other contents)")
        return changed

    def new_names(self, rows: np.ndarray) -> Iterator[str]:
        """Yields the names that a record lacks."""
        for position in np.flatnonzero(~np.isin(self.rows["name"], rows["name"])).tolist():
            yield escape(self.name(position))

    def _stat(self, paths: Sequence[str]) -> list[tuple[int, int, int]]:
        return [(_hash(relative_name(path, self.root)), *_size_and_time(path)) for path in paths]


def relative_name(path: str, root: str | os.PathLike) -> str:
    """Returns `os.path.relpath`, which takes 20 times as long for a path below the root."""
    prefix = os.path.join(root, "")
    return path[len(prefix) :] if path.startswith(prefix) else os.path.relpath(path, root)


def _hash(name: str) -> int:
    return int.from_bytes(hashlib.blake2b(os.fsencode(name), digest_size=8).digest(), "little")


def _size_and_time(path: str) -> tuple[int, int]:
    try:
        status = os.stat(path)
    except OSError:
        return -1, -1
    return status.st_size, min(max(status.st_mtime_ns, -(2**63)), 2**63 - 1)


def _size(size: int) -> str:
    return "missing" if size < 0 else f"{size:,} bytes"
