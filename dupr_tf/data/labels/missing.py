"""Says why a root shows no labels of a split: which files and folders it has, and which names are expected."""

from __future__ import annotations

import itertools
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from dupr_tf.config.detectors import DETECTORS
from dupr_tf.data.images.listing import EXTENSIONS, is_hidden
from dupr_tf.data.labels.finding import LABELS, head_of
from dupr_tf.data.labels.split import MISTAKES, MissingSplit
from dupr_tf.data.labels.yolo import missing_part
from dupr_tf.data.layouts import BOXES, PIXELS, SPLIT_NAMES, names_of, voc_lists
from dupr_tf.errors import UserError
from dupr_tf.registry import Registry
from dupr_tf.text import escape, listed

MOST_FILES = 20_000  # looked at below a root
MOST_READ = 50  # files of one ending whose start is read
DEPTH = 3  # folders below a root
SPLITS = ("train", "val", "test")
FOLDERS = ("images", "labels", "masks", "annotations", "Annotations", "JPEGImages", "ImageSets")
FOLDERS += ("leftImg8bit", "gtFine", *itertools.chain(*SPLIT_NAMES.values()), "test")
IN_LOWER = {name.lower(): name for name in FOLDERS}
COCO = re.compile(r"\s*\{\s*\"(info|licenses|images|annotations|categories|type)\"")


class Kind(NamedTuple):
    """Describes label files of a format, by their ending and their start, and the name that is expected of them."""

    what: str
    ending: str
    start: re.Pattern
    expected: str
    fix: str


KINDS = (
    Kind("COCO annotations", ".json", COCO, "annotations/instances_{split}.json is expected", "Rename or move it."),
    Kind(
        "YOLO labels", ".txt", LABELS[".txt"], "data.yaml with `names` and `{split}` is expected in the root too",
        "Add data.yaml with the names of the classes and the folder of the images of each split.",
    ),
    Kind(
        "VOC annotations", ".xml", re.compile(r"[^<]*(<\?[^>]*>)?\s*<annotation\b"),
        "ImageSets/Main/{split}.txt, or XML files in Annotations or beside the images, are expected",
        "Add the list, or move the files.",
    ),
    Kind(
        "LabelMe files", ".json", re.compile(r".*\"shapes\"", re.DOTALL),
        "they are expected in {split}, in the root or in a folder of it", "Move the files.",
    ),
    Kind(
        "a CSV file", ".csv", re.compile(""),
        "only {split}-annotations-bbox.csv of OpenImages is read, with the columns ImageID, LabelName, XMin, XMax, "
        "YMin and YMax",
        "Rename the file if it has these columns, otherwise save the labels as one of `dupr-tf list boxes`.",
    ),
)  # fmt: skip


def missing_labels(table: Registry, root: Path, split: str, kind: str) -> MissingSplit | None:
    """Returns the error about a root that shows no layout for a split.

    Args:
        table: `BOXES` or `PIXELS`.
        root, split: of the data set.
        kind: `data.kind`. For another than "auto", the error is about a missing split alone. Returns None if the root
            has no other split of that layout; the reader knows then what is missing.
    """
    chosen = table if kind == "auto" else {kind: table[kind]}
    others = {other: shown for other in SPLITS if other != split and (shown := _shown(chosen, root, other))}
    if kind != "auto" and not others:
        return None
    hint = _misnamed(table, root, split, bool(others))
    if others:
        other, (layout, file) = next(iter(others.items()))
        problem = f"{root} has labels of a split {other} ({layout}, by {file}), but none of a split {_names(split)}."
        found, fix = hint or ("", "Add it, or use another split.")
        error = MissingSplit(None, f"{problem} {found}".strip(), fix)
        error.found = found
        return error
    ways = _other_task(table, root, split), _inner_root(table, root, split), hint, _outer_root(table, root, split)
    problem, fix = next(filter(None, ways), None) or _nothing(table, root, split)
    return MissingSplit(None, f"{root} has no labels of a split {split} that can be used. {problem}", fix)


def _names(split: str) -> str:
    name, *others = names_of(split)
    return f"{name} (or {', '.join(others)})" if others else name


def _shown(table: Mapping, root: Path, split: str) -> tuple[str, str] | None:
    """Returns the first layout that a root shows for a split, and the file or folder that shows it."""
    for name, entry in table.items():
        try:
            paths = entry.facts["shown"](root, split)
        except (*MISTAKES, UserError):  # a faulty file shows the layout too
            paths = [root]
        if paths:
            return name, escape(os.path.relpath(paths[0], root))
    return None


def _other_task(table: Registry, root: Path, split: str) -> tuple[str, str] | None:
    """Returns what is wrong if a root has masks of classes where boxes are needed, or the other way round."""
    other, has, lacks = (
        (PIXELS, "masks of classes", "boxes of objects") if table is BOXES else (BOXES, "boxes", "masks of classes")
    )
    shown = _shown(other, root, split)
    if shown is None:
        return None
    kinds = [name for name, entry in DETECTORS.items() if (entry.facts["task"] == "segments") == (other is PIXELS)]
    problem = f"It has {has} ({shown[0]}, by {shown[1]}), where {lacks} are needed."
    return problem, f"Use a config for them (detector.kind {listed(kinds, 3)}), or pass data with {lacks}."


def _inner_root(table: Registry, root: Path, split: str) -> tuple[str, str] | None:
    """Returns the folder to pass instead, if one in the root is a labelled data set."""
    for folder in (path for path in _entries(root) if path.is_dir() and _has_image(path)):
        if shown := _shown(table, folder, split):
            return f"{folder} has some ({shown[0]}, by {shown[1]}).", f"Pass {folder}."
    return None


def _outer_root(table: Registry, root: Path, split: str) -> tuple[str, str] | None:
    """Returns the folder above, to pass instead, if it is a labelled data set and the root is a part of it."""
    folder = root.absolute().parent
    shown = _shown(table, folder, split)
    if shown is None or shown[1].split("/")[0] not in (root.absolute().name, *FOLDERS, *_files_in(folder)):
        return None  # by the labels of another data set beside the root, or by a damaged file
    return f"{folder} has some ({shown[0]}, by {shown[1]}).", f"Pass {folder}."


def _misnamed(table: Registry, root: Path, split: str, has_other: bool) -> tuple[str, str] | None:
    """Returns what a root has that would be read under another name, and what to do.

    If labels of another split are read, only names with the missing split count.
    """
    folders, files = _below(root)
    twins = [(path, IN_LOWER[path.name.lower()]) for path in folders if path.name not in FOLDERS]
    twins = [(path, name) for path, name in twins if not has_other or _is_of(path.relative_to(root), split)]
    if twins:
        pairs = listed([f"{escape(os.path.relpath(path, root))}/ (expected: {name}/)" for path, name in twins])
        return f"Found {pairs}: upper and lower case differ.", "Rename the folders."
    if table is PIXELS:
        return _lone_folder(root, split)
    if lists := [path for path in voc_lists(root, split) if not path.is_file()]:
        return f"There is no {lists[0]}.", "Add it, or use another split."
    if part := missing_part(root, split):
        return f"Found {part}.", "Correct the file or the folder."
    if has_other:
        words = {path: re.findall("[a-z]+", path.stem.lower()) for path in files}
        files = [path for path in files if not set(names_of(split)).isdisjoint(words[path])]
    for kind in KINDS:
        of_ending = [path for path in files if path.suffix.lower() == kind.ending][:MOST_READ]
        if match := next((path for path in of_ending if kind.start.match(head_of(path))), None):
            name = escape(os.path.relpath(match, root))
            return f"Found {kind.what} ({name}), where {kind.expected.format(split=split)}.", kind.fix
    return None


def _is_of(path: Path, split: str) -> bool:
    """Returns True if a folder in a path is named after a split, in upper or lower case."""
    return any(part.lower() in names_of(split) for part in path.parts)


def _lone_folder(root: Path, split: str) -> tuple[str, str] | None:
    """Returns a folder of images of a split that has no folder of masks, or the other way round."""
    for pair in ((f"{split}/images", f"{split}/masks"), (f"images/{split}", f"masks/{split}")):
        there = [name for name in pair if (root / name).is_dir()]
        if len(there) == 1:
            lacks = pair[1 - pair.index(there[0])]
            return f"Found {there[0]}, but no {lacks}.", f"Rename or move the other folder to {lacks}."
    return None


def _nothing(table: Registry, root: Path, split: str) -> tuple[str, str]:
    """Returns what a root has that shows no label file at all."""
    fix = "Pass the root of a labelled data set (docs/labels.md)."
    folders = [f"{escape(path.name)}/" for path in _entries(root) if path.is_dir()]
    inside = f" Its folders are {listed(folders)}." if folders else ""
    if table is PIXELS:
        expected = f"{split}/images and {split}/masks, or images/{split} and masks/{split}"
        return f"Expected are {expected}, or Cityscapes' leftImg8bit and gtFine.{inside}", fix
    image = _has_image(root)
    has = f"images ({escape(os.path.relpath(image, root))})" if image else "no images"
    return f"Found {has}, and no label file of a layout of `dupr-tf list boxes`.{inside}", fix


def _entries(folder: Path) -> list[Path]:
    try:
        return sorted(path for path in folder.iterdir() if not is_hidden(path.name))
    except OSError:
        return []


def _files_in(folder: Path) -> list[str]:
    return [escape(path.name) for path in _entries(folder) if path.is_file()]


def _below(root: Path) -> tuple[list[Path], list[Path]]:
    """Returns folders whose names in lower case are those of a layout, and files, at most `DEPTH` folders deep."""
    endings = {kind.ending for kind in KINDS}
    folders, files = [], []
    for path in itertools.islice(_walk(root, DEPTH), MOST_FILES):
        if path.suffix.lower() in endings and path.is_file():
            files.append(path)
        elif path.name.lower() in IN_LOWER and path.is_dir():
            folders.append(path)
    return folders, files


def _walk(folder: Path, depth: int) -> Iterator[Path]:
    for path in _entries(folder):
        yield path
        if depth and path.is_dir():
            yield from _walk(path, depth - 1)


def _has_image(folder: Path) -> Path | None:
    """Returns an image below a folder, if there is one."""
    paths = itertools.islice(_walk(folder, DEPTH), MOST_FILES)
    return next((path for path in paths if path.suffix.lower() in EXTENSIONS), None)
