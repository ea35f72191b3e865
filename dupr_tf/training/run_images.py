"""Records the images of a run, and compares those of a later start with them.

`images.json` has their number, a digest of their names (and of their labels), and digests of some contents.
`images.bin`, or `images-SPLIT.bin` for each split, has size and time of each image file (`Fingerprint.rows`).
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from dupr_tf.data.images.fingerprint import NAMED, ROW, Fingerprint
from dupr_tf.data.images.source import ImageSource, as_source
from dupr_tf.errors import UserError
from dupr_tf.files import read_bounded
from dupr_tf.records import digest, mapping, read_record, whole
from dupr_tf.text import listed

IMAGES_FILE = "images.json"
ROWS_FILE = "images.bin"
MOST_IMAGES = 1 << 40
MOST_FILES = 2  # files of an image: itself and its mask
KEEP_OR_ALLOW = "Use the same as before, pass --allow-change, or choose another --output."


@dataclasses.dataclass(frozen=True)
class ImagesEntry:
    """Describes the present images of a run.

    Args:
        count: number of images.
        sha256: digest of their names, and of their labels if they have some.
        files: sizes and times of the files. None if `sha256` covers the contents.
    """

    count: int
    sha256: str
    files: Fingerprint | None = None


Images = ImagesEntry | dict[str, ImagesEntry]


def images_entry(root: str, images: ImageSource | Sequence[str]) -> ImagesEntry:
    """Describes the images of a root, in order."""
    source = as_source(images)
    return ImagesEntry(len(source), source.digest(root), source.fingerprint(root))


def image_files(images: Images) -> dict[str, str | bytes]:
    """Returns {name: contents} of the files that record the images."""
    if isinstance(images, ImagesEntry):
        saved, rows = _image_record(images)
        files = {ROWS_FILE: rows}
    else:
        pairs = {split: _image_record(entry) for split, entry in images.items()}
        saved = {split: pair[0] for split, pair in pairs.items()}
        files = {_rows_file(split): rows for split, (_, rows) in pairs.items()}
    files = {name: rows for name, rows in files.items() if rows is not None}
    return {**files, IMAGES_FILE: json.dumps(saved, indent=2) + "\n"}


def _image_record(entry: ImagesEntry) -> tuple[dict, bytes | None]:
    saved = {"count": entry.count, "sha256": entry.sha256}
    if entry.files is None:
        return saved, None
    rows = entry.files.rows.tobytes()
    return {**saved, "files": hashlib.sha256(rows).hexdigest(), "heads": entry.files.heads}, rows


def image_changes(run: Path, images: Images) -> list[UserError]:
    """Compares the images of a start with the record; returns an error for each split that differs."""
    path = run / IMAGES_FILE
    entries = {"": images} if isinstance(images, ImagesEntry) else images
    try:
        saved = read_record(path, lambda value: {k: _read_entry(value[k] if k else value) for k in entries})
    except UserError as error:
        return [UserError(None, error.problem, KEEP_OR_ALLOW)]
    changes = [_split_changes(run / _rows_file(split), split, saved[split], entry) for split, entry in entries.items()]
    return [change for change in changes if change is not None]


def _read_entry(value) -> dict:
    """Checks an entry of images.json."""
    entry = {"count": whole(value["count"], MOST_IMAGES), "sha256": digest(value["sha256"])}
    if "files" in value:
        heads = {int(position): head and digest(head) for position, head in mapping(value["heads"]).items()}
        entry |= {"files": digest(value["files"]), "heads": heads}
    return entry


def _split_changes(path: Path, split: str, saved: dict, entry: ImagesEntry) -> UserError | None:
    """Returns the difference between the record of a split and its images now, or None."""
    rows, now = None, entry.files
    if now is not None and "files" in saved:
        try:
            content = read_bounded(path, MOST_FILES * saved["count"] * ROW.itemsize)
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or error
            return UserError(None, f"{path} cannot be used: {reason}.", KEEP_OR_ALLOW)
        if hashlib.sha256(content).hexdigest() != saved["files"] or len(content) % ROW.itemsize:
            return UserError(None, f"{path} is damaged.", KEEP_OR_ALLOW)
        rows = np.frombuffer(content, ROW)
    if (saved["count"], saved["sha256"]) != (entry.count, entry.sha256):
        new = [] if rows is None else list(now.new_names(rows))
        return _other_images(split, saved["count"], entry.count, new)
    if rows is not None and len(rows) != len(now.paths):
        return UserError(None, f"{path} is damaged.", KEEP_OR_ALLOW)
    changed = [] if rows is None else now.changes(rows, saved["heads"])
    if not changed:
        return None
    where = f" in the split {split}" if split else ""
    problem = (
        f"{len(changed):,} of {entry.count:,} images{where} have changed since the start: {listed(changed, NAMED)}."
    )
    return UserError("--data" if split else "data.root", problem, KEEP_OR_ALLOW)


def _rows_file(split: str) -> str:
    return f"images-{split}.bin" if split else ROWS_FILE


def _other_images(split: str, before: int, now: int, new: list[str]) -> UserError:
    added = f" New ones are {listed(new, NAMED)}." if new else ""
    if not split:
        words = "other images" if before == now else str(now)
        problem = f"The run was started with {before} images, and there are {words} now.{added}"
        return UserError("data.root", problem, KEEP_OR_ALLOW)
    what = "its images or labels differ" if before == now else f"it has {now}"
    problem = f"The run was started with {before} images in the split {split}, and now {what}.{added}"
    return UserError("--data", problem, KEEP_OR_ALLOW)
