"""What the readers of annotations share: an image as listed in a file, and what is said of files that are wrong.

Nothing here imports TensorFlow.
"""

from __future__ import annotations

import collections
import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path, PurePath
from typing import Any, NamedTuple

from dupr_tf.errors import UserError
from dupr_tf.text import one_line

# What is wrong with the contents of a file, as Python finds it while they are read.
MISTAKES = (KeyError, TypeError, AttributeError, ValueError, OverflowError, RecursionError)


class Object(NamedTuple):
    """An object as annotated: px of the upright image, not yet checked."""

    name: str
    x1: float
    y1: float
    x2: float
    y2: float
    area: float | None = None
    ignored: bool = False
    segmentation: Any = None  # COCO's polygons or RLE as in its file; bytes: RLE counts, checked


@dataclass
class Entry:
    """A listed image, as read. `size` is height and width, 0 where the annotations do not say."""

    path: Path
    size: tuple[int, int]
    id: str
    objects: list[Object] = field(default_factory=list)
    void: bytes | None = None  # Cityscapes: RLE counts of the pixels that are nothing


def bounded(file: Path, most: int) -> bytes:
    """The bytes of a file that is not too large to be read."""
    if file.stat().st_size > most:
        raise UserError(
            None, f"{file} has {file.stat().st_size} bytes, where {most} are the most that is read.", "Split the file."
        )
    return file.read_bytes()


def file_error(error: Exception, kind: str, file: Path) -> UserError:
    """The error about a file for what was raised while it was read; a `UserError` stays as it is."""
    if isinstance(error, UserError):
        return error
    reason = str(error) if type(error) is ValueError else f"{type(error).__name__} {error}"
    reason = one_line(reason, 200).rstrip(".")
    return UserError(None, f"{file} cannot be read as {kind} annotations: {reason}.", "Correct the file.")


def refuse_repeated(ids: Iterable, what: str, file: Path) -> None:
    repeated = [key for key, count in collections.Counter(ids).items() if count > 1]
    if repeated:
        raise UserError(
            None,
            f"{file} has {len(repeated)} {what} ids more than once, such as {repeated[0]}.",
            "Give every one an id of its own.",
        )


def refuse_outside(name: str, file: Path) -> None:
    if PurePath(name).is_absolute() or ".." in PurePath(name).parts:
        raise UserError(None, f"{file} lists {name}, which is outside the data set.", "Correct the file.")


def side(image: dict, name: str) -> int:
    """Height or width of an image as annotated; 0, to be read from the file, where it is no number above 0."""
    value = image.get(name)
    return int(value) if isinstance(value, int | float) and math.isfinite(value) and value > 0 else 0
