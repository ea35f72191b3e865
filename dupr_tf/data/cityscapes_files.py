"""Cityscapes' layout: `leftImg8bit/{split}/{city}/*_leftImg8bit.png` and, in `gtFine`, what is in each of them.

An instance image holds for every pixel the id of its label, or, where one object can be told from the next, a thousand
times that and the number of the object. Of the labels below, those with a train id are the 19 classes of the semantic
task, the eight from 24 on the classes of the instance task (cityscapesScripts, `helpers/labels.py`). Where there is no
PNG of ids, they are drawn from the polygons. Nothing here imports TensorFlow.
"""

from __future__ import annotations

import collections
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, UnidentifiedImageError
from pycocotools import mask as coco_mask

from dupr_tf.data.entries import MISTAKES, Entry, Object, bounded, file_error
from dupr_tf.data.masks import area_of, as_coco, mask_from_pixels, masks_by_value
from dupr_tf.errors import UserError

LABELS = (  # by id from 0 on
    *("unlabeled", "ego vehicle", "rectification border", "out of roi", "static", "dynamic", "ground", "road"),
    *("sidewalk", "parking", "rail track", "building", "wall", "fence", "guard rail", "bridge", "tunnel", "pole"),
    *("polegroup", "traffic light", "traffic sign", "vegetation", "terrain", "sky", "person", "rider", "car"),
    *("truck", "bus", "caravan", "trailer", "train", "motorcycle", "bicycle"),
)
SEMANTIC_IDS = (7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33)  # of the train ids 0 … 18
INSTANCE_IDS = (24, 25, 26, 27, 28, 31, 32, 33)
COUNTED_IDS = (*INSTANCE_IDS, 29, 30)  # drawn one by one in the files; caravans and trailers are not evaluated
VOID_IDS = tuple(number for number in range(len(LABELS)) if number not in SEMANTIC_IDS)
SEMANTIC_NAMES = tuple(LABELS[number] for number in SEMANTIC_IDS)
INSTANCE_NAMES = tuple(LABELS[number] for number in INSTANCE_IDS)
MAX_POLYGON_BYTES = 64 << 20
IMAGES, TRUTH = "leftImg8bit", "gtFine"


def cityscapes_scenes(root: Path, split: str) -> list[tuple[Path, Path, str]]:
    """Every image of a split, the beginning of the names of its truth, and `city/name`, sorted.

    Raises:
        UserError: there is no such split, or it has no images.
    """
    folder = root / IMAGES / split
    images = sorted(folder.glob(f"*/*_{IMAGES}.png"))
    if not images:
        raise UserError(
            None, f"There is no {folder}/CITY/*_{IMAGES}.png.", "Pass the root of Cityscapes, and one of its splits."
        )
    names = [(path, path.name.removesuffix(f"_{IMAGES}.png")) for path in images]
    return [
        (path, root / TRUTH / split / path.parent.name / f"{name}_{TRUTH}", f"{path.parent.name}/{name}")
        for path, name in names
    ]


def read_cityscapes(root: Path, split: str, counts: collections.Counter, masks: bool) -> tuple[list[Entry], list[str]]:
    """The images of a split with the objects of the eight classes, and these; groups are ignored."""
    scenes = cityscapes_scenes(root, split)
    with ThreadPoolExecutor() as pool:  # most of the time goes into PNG
        return list(pool.map(lambda scene: _entry(*scene, masks), scenes)), list(INSTANCE_NAMES)


def _entry(path: Path, truth: Path, name: str, masks: bool) -> Entry:
    ids = instance_ids(truth)
    entry = Entry(path, ids.shape, name)
    found = masks_by_value(ids)
    for value, mask in found.items():
        number = value if value < 1000 else value // 1000
        if number in INSTANCE_IDS:
            x, y, width, height = coco_mask.toBbox(as_coco(mask, ids.shape)).tolist()
            entry.objects.append(
                Object(
                    LABELS[number],
                    x,
                    y,
                    x + width,
                    y + height,
                    area_of(mask, ids.shape),
                    value < 1000,
                    mask if masks else None,
                )
            )
    if masks:
        entry.void = mask_from_pixels(np.isin(ids, VOID_IDS))
    return entry


def instance_ids(truth: Path) -> np.ndarray:
    """(H, W) int32, ids as in `*_instanceIds.png`, which is read where it is, else `*_polygons.json`.

    Args:
        truth: path up to and with `_gtFine`.
    """
    file = truth.with_name(f"{truth.name}_instanceIds.png")
    if file.is_file():
        return _png(file)
    return _drawn(truth, as_labels=False)


def label_ids(truth: Path) -> np.ndarray:
    """(H, W) int32, ids of labels: from `*_labelIds.png`, else `*_instanceIds.png`, else `*_polygons.json`."""
    file = truth.with_name(f"{truth.name}_labelIds.png")
    if file.is_file():
        return _png(file)
    file = truth.with_name(f"{truth.name}_instanceIds.png")
    if file.is_file():
        ids = _png(file)
        return np.where(ids >= 1000, ids // 1000, ids)
    return _drawn(truth, as_labels=True)


def _png(file: Path) -> np.ndarray:
    try:
        with file.open("rb") as content, Image.open(content, formats=["PNG"]) as image:
            if image.mode not in ("L", "P", "I", "I;16", "I;16B"):
                raise ValueError(f"its pixels have mode {image.mode}, where ids have 8 or 16 bits")
            return np.asarray(image).astype(np.int32)
    except (OSError, SyntaxError, ValueError, UnidentifiedImageError, Image.DecompressionBombError) as error:
        raise file_error(error, "Cityscapes", file) from None


def _drawn(truth: Path, as_labels: bool) -> np.ndarray:
    """The polygons of a scene, one over the other; each object of a counted label has its number."""
    file = truth.with_name(f"{truth.name}_polygons.json")
    if not file.is_file():
        raise UserError(
            None,
            f"{truth.parent} has no {truth.name}_instanceIds.png, _labelIds.png or _polygons.json.",
            "Add it, or remove the image.",
        )
    try:
        content = json.loads(bounded(file, MAX_POLYGON_BYTES))
        height, width = int(content["imgHeight"]), int(content["imgWidth"])
        if not 0 < height * width <= Image.MAX_IMAGE_PIXELS or height < 0:
            raise ValueError(f"its image has {width} x {height} pixels")
        canvas = Image.new("I", (width, height), 0)
        draw, numbers = ImageDraw.Draw(canvas), dict.fromkeys(COUNTED_IDS, 0)
        for thing in content["objects"]:
            _draw_thing(draw, thing, numbers, as_labels, (width, height))
    except (*MISTAKES, IndexError) as error:
        raise file_error(error, "Cityscapes", file) from None
    return np.asarray(canvas).astype(np.int32)


def _draw_thing(draw, thing: dict, numbers: dict[int, int], as_labels: bool, size: tuple[int, int]) -> None:
    name = thing["label"]
    if thing.get("deleted") or name == "license plate":  # no label of the ground truth
        return
    group = name not in LABELS
    label = name.removesuffix("group") if group else name
    if label not in LABELS:
        raise ValueError(f"{name!r:.60} is no label of Cityscapes")
    number = LABELS.index(label)
    points = np.clip(np.asarray(thing["polygon"], np.float64).reshape(-1, 2), -np.array(size), 2 * np.array(size))
    if not np.isfinite(points).all() or len(points) < 2:
        raise ValueError(f"a polygon of {name} has no points")
    value = number
    if number in numbers and not group and not as_labels:
        value = number * 1000 + numbers[number]
        numbers[number] += 1
    draw.polygon([tuple(point) for point in points.tolist()], fill=value)
