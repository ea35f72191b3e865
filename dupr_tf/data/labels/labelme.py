"""Reads LabelMe's layout: a JSON file for each image, usually in the same folder."""

from __future__ import annotations

import base64
import collections
import io
import math
from pathlib import Path

import numpy as np
from PIL import Image

from dupr_tf.data.labels.annotations import ListedImage, Object, class_names_of
from dupr_tf.data.labels.counts import Counts
from dupr_tf.data.labels.finding import OTHERS, ImageIndex, missing_split, part_of, recognised, unlabelled
from dupr_tf.data.labels.run_lengths import mask_from_pixels
from dupr_tf.data.labels.shapes import ROTATED, box, ellipse, join, not_read, polygon
from dupr_tf.data.labels.spelling import on_disk
from dupr_tf.data.labels.split import at, reading, size_of
from dupr_tf.files import read_bounded
from dupr_tf.records import parse_json
from dupr_tf.values import read_name, read_text

MAX_LABELME_BYTES = 256 << 20  # limit for the file of one image, which may contain the pixels
JOINED = "shapes that are a part of a group, joined to one object each"
UNLABELLED = "images without a label file, left out"


def find(root: Path, split: str | None = None) -> list[Path]:
    """Finds the JSON files of a split."""
    return part_of(root, split or "train", _files)[1]


def _files(folder: Path) -> list[Path]:
    for pattern in ("*.json", "*/*.json"):
        if files := recognised(list(folder.glob(pattern)), lambda head: '"shapes"' in head):
            return files
    return []


def read_labelme(root: Path, split: str, counts: Counts, masks: bool) -> tuple[list[ListedImage], list[str]]:
    """Reads the images of a split with their objects, and the classes of train and val by name."""
    folder, files = part_of(root, split, _files)
    if not files:
        raise missing_split(root, split, "LabelMe files")
    index, images = ImageIndex(folder), []
    for file in files:
        with reading(file, "LabelMe annotations"):
            content = parse_json(read_text(read_bounded(file, MAX_LABELME_BYTES)))
            if not (isinstance(content, dict) and "shapes" in content):
                counts.note(OTHERS, file)
                continue
            size = size_of({side: content.get(f"image{side.title()}") for side in ("height", "width")})
            path = _image_path(file, content["imagePath"], folder, index)
            objects = _objects(content["shapes"], size, counts, masks)
            images.append(
                ListedImage(path, size, file.relative_to(root).with_suffix("").as_posix(), objects, labels=file)
            )
    met = class_names_of(images)
    images += unlabelled(index, images, UNLABELLED, counts, ".json")
    return images, sorted(met | _other_names(root, split))


def _image_path(file: Path, name: str, folder: Path, index: ImageIndex) -> Path:
    """Returns the image that a file names, also if both were moved."""
    near = on_disk(file.parent / name.replace("\\", "/").rpartition("/")[2])
    return near if near.is_file() else index.find(f"{file.parent.relative_to(folder)}/{name}", near.name)


def _other_names(root: Path, split: str) -> set[str]:
    """Returns the classes of the other split, so that a class has the same number in both."""
    names: set[str] = set()
    for other in {"train", "val"} - {split}:
        for file in find(root, other):
            with reading(file, "LabelMe annotations"):
                content = parse_json(read_text(read_bounded(file, MAX_LABELME_BYTES)))
                shapes = content.get("shapes", []) if isinstance(content, dict) else []
                objects = _objects(shapes, (0, 0), Counts(), False)
                names |= class_names_of([ListedImage(file, (0, 0), "", objects)])
    return names


def _objects(shapes: list[dict], size: tuple[int, int], counts: Counts, masks: bool) -> list[Object]:
    """Returns the objects of shapes. Shapes of one label and group are parts of one object."""
    objects, groups = [], collections.defaultdict(list)
    for number, shape in enumerate(shapes, 1):
        with at(f"shape {number}"):
            item = _object(shape, size, counts, masks)._replace(place=f"shape {number}")
        group = shape.get("group_id")
        if group is None or item.fault or item.unread:
            objects.append(item)
        else:
            groups[item.name, str(group)].append(item)
    for parts in groups.values():
        counts[JOINED] += len(parts) if len(parts) > 1 else 0
        objects += [join(parts)] if len(parts) > 1 else parts
    return objects


def _object(shape: dict, size: tuple[int, int], counts: Counts, masks: bool) -> Object:
    name, points = read_name(shape["label"]), [tuple(map(float, point)) for point in shape["points"]]
    kind = shape.get("shape_type") or "polygon"
    if kind == "rectangle":
        return box(name, points[0], points[-1] if len(points) == 2 else points[2])
    if kind in ("polygon", "oriented_rectangle"):
        counts[ROTATED] += kind == "oriented_rectangle"
        return polygon(name, points)
    if kind == "circle":
        return ellipse(name, points[0], [math.dist(*points)] * 2, 0, counts)
    if kind == "mask":
        return _mask(name, points, shape["mask"], size, masks)
    return not_read(f"shapes of kind {kind}")


def _mask(name: str, points: list, encoded: str, size: tuple[int, int], masks: bool) -> Object:
    """Returns the object of a mask: a PNG of the pixels from its first corner to its last, both included."""
    (x1, y1), (x2, y2) = points
    item = Object(name, (x1, y1, x2 + 1, y2 + 1))
    if not masks:
        return item
    with Image.open(io.BytesIO(base64.b64decode(encoded)), formats=["PNG"]) as picture:
        pixels = np.asarray(picture) != 0
    full, (left, top) = np.zeros(size, bool), (round(x1), round(y1))
    if pixels.ndim != 2 or full[top : top + pixels.shape[0], left : left + pixels.shape[1]].shape != pixels.shape:
        raise ValueError(f"the mask of a {name} reaches beyond its image")
    full[top : top + pixels.shape[0], left : left + pixels.shape[1]] = pixels
    return item._replace(segmentation=mask_from_pixels(full))
