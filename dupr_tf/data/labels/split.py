"""Opens and checks the files of a split of a labelled data set."""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import functools
import itertools
import logging
import math
import os
import stat
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PureWindowsPath
from typing import ClassVar, NamedTuple, Self

import numpy as np
from PIL import Image

from dupr_tf.data.images.decode import upright_size
from dupr_tf.data.labels.counts import Counts, count_lines
from dupr_tf.data.layouts import layout_of
from dupr_tf.errors import UserError
from dupr_tf.files import local_path, open_file
from dupr_tf.registry import Registry
from dupr_tf.text import escape, one_line
from dupr_tf.values import exceeds

log = logging.getLogger(__name__)
# Errors that Python, NumPy and Pillow raise for a file with wrong contents.
MISTAKES = (LookupError, TypeError, AttributeError, ValueError, OverflowError, RecursionError, OSError, SyntaxError)
MISTAKES += (Image.DecompressionBombError,)


class Split:
    """Is the base of splits with boxes and of splits with classes of pixels. Both are frozen dataclasses."""

    columns: ClassVar[tuple[str, ...]]  # fields with a value for each image, beside `sizes`

    def __len__(self) -> int:
        return len(self.paths)

    def select(self, positions: Sequence[int]) -> Self:
        """Returns a split of some of the images, in the order given, with the same classes."""
        columns = {
            name: tuple(getattr(self, name)[i] for i in positions) for name in self.columns if getattr(self, name)
        }
        return dataclasses.replace(self, sizes=self.sizes[list(positions)], **columns)

    def summary(self) -> str:
        """Returns one line: images, labels, and counts of what was odd."""
        folder = os.path.commonpath([os.path.dirname(path) for path in self.paths]) if self.paths else "no folder"
        return "; ".join(
            [f"{len(self)} images, {self.labels_text()}", *count_lines(self.counts), f"from {escape(folder)}"]
        )


def take_share(images: Split, share: float, seed: int) -> tuple[Split, tuple[str, ...]]:
    """Draws a share of the images, at least one. With the same seed, a smaller share is part of a larger one.

    Semi-supervised protocols train on 1 % or 10 % of COCO.

    Args:
        images: `AnnotatedImages` or `SegmentedImages`.
        share: 0 < share <= 1; 1 gives all images.
        seed: seed of the draw.

    Returns:
        The chosen images in their old order, and their ids.
    """
    if not 0 < share <= 1:
        raise UserError("data.share", f"Expected a share above 0 and up to 1, received {share}.", "Use 0.1.")
    subset = images.select(draw_positions(len(images), share, seed))
    return subset, subset.ids or subset.paths


def draw_positions(images: int, share: float, seed: int) -> list[int]:
    """Draws the rising positions of a share of a number of images, at least one, as `take_share` does."""
    count = max(1, round(share * images))
    return sorted(np.random.default_rng(seed).permutation(images)[:count].tolist())


def open_root(table: Registry, root: str | Path, split: str, kind: str) -> tuple[Path, Callable]:
    """Returns the root of a data set as a path, and the reader of its layout, an entry of a table in `layouts`."""
    root = local_path(root)
    if not root.is_dir():
        raise UserError(None, f"{root} is not a folder.", f"Pass the root of a data set ({', '.join(table)}).")
    layout = layout_of(table, root, kind, split)
    shown = [path.relative_to(root) for path in table[layout].facts["shown"](root, split)]
    if not shown:
        from dupr_tf.data.labels.missing import missing_labels  # it imports readers, which import this file

        if error := missing_labels(table, root, split, kind):
            raise error
    else:
        _log_layout(root, layout, table[layout].summary, str(shown[0]))
    return root, table.load(layout)


@functools.cache
def _log_layout(root: Path, layout: str, summary: str, file: str) -> None:
    """Logs once which layout was recognised, and by which file. The line of each split names its images' folder."""
    log.info("%s: %s (%s), by %s", escape(str(root)), layout, summary, escape(file))


@contextlib.contextmanager
def reading(file: Path, what: str) -> Iterator[None]:
    """Turns an error in the block into a `UserError` about the file. `what` names the expected contents."""
    try:
        yield
    except UserError:
        raise
    except FileNotFoundError:
        raise UserError(None, f"There is no {file}.", "Add it, or pass another root or split.") from None
    except MISTAKES as error:
        reason = one_line(_reason(error), 200).rstrip(".")
        raise UserError(None, f"{file} cannot be read as {what}: {reason}.", "Correct the file.") from None


@contextlib.contextmanager
def at(place: str) -> Iterator[None]:
    """Puts a place in a label file, such as `line 3`, before the reason of an error in the block."""
    try:
        yield
    except UserError:
        raise
    except MISTAKES as error:
        raise ValueError(f"{place}: {_reason(error)}") from None


def _reason(error: BaseException) -> str:
    return str(error) if type(error) is ValueError else f"{type(error).__name__} {error}"


def read_png(file: Path, what: str, modes: Sequence[str]) -> np.ndarray:
    """Reads (H, W) integers of a PNG as stored: a palette's indices, not its colours. Other `modes` are refused."""
    with reading(file, what), open_file(file) as content, Image.open(content, formats=["PNG"]) as image:
        if image.mode not in modes:
            raise ValueError(f"its pixels have mode {image.mode}, not one of {', '.join(modes)}")
        return np.asarray(image).astype(np.int32)


def size_of(image: dict) -> tuple[int, int]:
    """Returns height and width as annotated. A value that is no number above 0 becomes 0, to be read from the file."""
    sides = (image.get("height"), image.get("width"))
    return tuple(int(s) if isinstance(s, int | float) and math.isfinite(s) and s > 0 else 0 for s in sides)


def inside(name: str) -> str:
    """Returns a listed name with `/` between its folders. Raises ValueError if it leads out of the data set."""
    path = PureWindowsPath(name)  # it splits at both kinds of slash
    if path.root or path.is_absolute() or ".." in path.parts:
        raise ValueError(f"it lists {name}, which is outside the data set (names start at the folder of the images)")
    return name.replace("\\", "/")


class MissingSplit(UserError):
    """Says that a data set has no such split.

    Attributes:
        found: sentence about files or folders that seem to be those of the split, under another name.
    """

    found = ""


class FileFacts(NamedTuple):
    """Holds facts about the file of an image."""

    identity: tuple[int, int] | str  # equal for two paths of one file
    size: tuple[int, int]  # height and width of the upright image; 0 if it cannot be read


def look_at_files(paths: Sequence[str | Path]) -> list[FileFacts | None]:
    """Reads facts about every image from its header; None for a missing file. Threads wait for the disk in parallel."""
    chunks = [paths[start : start + 256] for start in range(0, len(paths), 256)]
    with ThreadPoolExecutor(32) as pool:
        return list(itertools.chain(*pool.map(lambda chunk: [_look_at_file(path) for path in chunk], chunks)))


def _look_at_file(path: str | Path) -> FileFacts | None:
    try:
        status = os.stat(path)
    except (OSError, ValueError):
        return None
    if not stat.S_ISREG(status.st_mode):
        return None
    identity = (status.st_dev, status.st_ino) if status.st_ino else os.path.realpath(path)
    return FileFacts(identity, _header_size(os.fspath(path), status.st_mtime_ns, status.st_size))


@functools.lru_cache(1 << 20)
def _header_size(path: str, modified: int, length: int) -> tuple[int, int]:
    """Returns the size in an image's header. `modified` and `length` are keys, so that a changed file is read again."""
    try:
        return upright_size(path)
    except UserError:  # An image that cannot be read is reported when it is used, with all others.
        return 0, 0


def refuse_many(unusable: Sequence, total: int, max_share: float, what: str) -> None:
    """Raises UserError if more than a share of the images, or all images, are unusable. `what` says why."""
    if exceeds(len(unusable), max_share, total) or len(unusable) == total:
        raise UserError(
            "data.max_bad_share",
            f"{len(unusable)} of {total} images {what}, such as {unusable[0]}. {_limit(max_share)}",
            "Complete the folder, or raise data.max_bad_share.",
        )


def refuse_faults(
    things: str,
    faults: Sequence[tuple[str, object]],
    total: int,
    max_share: float,
    counts: Counts,
    fix: str = "Correct the labels or complete the folder, or raise data.max_bad_share.",
) -> None:
    """Counts the images, objects or masks of a split that cannot be used.

    Args:
        things: "images", "objects" or "masks".
        faults: for each unusable one, what is wrong, and where: a place in a label file, or the image.
        total: number of such things in the split.
        max_share: share of them that may be unusable.
        counts: receives the faults, and an example of each kind.
        fix: what to do if too many are unusable.

    Raises:
        UserError: more than the share, or all, are unusable.
    """
    kinds, frequent = Counts(), collections.Counter(fault for fault, _ in faults)
    for fault, where in sorted(faults, key=lambda pair: -frequent[pair[0]]):
        kinds.note(fault, where)
    counts.update(kinds)
    counts.examples |= kinds.examples
    if faults and (exceeds(len(faults), max_share, total) or len(faults) == total):
        problem = f"{len(faults)} of {total} {things} cannot be used: {'; '.join(count_lines(kinds))}"
        raise UserError("data.max_bad_share", f"{problem}. {_limit(max_share)}", fix)


def _limit(max_share: float) -> str:
    return f"At most {100 * max_share:g} % may be unusable, and never all of them."


def check_classes(names: Sequence[str], met: Iterable[str], field: str | None = None, most: float = math.inf) -> None:
    """Raises UserError for classes of the same name, more than `most` classes, or labels of unknown classes."""
    met = set(met)
    unknown = sorted(met - set(names))
    if unknown or not 0 < len(set(names)) == len(names) <= most:
        raise UserError(
            field,
            f"Expected labels of classes with different names, of {', '.join(names) or 'none'}, received "
            f"{', '.join(unknown or sorted(met)) or 'none'}.",
            "Correct the labels, or use data with the classes the detector was trained on.",
        )
