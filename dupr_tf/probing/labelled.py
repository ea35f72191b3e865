"""Images with labels: a folder for each class, or what objects an annotated image shows."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np

from dupr_tf.data.annotations import AnnotatedImages
from dupr_tf.data.images.listing import list_images
from dupr_tf.errors import UserError

SPLITS = ("train", "val")


@dataclasses.dataclass(frozen=True)
class ClassFolders:
    """One split: N image files, the class of each, and what the classes are called."""

    paths: list[str]
    labels: np.ndarray  # (N,) int64, positions in class_names
    class_names: tuple[str, ...]


def read_class_folders(root: str | Path) -> dict[str, ClassFolders]:
    """{"train", "val"} of a root with `train/CLASS/` and `val/CLASS/`.

    Raises:
        UserError: no such folders, fewer than two classes, a class of only one split, or a class without images.
    """
    root = Path(root)
    if not root.is_dir():
        state = "is a file" if root.exists() else "does not exist"
        raise UserError(None, f"{root} {state}.", "Pass a folder with train/CLASS/ and val/CLASS/ in it.")
    names = {split: _classes(root / split) for split in SPLITS}
    if names["train"] != names["val"]:
        odd = sorted(set(names["train"]) ^ set(names["val"]))
        problem = f"The class {odd[0]} is in only one of train/ and val/ of {root}."
        raise UserError(None, problem, "Make a folder for each class in both.")
    if len(names["train"]) < 2:
        problem = f"Expected at least two classes below {root / 'train'}, received {len(names['train'])}."
        raise UserError(None, problem, "Make a folder for each class.")
    return {split: _split(root / split, names[split]) for split in SPLITS}


def _classes(folder: Path) -> list[str]:
    if not folder.is_dir():
        raise UserError(None, f"There is no folder {folder}.", f"Put images into {folder}/CLASS/.")
    return sorted(entry.name for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith("."))


def _split(folder: Path, names: list[str]) -> ClassFolders:
    paths, labels = [], []
    for label, name in enumerate(names):
        found = list_images(folder / name, "folder")
        paths += found
        labels += [label] * len(found)
    return ClassFolders(paths, np.array(labels, np.int64), tuple(names))


def image_labels(annotated: AnnotatedImages) -> np.ndarray:
    """(N, classes) int8: 1 where an image shows a class, 0 where not, -1 where only what is not counted.

    VOC's `difficult` objects alone make an image neither an example nor a counter-example of their class.
    """
    labels = np.zeros((len(annotated), len(annotated.class_names)), np.int8)
    for row, classes, ignored in zip(labels, annotated.labels, annotated.ignored, strict=True):
        row[classes[ignored]] = -1
        row[classes[~ignored]] = 1
    return labels
