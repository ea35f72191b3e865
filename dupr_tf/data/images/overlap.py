"""Finds the images of a pool that occur in a test set too. Imports no TensorFlow."""

from __future__ import annotations

import bisect
import dataclasses
import hashlib
import itertools
import os
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from dupr_tf.data.images.duplicates import MAX_DISTANCE, Hashes, Matches, find_duplicates
from dupr_tf.data.images.hash_cache import HashCache
from dupr_tf.data.images.listing import check_root, open_source
from dupr_tf.data.images.source import Files, ImageSource
from dupr_tf.data.labels.annotations import read_annotations
from dupr_tf.data.labels.segments import read_segments
from dupr_tf.data.layouts import BOXES, PIXELS, SOURCES
from dupr_tf.errors import UserError
from dupr_tf.files import local_path

VAL, TRAIN = "val", "train"


@dataclasses.dataclass(frozen=True)
class ValImages:
    """Holds the hashes of the images of one or several test sets.

    Args:
        sources: the sets.
        hashes: the hashes of each set.
    """

    sources: Sequence[ImageSource]
    hashes: Sequence[Hashes]

    @property
    def merged(self) -> Hashes:
        """Returns the hashes of all readable images, numbered from 0."""
        exact, near = (np.concatenate([getattr(one, name) for one in self.hashes]) for name in ("exact", "near"))
        return Hashes(np.arange(len(exact)), exact, near, [])

    @property
    def digest(self) -> str:
        """Returns the sha256 of the contents, independent of names, folders and order."""
        return hashlib.sha256(np.unique(self.merged.exact).tobytes()).hexdigest()

    def name(self, position: int) -> str:
        """Returns the name of an image of `merged`."""
        ends = list(itertools.accumulate(len(one.index) for one in self.hashes))
        which = bisect.bisect_right(ends, position)
        index = self.hashes[which].index
        return self.sources[which].name(int(index[position - ends[which] + len(index)]))

    def find_in(self, pool: Hashes) -> Matches:
        """Finds the duplicates among the images of a pool, exact ones and near ones."""
        return find_duplicates(pool, self.merged, MAX_DISTANCE)


def hash_val(sources: Sequence[ImageSource], cache: HashCache) -> ValImages:
    """Hashes test sets. Raises UserError if no image of a set can be read."""
    hashes = [cache.hashes(source) for source in sources]
    for source, one in zip(sources, hashes, strict=True):
        if not len(one.index):
            number, reason = one.unreadable[0]
            problem = f"None of its {len(source):,} images can be read. The first is {source.name(number)} ({reason})."
            raise UserError(None, problem, "Pass other images.")
    return ValImages(sources, hashes)


def open_val(root: str | Path) -> ImageSource:
    """Opens the split val of a labelled data set, or all images of any other root.

    If a root shows several layouts, such as VOC beside COCO, the images of all of them are taken.

    Args:
        root: a folder of photos, a root with labels of a split val in one of the layouts of docs/labels.md, shards, or
            `tfds:NAME:SPLIT`.

    Raises:
        UserError: the root is missing or has no image, or it has labels of a split train but not of val.
    """
    root, images = local_path(root), set()
    for kind, (read, _) in _labels(root, VAL).items():
        images |= {os.path.abspath(path) for path in read(root, VAL, kind, max_bad_share=1).paths}
    if images:
        return Files(sorted(images))
    check_val(root)
    return open_source(root)[1]


def check_val(root: str | Path, pool: str | Path | None = None) -> None:
    """Raises the errors of `open_val`, but opens no label file and no further image than the first.

    Args:
        root: as there.
        pool: root of the pool. It may be the same root only if that has a split val.
    """
    root = local_path(root)
    if _labels(root, VAL):
        return
    if pool is not None and os.path.realpath(root) == os.path.realpath(pool):
        raise UserError(None, f"{root} is the pool itself, and has no split val.", "Pass the images to leave out.")
    check_root(root)
    # All photos of a folder with labels are taken. Labels in other folders belong to a data set.
    files = [path for _, shown in _labels(root, TRAIN).values() for path in shown if path.parent != root]
    if files:
        problem = f"{root} has labels of a split train, such as {files[0]}, but not of a split val."
        raise UserError(None, problem, "Pass the folder of the images to leave out.")


def _labels(root: Path, split: str) -> dict[str, tuple[Callable, list[Path]]]:
    """Returns {layout: (reader, label files)} of the layouts of a split that a root shows."""
    if any(entry.facts["shown"](root) for entry in SOURCES.values()):
        return {}  # shards and tfds have no labels
    tables = (BOXES, read_annotations), (PIXELS, read_segments)
    shown = {name: (read, e.facts["shown"](root, split)) for table, read in tables for name, e in table.items()}
    return {name: (read, files) for name, (read, files) in shown.items() if files}
