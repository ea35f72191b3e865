"""Writes a labelled data set in the layout of COCO or YOLO, and counts what that layout cannot hold."""

from __future__ import annotations

import collections
import contextlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from dupr_tf.data.labels.annotations import ListedImage, Object, count_class_differences, list_objects
from dupr_tf.data.labels.counts import Counts
from dupr_tf.data.labels.split import MissingSplit, log
from dupr_tf.data.layouts import BOXES, layout_of
from dupr_tf.errors import UserError
from dupr_tf.files import write_whole
from dupr_tf.locks import LOCK_FILE, locked
from dupr_tf.safe_yaml import quoted

SPLITS = ("train", "val", "test")
IGNORED = "boxes that are ignored (crowd, difficult), which YOLO cannot mark, left out"
EMPTIED = "images of whose objects none can be used, left out"
HIDDEN = "images whose boxes are all ignored, left out"
OUTLINES = "outlines of objects, of which YOLO gets the boxes, since some objects have none or several"


class Converted(NamedTuple):
    """Describes a split that was written."""

    split: str
    images: int
    boxes: int
    classes: dict[str, int]  # {class: number of boxes}
    read: dict[str, int]  # {what was odd in the labels: how often}
    lost: dict[str, int]  # {what the new layout cannot hold: count}


def convert(root: Path, output: Path, to: str, kind: str, max_bad_share: float) -> list[Converted]:
    """Writes every split that a data set has.

    Args:
        root: root of the data set.
        output: folder to write, new or empty. Images become hard links, or copies if the file system has no links.
        to: a key of `WRITERS`.
        kind: `data.kind`.
        max_bad_share: share of the images, and of the objects, that may be unusable.

    Raises:
        UserError: there is no split, or the labels are wrong.
    """
    splits, classes, read, missing = {}, {}, {}, None
    for split in SPLITS:
        counts = Counts()
        try:
            masks = BOXES[layout_of(BOXES, root, kind, split)].facts["masks"]
            images, names = list_objects(root, split, kind, max_bad_share, masks, counts)
        except MissingSplit as error:
            missing = missing or error
            if error.found:
                log.warning("%s: not converted. %s", split, error.found)
            continue
        if classes:
            count_class_differences(names, list(classes), counts)
        classes |= dict.fromkeys(names)
        kept = [image for image in images if image.objects or image.bare]
        for image in images:
            if not (image.objects or image.bare):
                counts.note(EMPTIED, image.path)
        same = next((other for other, earlier in splits.items() if _contents(earlier) == _contents(kept)), None)
        if same:
            log.info("%s: the same images and labels as %s, not written again", split, same)
            continue
        splits[split], read[split] = kept, counts
    if not splits:
        raise missing
    if not any(image.objects for images in splits.values() for image in images):
        problem = f"None of the {sum(map(len, splits.values()))} images of {root} has a box."
        raise UserError(None, problem, "Pass the root of labelled images.")
    with _new_folder(output):
        return WRITERS[to](splits, list(classes), read, output)


@contextlib.contextmanager
def _new_folder(output: Path) -> Iterator[None]:
    """Locks a new or empty folder. If the block that fills it fails, the folder is emptied, so it can be used again."""
    with locked(output):
        if any(path.name != LOCK_FILE for path in output.iterdir()):
            raise UserError("--output", f"{output} is not empty.", "Pass a new folder.")
        try:
            yield
        except BaseException:
            for path in output.iterdir():
                if path.name != LOCK_FILE:
                    shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
            raise


def _contents(images: list[ListedImage]) -> dict[Path, list[Object]]:
    return {image.path: [item._replace(place="") for item in image.objects] for image in images}


def _place_images(images: list[ListedImage], folder: Path) -> list[Path]:
    """Links or copies images into a folder, and keeps their subfolders. Returns their names there."""
    common = Path(os.path.commonpath([image.path.parent for image in images])) if images else Path()
    names, taken = [], set()
    for image in images:
        name = image.path.relative_to(common)
        if name.with_suffix("") in taken:  # a.jpg beside a.png: both would have the same label file
            name = name.with_name(f"{name.stem}_{name.suffix[1:]}{name.suffix}")
        taken.add(name.with_suffix(""))
        names.append(name)
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        try:
            os.link(image.path.resolve(), folder / name)
        except FileExistsError:
            raise UserError("--output", f"{folder / name} exists already.", "Pass a new folder.") from None
        except OSError:
            shutil.copyfile(image.path, folder / name)
    return names


def _write_coco(splits: dict, classes: list[str], read: dict, output: Path) -> list[Converted]:
    numbers = {name: number for number, name in enumerate(classes, 1)}
    written = []
    for split, images in splits.items():
        names = _place_images(images, output / "images" / split)
        rows, annotations = [], []
        for number, (image, name) in enumerate(zip(images, names, strict=True), 1):
            height, width = map(int, image.size)
            rows.append({"id": number, "file_name": name.as_posix(), "height": height, "width": width})
            for item in image.objects:
                row = {"id": len(annotations) + 1, "image_id": number, "category_id": numbers[item.name]}
                annotations.append(row | _coco_fields(item, image.size))
        counted = dict.fromkeys(classes, 0) | collections.Counter(i.name for image in images for i in image.objects)
        categories = [{"id": number, "name": name} for name, number in numbers.items()]
        content = {"images": rows, "annotations": annotations, "categories": categories}
        write_whole(output / "annotations" / f"instances_{split}.json", json.dumps(content))
        written.append(Converted(split, len(images), len(annotations), counted, read[split], {}))
    return written


def _coco_fields(item: Object, size: tuple[int, int]) -> dict[str, Any]:
    x1, y1, x2, y2 = (round(side, 4) for side in item.box)
    box = [x1, y1, round(x2 - x1, 4), round(y2 - y1, 4)]
    area = box[2] * box[3] if item.area is None else item.area
    fields = {"bbox": box, "area": area, "iscrowd": int(item.ignored)}
    outlines = item.segmentation
    if isinstance(outlines, bytes):
        outlines = {"size": [int(side) for side in size], "counts": outlines.decode("ascii")}
    return fields if outlines is None else {**fields, "segmentation": outlines}


def _write_yolo(splits: dict, classes: list[str], read: dict, output: Path) -> list[Converted]:
    numbers = {name: number for number, name in enumerate(classes)}
    shown = [item for images in splits.values() for image in images for item in image.objects if not item.ignored]
    polygons = bool(shown) and all(_is_polygon(item) for item in shown)
    written = []
    for split, images in splits.items():
        lost: collections.Counter = collections.Counter()
        kept = [image for image in images if not image.objects or not all(item.ignored for item in image.objects)]
        lost[HIDDEN] = len(images) - len(kept)
        lost[IGNORED] = sum(item.ignored for image in images for item in image.objects)
        counted = dict.fromkeys(classes, 0)
        for image, name in zip(kept, _place_images(kept, output / "images" / split), strict=True):
            items = [item for item in image.objects if not item.ignored]
            lost[OUTLINES] += 0 if polygons else sum(item.segmentation is not None for item in items)
            lines = [f"{numbers[item.name]} {_yolo_numbers(item, image.size, polygons)}\n" for item in items]
            write_whole(output / "labels" / split / name.with_suffix(".txt"), "".join(lines))
            for item in items:
                counted[item.name] += 1
        odd = {what: count for what, count in lost.items() if count}
        written.append(Converted(split, len(kept), sum(counted.values()), counted, read[split], odd))
    places = "".join(f"{split}: images/{split}\n" for split in splits)
    names = "".join(f"  {number}: {quoted(name)}\n" for name, number in numbers.items())
    write_whole(output / "data.yaml", f"{places}names:\n{names}")
    return written


def _is_polygon(item: Object) -> bool:
    """Returns True if an object has one polygon, with other numbers of points than YOLO's boxes."""
    outlines = item.segmentation
    return isinstance(outlines, list) and len(outlines) == 1 and len(outlines[0]) >= 6


def _yolo_numbers(item: Object, size: tuple[int, int], polygons: bool) -> str:
    height, width = size
    x1, y1, x2, y2 = item.box
    numbers = [(x1 + x2) / 2 / width, (y1 + y2) / 2 / height, (x2 - x1) / width, (y2 - y1) / height]
    if polygons:
        points = np.reshape(item.segmentation[0], (-1, 2)) / [width, height]
        numbers = np.clip(points, 0, 1).ravel().tolist()
    return " ".join(f"{number:.8f}" for number in numbers)


WRITERS: dict[str, Callable] = {"coco": _write_coco, "yolo": _write_yolo}
