"""Reads YOLO's layout: `data.yaml` with classes and folders, `labels/` beside `images/`, a text file for each image.

`obj.data` (Darknet, CVAT) and `classes.txt` (Label Studio) may replace `data.yaml`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from dupr_tf.data.labels.annotations import ListedImage, Object
from dupr_tf.data.labels.counts import Counts
from dupr_tf.data.labels.finding import OTHERS, list_images, missing_split, other_format
from dupr_tf.data.labels.shapes import polygon
from dupr_tf.data.labels.spelling import on_disk
from dupr_tf.data.labels.split import MISTAKES, MissingSplit, reading
from dupr_tf.data.layouts import names_of
from dupr_tf.errors import UserError
from dupr_tf.files import open_file, read_bounded
from dupr_tf.safe_yaml import safe_value
from dupr_tf.text import escape
from dupr_tf.values import read_name, read_text

MAX_YOLO_BYTES = 64 << 20
MAX_HEAD_BYTES = 1 << 20  # bytes of a YAML file read to recognise it; it may begin with thousands of names
FARTHEST = 2.0  # larger numbers cannot be shares of the image
DARKNET, CLASSES = "obj.data", ("classes.txt", "obj.names")
UNLABELLED = "images without a label file, taken as images without objects"
KEYPOINTS = "objects with keypoints, of which the boxes are read"
FOUR = "polygons of four points, read as polygons although they may be rotated boxes"
ALL_SPLITS = ("train", *names_of("val"), "test")


class YoloSet(NamedTuple):
    """Holds the contents of the file that describes a data set."""

    names: dict[int, str]
    places: dict[str, list[str]]  # {name of a split: folders of images, or text files that list images, as written}
    base: Path  # the folder that these paths are relative to
    keypoints: int  # numbers of keypoints in a line, after its box


def find(root: Path, split: str | None = None) -> list[Path]:
    """Finds the file that describes the data set, if it has the split."""
    file = _description(root)
    if file is None:
        return []
    try:
        return [file] if _places(_read(file, root), split or "train", root) else []
    except (*MISTAKES, UserError):  # The reader reports what is wrong.
        return [file]


def read_yolo(root: Path, split: str, counts: Counts, masks: bool) -> tuple[list[ListedImage], list[str]]:
    """Reads the images of a split with their objects, and the classes by number. `counts` receives what was odd."""
    file = _description(root)
    if file is None:
        raise missing_split(root, split, "data.yaml and no images")
    with reading(file, "a YOLO data set"):
        description = _read(file, root)
        places = _places(description, split, root)
    if not places:
        raise missing_split(root, split, f"images (by {file.name})")
    images, used = {}, set()
    for path in [path for place in places for path in _images(place, root)]:
        places = _label_places(path, root)
        label = next((place for place in places if place.is_file()), None)
        images[path] = image = ListedImage(path, (0, 0), path.relative_to(root).as_posix(), shares=True)
        if label is None:
            image.fault = other_format(places, ".txt")
            if not image.fault:
                counts.note(UNLABELLED, path)
            continue
        used.add(label)
        image.labels, image.objects = label, _objects(label, description, counts)
    if not used:
        _refuse_unlabelled(list(images.values()), root, split)
    folders = {label.parent for label in used if "labels" in label.relative_to(root).parts}
    for label in sorted(path for folder in folders for path in folder.iterdir() if path not in used):
        if label.suffix == ".txt" and label.name not in CLASSES and not label.name.startswith("."):
            path = label.with_suffix(".jpg")
            images[path] = ListedImage(path, (0, 0), path.relative_to(root).as_posix())
        if label.is_file() and label.suffix not in (".txt", ".cache"):
            counts.note(OTHERS, label)
    return list(images.values()), [description.names[number] for number in sorted(description.names)]


def _refuse_unlabelled(images: list[ListedImage], root: Path, split: str) -> None:
    """Raises MissingSplit if no image of a split has a label file: they are missing, not empty."""
    path = next((image.path for image in images if image.path.is_file()), None)
    if path is not None and not any(image.fault for image in images):
        problem = f"None of the {len(images)} images of the split {split} in {root} has a label file."
        expected = " or ".join(escape(place.relative_to(root).as_posix()) for place in _label_places(path, root))
        fix = f"Add the files: for {escape(path.name)} that is {expected}. An image without objects has an empty one."
        error = MissingSplit(None, problem, fix)
        error.found = f"{problem} {fix}"
        raise error


def missing_part(root: Path, split: str) -> str:
    """Returns what the file that describes a data set lacks of a split; "" without a file or a fault."""
    file = _description(root)
    if file is None:
        named = (root / f"{name}.{ending}" for name in ("data", "dataset") for ending in ("yaml", "yml"))
        file = next((path for path in named if path.is_file()), None)
        return "" if file is None else f"{file.name}, which has no `names`, or none of `path`, `train` and `val`"
    try:
        description = _read(file, root)
    except (*MISTAKES, UserError):  # the reader reports it
        return ""
    values = next((values for name in names_of(split) if (values := description.places.get(name))), [])
    lost = [str(value) for value in values if _place(value, description.base, root) is None]
    if lost:
        return f"{file.name}, whose {split} is {lost[0]}, and the root has no such folder"
    others = any(_place(value, description.base, root) for places in description.places.values() for value in places)
    return "" if values or others else f"{file.name}, which has no `{split}`"


def _description(root: Path) -> Path | None:
    """Finds the file that describes a root: a YAML file with classes, Darknet's file, or a list of classes."""
    named = [root / "data.yaml", root / "dataset.yaml"]
    others = sorted(path for ending in ("yaml", "yml") for path in root.glob(f"*.{ending}") if path not in named)
    for path in [path for path in named if path.is_file()] + others:
        keys = _top_keys(path)
        if "names" in keys and keys & {"train", "val", "valid", "test", "path"}:
            return path
    if (root / DARKNET).is_file():
        return root / DARKNET
    if any((root / folder).is_dir() for folder in ("labels", "train/labels")):
        return next((root / name for name in CLASSES if (root / name).is_file()), None)
    return None


def _top_keys(file: Path) -> set[str]:
    """Returns the keys of a YAML file that begin a line. The reader parses the whole file later."""
    try:
        with open_file(file) as content:
            text = content.read(MAX_HEAD_BYTES).decode("utf-8", "replace")
    except OSError:  # this file does not describe the data set
        return set()
    return {line.partition(":")[0].strip("\ufeff\"' ") for line in text.splitlines() if not line.startswith((" ", "#"))}


def _read(file: Path, root: Path) -> YoloSet:
    text = read_text(read_bounded(file, MAX_YOLO_BYTES))
    if file.name in CLASSES:
        names = dict(enumerate(read_name(line) for line in text.splitlines() if line.strip()))
        return YoloSet(names, _usual_places(root), root, 0)
    if file.name == DARKNET:
        content = dict(map(str.strip, line.split("=", 1)) for line in text.splitlines() if "=" in line)
        listed = _place(content["names"], root, root)
        if listed is None:
            raise ValueError(f"there is no {content['names']} below {root}")
        lines = read_text(read_bounded(listed, MAX_YOLO_BYTES)).splitlines()
        content["names"] = [line.strip() for line in lines if line.strip()]
    else:
        content = safe_value(text)
    names = content["names"]
    names = names if isinstance(names, dict) else dict(enumerate(names))
    count = content.get("nc", len(names))
    if int(count) != len(names):
        raise ValueError(f"it has {len(names)} names for {count} classes (nc)")
    places = {split: content.get(split) or [] for split in ALL_SPLITS}
    places = {split: [value] if isinstance(value, str) else list(value) for split, value in places.items()}
    base = _place(content.get("path") or ".", root, root) or root
    names = {int(key): read_name(value) for key, value in names.items()}
    return YoloSet(names, places, base, math.prod(map(int, content.get("kpt_shape") or [0])))


def _usual_places(root: Path) -> dict[str, list[str]]:
    """Returns the image folders of each split if no file names them. If no split has one, all of `images` is train."""
    both = {name: [f"images/{name}", f"{name}/images"] for name in ALL_SPLITS}
    places = {name: [folder for folder in folders if (root / folder).is_dir()] for name, folders in both.items()}
    return places if any(places.values()) or not (root / "images").is_dir() else {"train": ["images"]}


def _places(description: YoloSet, split: str, root: Path) -> list[Path]:
    """Returns the places of the images of a split; [] if there are none.

    Raises:
        ValueError: some are missing.
    """
    values = next((values for name in names_of(split) if (values := description.places.get(name))), [])
    places = [_place(value, description.base, root) for value in values]
    if any(places) and not all(places):
        raise ValueError(f"there is no {values[places.index(None)]} below {root}")
    return [] if None in places else places


def _place(value: str, base: Path, root: Path, spell: Callable[[Path], Path] = Path) -> Path | None:
    """Returns the path that a description means. Tools often write it with other parts in front, or with `..`.

    `spell` may correct the spelling of a path.
    """
    parts = [part for part in PurePosixPath(str(value).replace("\\", "/")).parts if part not in ("..", "/")]
    starts = range(max(1, len(parts)))
    tries = (place.joinpath(*parts[start:]) for start in starts for place in (base, root))
    return next((path for path in map(spell, tries) if path.exists()), None)


def _images(place: Path, root: Path) -> list[Path]:
    """Returns the images of a folder, or those that a text file lists."""
    if place.is_dir():
        return list_images(place)
    with reading(place, "a list of images"):
        lines = [line.strip() for line in read_text(read_bounded(place, MAX_YOLO_BYTES)).splitlines() if line.strip()]
        return [_listed(line, place, root) for line in lines]


def _listed(line: str, listing: Path, root: Path) -> Path:
    path = _place(line, listing.parent, root, on_disk)
    return path if path is not None and path.is_file() else root / PurePosixPath(line.replace("\\", "/")).name


def _label_places(image: Path, root: Path) -> list[Path]:
    """Returns the possible label files of an image: in `labels` for an image in `images`, and in the same folder."""
    parts = list(image.relative_to(root).with_suffix(".txt").parts)
    tries = [root.joinpath(*parts)]
    if "images" in parts[:-1]:
        last = max(index for index, part in enumerate(parts[:-1]) if part == "images")
        tries.insert(0, root.joinpath(*parts[:last], "labels", *parts[last + 1 :]))
    return tries


def _objects(file: Path, description: YoloSet, counts: Counts) -> list[Object]:
    objects = []
    with reading(file, "YOLO labels"):
        for number, line in enumerate(read_text(read_bounded(file, MAX_YOLO_BYTES)).splitlines(), 1):
            if line.strip():
                where = f"line {number}"
                objects.append(_object(line.split(), where, description, counts)._replace(place=where))
    return objects


def _number(text: str, where: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise ValueError(f"{where} has {text!r:.60}, where a number with a decimal point is expected") from None


def _object(fields: list[str], where: str, description: YoloSet, counts: Counts) -> Object:
    label, *values = (_number(field, where) for field in fields)
    if label not in description.names:
        raise ValueError(f"{where} has class {fields[0]}, and there are {len(description.names)} classes")
    name, keypoints = description.names[int(label)], description.keypoints
    if keypoints and len(values) == 4 + keypoints:
        counts[KEYPOINTS] += 1
        values = values[:4]
    farthest = max(map(abs, values), default=0)
    if FARTHEST < farthest < math.inf:
        raise ValueError(f"{where} has {farthest:g}, where shares of the image up to 1 are expected")
    if len(values) == 4:
        x, y, width, height = values
        return Object(name, (x - width / 2, y - height / 2, x + width / 2, y + height / 2))
    if len(values) < 6 or len(values) % 2:
        raise ValueError(f"{where} has {len(values)} numbers after its class: neither a box nor a polygon")
    counts[FOUR] += len(values) == 8
    return polygon(name, values)
