"""Lists the images of a split for semantic segmentation, and reads the class of every pixel."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np

from dupr_tf.data.labels.split import Split, check_classes, log, open_root
from dupr_tf.data.layouts import PIXELS
from dupr_tf.errors import UserError
from dupr_tf.resources import usable_cpus

IGNORED = 255  # the value of pixels without a class, which are neither trained on nor counted


@dataclass(frozen=True)
class SegmentedImages(Split):
    """A split of a segmentation data set; N images."""

    columns: ClassVar = ("paths", "segment_paths", "ids")

    paths: tuple[str, ...]  # N
    segment_paths: tuple[str, ...]  # N; for Cityscapes, the paths up to `_gtFine`
    sizes: np.ndarray  # (N, 2) int32, height and width
    ids: tuple[str, ...]  # N
    class_names: tuple[str, ...]
    table: np.ndarray  # (256,) uint8, the class of every value in a file; 255 means ignored
    read_values: Callable[[Path], np.ndarray]  # segment path -> (H, W) integers
    counts: dict[str, int] = dataclasses.field(default_factory=dict)  # {what was odd: how often}

    def labels_text(self) -> str:
        return f"{len(self.class_names)} classes"

    def truth(self, index: int) -> np.ndarray:
        """Reads the class of every pixel of an image, (H, W) uint8; 255 means ignored.

        Raises:
            UserError: the file cannot be read, or its size differs from the image's.
        """
        path = Path(self.segment_paths[index])
        values = self.read_values(path)
        if values.shape != tuple(self.sizes[index]):
            mask_size, of_image = (" x ".join(map(str, size)) for size in (values.shape, self.sizes[index]))
            problem = f"{path} has {mask_size} pixels, where its image has {of_image}."
            raise UserError(None, problem, f"Correct the mask of {self.paths[index]}.")
        return self.table[np.clip(values, 0, 255)]

    def unreadable_segments(self) -> dict[str, str]:
        """Returns {path: reason} of the masks that cannot be used. Reads all masks."""
        with ThreadPoolExecutor(usable_cpus()) as pool:
            reasons = dict(zip(self.segment_paths, pool.map(self._unusable_reason, range(len(self))), strict=True))
        return {path: reason for path, reason in reasons.items() if reason}

    def _unusable_reason(self, index: int) -> str:
        try:
            self.truth(index)
            return ""
        except UserError as error:
            return error.problem


def read_segments(
    root: str | Path,
    split: str,
    kind: str = "auto",
    class_names: Sequence[str] | None = None,
    ignore_value: int | None = None,
    max_bad_share: float = 0.01,
) -> SegmentedImages:
    """Lists one split. One line of the log counts what was odd in it.

    Args:
        root: root of `{split}/images` and `{split}/masks`, or of `images/{split}` and `masks/{split}`. A mask has its
            image's name and `.png`. Or the root of Cityscapes.
        split: "train", "val", …
        kind: a name in `layouts.PIXELS`. "auto" takes Cityscapes if its folders exist, else masks.
        class_names: the order of the classes, such as that of a trained detector. In a folder of masks without
            `classes.txt` they name the values 0, 1, … (see `mask_folder`).
        ignore_value: value of a mask, besides 255, for pixels without a class.
        max_bad_share: share of the images that may have no usable mask. These images are left out.

    Raises:
        UserError: the data are wrong.
    """
    root, reader = open_root(PIXELS, root, split, kind)
    read = reader(root, split, class_names, ignore_value, max_bad_share)
    log.info("%s: %s", split, read.summary())
    return read


def class_table(values: dict[int, str], names: tuple[str, ...]) -> np.ndarray:
    """Returns (256,) uint8: the position in `names` of the class of every value; `IGNORED` for no class."""
    check_classes(names, values.values(), "data.class_names", most=IGNORED)
    table = np.full(256, IGNORED, np.uint8)
    for value, name in values.items():
        table[value] = names.index(name)
    return table
