"""Reads OpenImages: a CSV file for each split with boxes in shares of the image, and one with class names."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from pathlib import Path

from dupr_tf.data.labels.annotations import ListedImage, Object, class_names_of
from dupr_tf.data.labels.counts import Counts
from dupr_tf.data.labels.finding import ImageIndex, missing_split, unlabelled
from dupr_tf.data.labels.split import at, reading
from dupr_tf.data.layouts import names_of
from dupr_tf.files import read_bounded
from dupr_tf.values import read_flag, read_name, read_text

MAX_OPEN_BYTES = 4 << 30
UNKNOWN_GROUP = "boxes that may be groups (IsGroupOf -1), read as single objects"
UNLABELLED = "images without a box in the file, left out"
FIRST_ROW = 2  # of the boxes, as an editor counts; the names of the columns are row 1
SIDES = ("XMin", "YMin", "XMax", "YMax")


def find(root: Path, split: str | None = None) -> list[Path]:
    """Finds the file of boxes of a split, as downloaded or as FiftyOne writes it."""
    names = names_of(split or "train")
    patterns = [
        f"{folder}*{name}-annotations-bbox.csv" for name in names for folder in ("", "annotations/", f"{name}/")
    ]
    patterns += [f"{name}/labels/detections.csv" for name in names]
    return next((files for pattern in patterns if (files := sorted(root.glob(pattern))[:1])), [])


def read_openimages(root: Path, split: str, counts: Counts, masks: bool) -> tuple[list[ListedImage], list[str]]:
    """Reads the images that have boxes in the file of a split, and the classes by name."""
    files = find(root, split)
    if not files:
        raise missing_split(root, split, "boxes (…-annotations-bbox.csv)")
    folder = next((root / name for name in names_of(split) if (root / name).is_dir()), root)
    index, images = ImageIndex(folder), {}
    by_stem = {}
    for path in index.paths():
        by_stem.setdefault(path.stem, path.name)
    names = _class_names(root, files[0])
    with reading(files[0], "boxes of OpenImages"):
        for number, row in enumerate(_boxes(files[0]), FIRST_ROW):
            key = row["ImageID"]
            if key not in images:
                images[key] = ListedImage(index.find(by_stem.get(key, f"{key}.jpg")), (0, 0), key, shares=True)
                images[key].labels = files[0]
            with at(f"row {number}"):
                images[key].objects.append(_object(row, names, counts)._replace(place=f"row {number}"))
    listed = list(images.values())
    classes = set(names.values()) or class_names_of(listed)
    return listed + unlabelled(index, listed, UNLABELLED, counts), sorted(classes)


def _class_names(root: Path, file: Path) -> dict[str, str]:
    """Returns {label: name} of the classes; {} without a file of class names."""
    patterns = ("*class-descriptions*.csv", "annotations/*class-descriptions*.csv", "metadata/classes.csv")
    folders = (root, file.parent, file.parent.parent)
    files = [path for folder in folders for pattern in patterns for path in sorted(folder.glob(pattern))]
    if not files:
        return {}
    with reading(files[0], "names of classes"):
        return {label: read_name(name) for label, name in _rows(files[0]) if label != "LabelName"}


def _boxes(file: Path) -> Iterator[dict[str, str]]:
    """Yields the rows of a file of boxes, by the names in its first row."""
    head, *rows = _rows(file) or [[]]
    for number, values in enumerate(rows, FIRST_ROW):
        if len(values) != len(head):
            raise ValueError(f"row {number} has {len(values)} values for {len(head)} columns")
        yield dict(zip(head, values, strict=True))


def _rows(file: Path) -> list[list[str]]:
    try:
        rows = list(csv.reader(io.StringIO(read_text(read_bounded(file, MAX_OPEN_BYTES)))))
    except csv.Error as error:
        raise ValueError(f"it is no CSV: {error}") from None
    return [row for row in rows if row]


def _object(row: dict, names: dict[str, str], counts: Counts) -> Object:
    label, group = row["LabelName"], (row.get("IsGroupOf") or "").strip()
    if names and label not in names:
        raise ValueError(f"the class {label} of image {row['ImageID']} has no name")
    counts[UNKNOWN_GROUP] += group == "-1"
    ignored = group != "-1" and read_flag(group)
    return Object(names.get(label, label), tuple(float(row[side]) for side in SIDES), ignored=ignored)
