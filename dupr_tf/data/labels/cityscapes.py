"""Reads Cityscapes' layout: `leftImg8bit/{split}/{city}/*_leftImg8bit.png`, with the labels in `gtFine`.

An instance image holds the id of a label for every pixel. For a pixel of a single object it holds a thousand times the
id, plus the number of the object. The labels below with a train id are the 19 classes of the semantic task. The eight
from 24 on are the classes of the instance task (cityscapesScripts, `helpers/labels.py`). If there is no PNG of ids, the
ids are drawn from the polygons.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw
from pycocotools import mask as coco_mask

from dupr_tf.data.images.listing import is_hidden
from dupr_tf.data.labels.annotations import NO_FILE, ListedImage, Object
from dupr_tf.data.labels.counts import Counts
from dupr_tf.data.labels.run_lengths import area_of, as_coco, mask_from_pixels
from dupr_tf.data.labels.segments import SegmentedImages, class_table
from dupr_tf.data.labels.split import MissingSplit, look_at_files, read_png, reading, refuse_many
from dupr_tf.errors import UserError
from dupr_tf.files import read_bounded
from dupr_tf.records import parse_json
from dupr_tf.resources import usable_cpus

LABELS = (  # by id from 0 on
    *("unlabeled", "ego vehicle", "rectification border", "out of roi", "static", "dynamic", "ground", "road"),
    *("sidewalk", "parking", "rail track", "building", "wall", "fence", "guard rail", "bridge", "tunnel", "pole"),
    *("polegroup", "traffic light", "traffic sign", "vegetation", "terrain", "sky", "person", "rider", "car"),
    *("truck", "bus", "caravan", "trailer", "train", "motorcycle", "bicycle"),
)
SEMANTIC_IDS = (7, 8, 11, 12, 13, 17, *range(19, 29), 31, 32, 33)  # with train ids 0 … 18
INSTANCE_IDS = (24, 25, 26, 27, 28, 31, 32, 33)
COUNTED_IDS = tuple(range(24, 34))  # have single objects; caravans and trailers are not evaluated
VOID_IDS = tuple(number for number in range(len(LABELS)) if number not in SEMANTIC_IDS)
SEMANTIC_NAMES = tuple(LABELS[number] for number in SEMANTIC_IDS)
INSTANCE_NAMES = tuple(LABELS[number] for number in INSTANCE_IDS)
MAX_POLYGON_BYTES = 64 << 20


def read_objects(root: Path, split: str, counts: Counts, masks: bool) -> tuple[list[ListedImage], list[str]]:
    """Reads the images of a split with the objects of the eight classes, and the classes. Groups are ignored."""
    scenes = _scenes(root, split)
    with ThreadPoolExecutor(usable_cpus()) as pool:  # decoding PNG takes most of the time
        return list(pool.map(lambda scene: _with_objects(*scene, masks), scenes)), list(INSTANCE_NAMES)


def read_classes(root, split, class_names, ignore_value, max_bad_share) -> SegmentedImages:
    """Lists a split with the 19 classes of pixels; see `read_segments`."""
    names = tuple(class_names or SEMANTIC_NAMES)
    table = class_table(dict(zip(SEMANTIC_IDS, SEMANTIC_NAMES, strict=True)), names)
    scenes = _scenes(root, split)
    facts = look_at_files([path for path, *_ in scenes])
    read = [(*scene, fact.size) for scene, fact in zip(scenes, facts, strict=True) if fact and all(fact.size)]
    unread = [path for path, *_ in scenes if path not in {path for path, *_ in read}]
    refuse_many(unread, len(scenes), max_bad_share, "have no file that can be read")
    paths, truths, ids, sizes = zip(*read, strict=True)
    counts, sizes = {NO_FILE: len(unread)}, np.array(sizes, np.int32)
    return SegmentedImages(tuple(map(str, paths)), tuple(map(str, truths)), sizes, ids, names, table, label_ids, counts)


def _scenes(root: Path, split: str) -> list[tuple[Path, Path, str]]:
    """Lists the images of a split, the paths of their labels up to `_gtFine`, and their ids `city/name`, sorted."""
    images = (root / "leftImg8bit" / split).glob("*/*_leftImg8bit.png")
    paths = sorted(path for path in images if not is_hidden(path.name) and not is_hidden(path.parent.name))
    if not paths:
        problem = f"There is no {root}/leftImg8bit/{split}/CITY/*_leftImg8bit.png."
        raise MissingSplit(None, problem, "Pass the root of Cityscapes, and one of its splits.")
    ids = [f"{path.parent.name}/{path.name.removesuffix('_leftImg8bit.png')}" for path in paths]
    return [(path, root / "gtFine" / split / f"{name}_gtFine", name) for path, name in zip(paths, ids, strict=True)]


def _with_objects(path: Path, truth: Path, name: str, masks: bool) -> ListedImage:
    ids = instance_ids(truth)
    image = ListedImage(path, ids.shape, name, void=mask_from_pixels(np.isin(ids, VOID_IDS)) if masks else None)
    by_column = np.asfortranarray(ids)  # pycocotools counts pixels by columns
    for value in np.unique(ids).tolist():
        number = value if value < 1000 else value // 1000
        if number in INSTANCE_IDS:
            mask = mask_from_pixels(by_column == value)
            x, y, width, height = coco_mask.toBbox(as_coco(mask, ids.shape)).tolist()
            box, area = (x, y, x + width, y + height), area_of(mask, ids.shape)
            image.objects.append(Object(LABELS[number], box, area, value < 1000, mask if masks else None))
    return image


def label_ids(truth: Path) -> np.ndarray:
    """Reads the ids of labels, (H, W) int32, also from `*_labelIds.png`; see `instance_ids`."""
    ids = instance_ids(truth, ("labelIds", "instanceIds"))
    return np.where(ids >= 1000, ids // 1000, ids)


def instance_ids(truth: Path, images: tuple[str, ...] = ("instanceIds",)) -> np.ndarray:
    """Reads ids, (H, W) int32, from `*_instanceIds.png`. If it is missing, draws them from `*_polygons.json`.

    Args:
        truth: path up to and including `_gtFine`.
        images: kinds of PNG to look for, in this order.
    """
    for kind in images:
        file = truth.with_name(f"{truth.name}_{kind}.png")
        if file.is_file():
            return read_png(file, "ids of 8 or 16 bits", ("L", "P", "I", "I;16", "I;16B"))
    file = truth.with_name(f"{truth.name}_polygons.json")
    if not file.is_file():
        problem = f"{truth.parent} has no {truth.name}_instanceIds.png, _labelIds.png or _polygons.json."
        raise UserError(None, problem, "Add it, or remove the image.")
    with reading(file, "Cityscapes annotations"):
        return _drawn(parse_json(read_bounded(file, MAX_POLYGON_BYTES)))


def _drawn(content: dict) -> np.ndarray:
    """Draws the polygons of a scene, one over the other. Each object of a label with instances has its number."""
    size = width, height = int(content["imgWidth"]), int(content["imgHeight"])
    if not 0 < height * width <= Image.MAX_IMAGE_PIXELS or height < 0:
        raise ValueError(f"its image has {width} x {height} pixels")
    canvas = Image.new("I", size, 0)
    draw, numbers = ImageDraw.Draw(canvas), dict.fromkeys(COUNTED_IDS, 0)
    for thing in content["objects"]:
        name = thing["label"]
        if thing.get("deleted") or name == "license plate":  # no label of the ground truth
            continue
        label = name if name in LABELS else name.removesuffix("group")
        if label not in LABELS:
            raise ValueError(f"{name!r:.60} is no label of Cityscapes")
        points = np.clip(np.asarray(thing["polygon"], np.float64).reshape(-1, 2), -np.array(size), 2 * np.array(size))
        if not np.isfinite(points).all() or len(points) < 2:
            raise ValueError(f"a polygon of {name} has no points")
        value = LABELS.index(label)
        if value in numbers and label == name:
            numbers[value] += 1
            value = value * 1000 + numbers[value] - 1
        draw.polygon([tuple(point) for point in points.tolist()], fill=value)
    return np.asarray(canvas).astype(np.int32)
