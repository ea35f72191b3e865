"""Reads CVAT's XML for images 1.1: a file for each task, with images in the same folder or in `images/`."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from pathlib import Path

import numpy as np

from dupr_tf.data.labels.annotations import ListedImage, Object, class_names_of
from dupr_tf.data.labels.counts import Counts
from dupr_tf.data.labels.finding import OTHERS, ImageIndex, missing_split, part_of, recognised, split_of
from dupr_tf.data.labels.run_lengths import mask_from_pixels
from dupr_tf.data.labels.shapes import box, ellipse, not_read, polygon, rotated_box
from dupr_tf.data.labels.split import at, reading, size_of
from dupr_tf.data.labels.voc import WithoutDoctype
from dupr_tf.errors import UserError
from dupr_tf.files import read_bounded
from dupr_tf.values import read_flag, read_name

MAX_CVAT_BYTES = 1 << 30
SHAPES, OTHER_SHAPES = ("box", "polygon", "ellipse", "mask"), ("points", "polyline", "skeleton", "cuboid")
FLAGS = ("iscrowd", "ignore", "difficult")  # attributes that mark an object as ignored


def find(root: Path, split: str | None = None) -> list[Path]:
    """Finds the XML files of a split. A file whose images are in subsets belongs to each of these subsets."""
    _, files = part_of(root, split or "train", _files)
    if files or split == "train":
        return files
    return [file for file in _files(root) if split in {split_of(name) for name in _subsets(file)}]


def _files(folder: Path) -> list[Path]:
    return recognised([*folder.glob("*.xml"), *folder.glob("annotations/*.xml")], lambda head: "<annotations>" in head)


def _subsets(file: Path) -> set[str]:
    with reading(file, "CVAT annotations"):
        return {node.get("subset", "") for node in _parse(file).iter("image")}


def _parse(file: Path) -> ET.Element:
    return ET.fromstring(read_bounded(file, MAX_CVAT_BYTES), ET.XMLParser(target=WithoutDoctype()))


def read_cvat(root: Path, split: str, counts: Counts, masks: bool) -> tuple[list[ListedImage], list[str]]:
    """Reads the images of a split with their objects, and the classes in the order of the files."""
    files = find(root, split)
    if not files:
        raise missing_split(root, split, "CVAT annotations (XML for images 1.1)")
    folder, label_files = part_of(root, split, _files)
    index, images, names = ImageIndex(folder if label_files else root), [], {}
    for file in files:
        with reading(file, "CVAT annotations"):
            tree = _parse(file)
            if tree.tag != "annotations":
                counts.note(OTHERS, file)
                continue
            if tree.find("track") is not None:
                problem = f"{file} is an export for videos, whose tracks are not read."
                raise UserError(None, problem, "Export the task as CVAT for images 1.1, with its images.")
            labels = [node for node in tree.iterfind("meta//labels/label") if node.find("parent") is None]
            names |= dict.fromkeys(read_name(node.findtext("name") or "") for node in labels)
            for node in tree.iter("image"):
                subset = node.get("subset", "")
                if label_files and folder == root and split_of(subset) not in ("", "default", split):
                    continue
                if not label_files and split_of(subset) != split:
                    continue
                images.append(_image(node, index, subset, len(files) > 1 and file.stem, counts, masks))
                images[-1].labels = file
    return images, list(names) or sorted(class_names_of(images))


def _image(node: ET.Element, index: ImageIndex, subset: str, task, counts, masks: bool) -> ListedImage:
    size = size_of({side: float(node.get(side) or 0) for side in ("height", "width")})
    path = index.find(*([f"{subset}/{node.get('name')}"] if subset else []), node.get("name"))
    name = f"{task}/{node.get('name')}" if task else node.get("name")
    objects = []
    for number, shape in enumerate(node, 1):
        with at(place := f"{shape.tag} {number} of the image {node.get('name')}"):
            item = _object(shape, size, counts, masks)
        objects += [] if item is None else [item._replace(place=place)]
    return ListedImage(path, size, name, objects)


def _object(node: ET.Element, size: tuple[int, int], counts: Counts, masks: bool) -> Object | None:
    """Returns the object of a shape, if the node is a shape."""

    def values(*names: str) -> list[float]:
        return [float(node.get(name)) for name in names]

    kind = f"shapes of kind {node.tag}"
    if node.tag in OTHER_SHAPES:
        return not_read(kind)
    if node.tag not in SHAPES:  # a tag of the image
        counts[f"{kind}, not read"] += 1
        return None
    name, turn = read_name(node.get("label") or ""), float(node.get("rotation") or 0)
    ignored = any(read_flag(one.text) for one in node.iter("attribute") if one.get("name", "").lower() in FLAGS)
    if node.tag == "box":
        x1, y1, x2, y2 = values("xtl", "ytl", "xbr", "ybr")
        if turn % 360 == 0:
            return box(name, (x1, y1), (x2, y2), ignored)
        return rotated_box(name, ((x1 + x2) / 2, (y1 + y2) / 2), (x2 - x1, y2 - y1), turn, counts, ignored)
    if node.tag == "ellipse":
        return ellipse(name, values("cx", "cy"), values("rx", "ry"), turn, counts, ignored)
    if node.tag == "polygon":
        points = [list(map(float, point.split(","))) for point in node.get("points").split(";")]
        return polygon(name, points, ignored)
    return _mask(name, list(map(int, values("left", "top", "width", "height"))), node, size, ignored, masks)


def _mask(name, place: list[int], node: ET.Element, size, ignored: bool, masks: bool) -> Object:
    """Returns the object of a mask: run lengths, row by row, of the pixels in its box. The first run is empty."""
    left, top, width, height = place
    runs = np.array([int(run) for run in node.get("rle").split(",")])
    if min(width, height) < 1 or runs.min() < 0 or runs.sum() != width * height:
        raise ValueError(f"a mask of {width} x {height} pixels has run lengths of {runs.sum()}")
    item = Object(name, (left, top, left + width, top + height), float(runs[1::2].sum()), ignored)
    if not masks:
        return item
    if left < 0 or top < 0 or left + width > size[1] or top + height > size[0]:
        raise ValueError(f"a mask reaches beyond its image of {size[1]} x {size[0]} pixels")
    pixels = np.zeros(size, np.uint8)
    pixels[top : top + height, left : left + width] = np.repeat(np.arange(len(runs)) % 2, runs).reshape(height, width)
    return item._replace(segmentation=mask_from_pixels(pixels))
