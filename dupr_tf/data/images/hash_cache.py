"""Keeps the hashes of images in a file, so that a resumed run need not decode the images again.

The file has a line of facts with the sha256 of the rest, then an `ENTRY` for each image. A damaged file is ignored,
because every hash can be computed again.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import time
from pathlib import Path

import numpy as np

from dupr_tf.data.images.decode import MAX_PIXELS, Unusable
from dupr_tf.data.images.duplicates import Hashes, hash_image
from dupr_tf.data.images.fingerprint import ROW
from dupr_tf.data.images.source import ImageSource, Subset, map_in_order
from dupr_tf.files import read_bounded, write_whole
from dupr_tf.records import MISTAKES, parse_json
from dupr_tf.resources import usable_cpus

log = logging.getLogger(__name__)
FORMAT = "dupr_tf hashes 1"
ENTRY = np.dtype([*ROW.descr, ("exact", "S32"), ("near", "<u8")])  # identity of an image, sha256, phash
MOST_BYTES = 1 << 36
LOG_EVERY, SAVE_EVERY = 10.0, 60.0  # seconds
SECONDS = 1.5e-3  # to hash a photo of half a megapixel in one thread


class HashCache:
    """Computes the hashes of images, and remembers them until size or time of the file changes.

    Images that cannot be read are tried again by the next call.

    Args:
        path: file of the hashes. It is read here if it exists. None: nothing is read or written.
        max_pixels: an image with more pixels cannot be used.
        threads: images decoded at a time. Default: one for each usable CPU.
        saves: False to leave the file unchanged.
    """

    def __init__(self, path: Path | None, max_pixels: int = MAX_PIXELS, threads: int | None = None, saves: bool = True):
        self.path, self.max_pixels, self.threads = path, max_pixels, threads or usable_cpus()
        self.saves = saves and path is not None
        self.entries = np.empty(0, ENTRY) if path is None else _read(path, max_pixels)

    def hashes(self, source: ImageSource) -> Hashes:
        """Returns the hashes of the readable images of a source. Logs the progress."""
        entries = np.zeros(len(source), ENTRY)
        for name, column in identities(source).items():
            entries[name] = column
        at = self._find(entries)
        entries[at >= 0] = self.entries[at[at >= 0]]
        unknown = np.flatnonzero(at < 0)
        unreadable = self._compute(source, entries, unknown) if len(unknown) else []
        index = np.setdiff1d(np.arange(len(source)), [number for number, _ in unreadable])
        return Hashes(index, entries["exact"][index], entries["near"][index], unreadable)

    def _find(self, wanted: np.ndarray) -> np.ndarray:
        """Returns the position of each wanted image in the entries, (N,) int64; -1 for unknown images."""
        if not len(self.entries):
            return np.full(len(wanted), -1, np.int64)
        order = np.argsort(self.entries["name"], kind="stable")
        place = np.searchsorted(self.entries["name"], wanted["name"], sorter=order)
        at = order[np.minimum(place, len(order) - 1)]
        same = np.all([self.entries[name][at] == wanted[name] for name in ROW.names], axis=0)
        return np.where(same & (wanted["size"] >= 0), at, -1)

    def _compute(self, source: ImageSource, entries: np.ndarray, unknown: np.ndarray) -> list[tuple[int, str]]:
        """Hashes the unknown images into `entries`, and returns (number, reason) of those that cannot be read."""
        seconds = SECONDS * len(unknown) / self.threads
        log.info("hashing %s images, about %.0f s or more", f"{len(unknown):,}", max(1, seconds))
        numbers, unreadable, kept = unknown.tolist(), [], 0
        logged = saved = time.monotonic()
        hashed = map_in_order(lambda number: hash_image(source, number, self.max_pixels), numbers, self.threads)
        for done, (number, one) in enumerate(zip(numbers, hashed, strict=True), 1):
            if isinstance(one, Unusable):
                unreadable.append((number, str(one)))
            else:
                entries["exact"][number], entries["near"][number] = one
            now = time.monotonic()
            if now - logged >= LOG_EVERY:
                log.info("hashed %s of %s images", f"{done:,}", f"{len(unknown):,}")
                logged = now
            if now - saved >= SAVE_EVERY:
                self._keep(entries, unknown[kept:done], unreadable)
                saved, kept = time.monotonic(), done
        self._keep(entries, unknown[kept:], unreadable)
        return unreadable

    def _keep(self, entries: np.ndarray, numbers: np.ndarray, unreadable: list[tuple[int, str]]) -> None:
        """Adds fresh entries, drops older ones of the same images, and saves the file."""
        fresh = entries[np.setdiff1d(numbers, [number for number, _ in unreadable])]
        older = self.entries[~np.isin(self.entries["name"], fresh["name"])]
        self.entries = np.concatenate([older, fresh])
        if not self.saves or not len(fresh):
            return
        content = self.entries.tobytes()
        try:
            write_whole(self.path, json.dumps(_facts(content, self.max_pixels)).encode() + b"\n" + content)
        except OSError as error:
            log.warning("the hashes cannot be kept in %s: %s", self.path, error.strerror)
            self.saves = False


def identities(source: ImageSource) -> dict[str, np.ndarray]:
    """Returns the columns of `ROW` that identify each image: path, size and time, or digest and number."""
    if isinstance(source, Subset):
        return {name: column[source.numbers] for name, column in identities(source.source).items()}
    files = source.fingerprint(os.sep)
    if files is not None:
        return {name: files.rows[name] for name in ROW.names}
    first, second = np.frombuffer(bytes.fromhex(source.digest(""))[:16], "<u8")
    numbers = np.arange(len(source))
    return {"name": first + numbers.astype("<u8"), "size": numbers, "time": np.full(len(source), second).view("<i8")}


def _facts(content: bytes, max_pixels: int) -> dict:
    return {"format": FORMAT, "max_pixels": max_pixels, "sha256": hashlib.sha256(content).hexdigest()}


def _read(path: Path, max_pixels: int) -> np.ndarray:
    """Reads the entries of a file; none if it is missing, damaged, or of another limit of pixels."""
    if not os.path.lexists(path):
        return np.empty(0, ENTRY)
    try:
        first, _, content = read_bounded(path, MOST_BYTES).partition(b"\n")
        facts = parse_json(first)
        if facts["sha256"] != _facts(content, max_pixels)["sha256"] or facts["format"] != FORMAT:
            raise ValueError("its contents have changed")
        same = facts["max_pixels"] == max_pixels
        return np.frombuffer(content, ENTRY) if same else np.empty(0, ENTRY)
    except (OSError, *MISTAKES) as error:
        log.warning("the hashes in %s are computed again: %s", path, error)
        return np.empty(0, ENTRY)
