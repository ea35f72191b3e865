"""Reads images with labels: a folder for each class, or the classes of the objects in annotated images."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from dupr_tf.config import DataConfig
from dupr_tf.data.images.bad_images import check_photos
from dupr_tf.data.images.listing import LeftOut, check_root, list_classes, list_root, log_left_out
from dupr_tf.data.labels.annotations import AnnotatedImages, read_annotations
from dupr_tf.data.layouts import BOXES, PIXELS
from dupr_tf.errors import UserError

SPLITS = ("train", "val")


@dataclasses.dataclass(frozen=True)
class ClassFolders:
    """A split: N image files, the class of each, and the names of the classes."""

    paths: list[str]
    labels: np.ndarray  # (N,) int64, positions in class_names
    class_names: tuple[str, ...]


def read_class_folders(root: str | Path) -> dict[str, ClassFolders]:
    """Reads {"train", "val"} of a root with `train/CLASS/` and `val/CLASS/`.

    Raises:
        UserError: no such folders, fewer than two classes, a class of only one split, or a class without images.
    """
    names = _class_names(Path(root))
    return {split: _split(Path(root) / split, names) for split in SPLITS}


def check_class_folders(root: str | Path) -> None:
    """Raises the errors of `read_class_folders`, but reads no further than the first image of each class."""
    for name in _class_names(Path(root)):
        for split in SPLITS:
            check_root(Path(root) / split / name, "folder")


def has_class_folders(root: str | Path) -> bool:
    """Returns True if a root has train/ and val/ with folders of classes, and no labels of another layout."""
    root = Path(root)
    if not all((root / split).is_dir() for split in SPLITS) or is_annotated(root):
        return False
    shown = (entry.facts["shown"](root, split) for entry in PIXELS.values() for split in SPLITS)
    return not any(shown) and len(list_classes(root / "train")) > 1


def check_probed(probe: str, root: str | Path) -> None:
    """Raises the errors of a probe in training about its images, without decoding them.

    Args:
        probe: a name of `PROBES` with the fact `takes`.
        root: `probing.data`.
    """
    if probe == "knn" or (probe == "retrieval" and has_class_folders(root)):
        check_class_folders(root)
    elif probe == "affinity" and is_annotated(root):
        read_annotations(root, "val")
    else:
        check_photos(root)


def _class_names(root: Path) -> list[str]:
    """Returns the names of the classes, which must be the same in both splits."""
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
    return names["train"]


def _classes(folder: Path) -> list[str]:
    if not folder.is_dir():
        raise UserError(None, f"There is no folder {folder}.", f"Put images into {folder}/CLASS/.")
    return list_classes(folder)


def _split(folder: Path, names: list[str]) -> ClassFolders:
    paths, labels, left_out = [], [], LeftOut()
    for label, name in enumerate(names):
        listing = list_root(folder / name, "folder")
        paths += listing.paths
        labels += [label] * len(listing.paths)
        left_out.update(listing.left_out)
    log_left_out(f"{folder}: folders of classes, {len(names)} classes, {len(paths):,} images", left_out)
    return ClassFolders(paths, np.array(labels, np.int64), tuple(names))


def image_labels(annotated: AnnotatedImages) -> np.ndarray:
    """Returns (N, classes) int8: 1 if an image shows a class, 0 if not, -1 if only by objects that do not count.

    An image that shows a class only by VOC's `difficult` objects is neither an example nor a counter-example of it.
    """
    labels = np.zeros((len(annotated), len(annotated.class_names)), np.int8)
    for row, classes, ignored in zip(labels, annotated.labels, annotated.ignored, strict=True):
        row[classes[ignored]] = -1
        row[classes[~ignored]] = 1
    return labels


def is_annotated(data: str | Path) -> bool:
    """Returns True if a root shows a layout with boxes."""
    shown = (entry.facts["shown"](Path(data), split) for entry in BOXES.values() for split in ("train", "val"))
    return any((Path(data) / name).is_dir() for name in ("annotations", "Annotations")) or any(shown)


def read_split(
    data: str | Path, split: str, section: DataConfig | None = None, class_names: Sequence[str] | None = None
) -> AnnotatedImages:
    """Reads a split of a root with boxes, whose layout is `section.kind`."""
    section = section or DataConfig()
    return read_annotations(data, split, section.kind, class_names, section.max_bad_share)


def read_both_splits(data: str | Path, splits: Sequence[str], section: DataConfig | None = None):
    """Reads training and test split, with the classes of both in one order."""
    read = [read_split(data, split, section) for split in splits]
    names = sorted({name for split in read for name in split.class_names})
    if any(list(split.class_names) != names for split in read):
        read = [read_split(data, split, section, names) for split in splits]
    return read


def pick_objects(annotated: AnnotatedImages, count: int, seed: int = 0) -> list[tuple[int, int]]:
    """Picks at most `count` (image, object), one per image, evenly spread.

    Objects that are tiny or fill the image are skipped.

    Raises:
        UserError: there is none.
    """
    rng, objects = np.random.default_rng(seed), []
    for i, (boxes, ignored) in enumerate(zip(annotated.boxes, annotated.ignored, strict=True)):
        height, width = annotated.sizes[i]
        sides = (boxes[:, 2:] - boxes[:, :2]) / [width, height]
        fitting = np.flatnonzero(~ignored & (sides.min(1) >= 1 / 8) & (sides.prod(1) <= 0.6)) if len(boxes) else []
        if len(fitting):
            objects.append((i, int(rng.choice(fitting))))
    if not objects:
        problem = "No object has at least an eighth of its image's sides and at most 0.6 of its area."
        raise UserError("data", problem, "Use images with medium-sized objects.")
    return [objects[k] for k in np.linspace(0, len(objects) - 1, min(count, len(objects))).round().astype(int)]
