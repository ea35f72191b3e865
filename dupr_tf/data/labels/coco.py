"""COCO's layout: one JSON file a split, beside a folder of images."""

from __future__ import annotations

import collections
import json
from collections.abc import Iterator
from pathlib import Path

from dupr_tf.data.labels.annotations import ListedImage, Object
from dupr_tf.data.labels.split import MISTAKES, MissingSplit, inside, reading, size_of
from dupr_tf.data.layouts import coco_files, split_folder
from dupr_tf.files import read_bounded
from dupr_tf.values import read_flag, read_id, read_name

MAX_COCO_BYTES = 4 << 30  # read, it takes about six times as much memory; COCO's largest has 0.5 GB, LVIS's 1.2


def read_coco(root: Path, split: str, counts: collections.Counter, masks: bool) -> tuple[list[ListedImage], list[str]]:
    """The listed images with their objects, and the classes by id; `counts` gets what was odd."""
    files = coco_files(root, split)
    file = next((path for path in files if path.is_file()), files[0])
    if not file.is_file():
        raise MissingSplit(None, f"There is no {file}.", "Add it, or pass another root or split.")
    with reading(file, "COCO annotations"):
        content = json.loads(read_bounded(file, MAX_COCO_BYTES))
        categories, rows = (_by_id(content, what) for what in ("categories", "images"))
        names = {key: read_name(categories[key]["name"]) for key in sorted(categories, key=_rank)}
        folder = _folder(root, split, file, [inside(row["file_name"]) for row in rows.values()])
        images = {key: ListedImage(folder / row["file_name"], size_of(row), str(key)) for key, row in rows.items()}
        for image, item in _objects(content["annotations"], images, names, counts):
            images[image].objects.append(item)
    return list(images.values()), list(names.values())


def _by_id(content: dict, what: str) -> dict[int | str, dict]:
    """{id: row} of a list of the file. Raises ValueError for an id that occurs twice after normalisation."""
    rows = {}
    for row in content[what]:
        key = read_id(row["id"])
        if key in rows:
            raise ValueError(f"two {what} have the id {key!r} ({rows[key]['id']!r} and {row['id']!r})")
        rows[key] = row
    return rows


def _rank(key: int | str) -> tuple:
    """Sorts numbers before text."""
    return isinstance(key, str), key


def _objects(
    annotations: list[dict], images: dict, names: dict, counts: collections.Counter
) -> Iterator[tuple[int | str, Object]]:
    """Image ids and objects, without those that repeat an earlier one in id, image, class and box.

    Ids alone mean nothing here: some tools count them anew in each image.
    """
    seen, unlisted = set(), []
    for number, annotation in enumerate(annotations):
        try:
            image, category = (read_id(annotation[field]) for field in ("image_id", "category_id"))
            if image not in images or category not in names:
                unlisted.append(annotation)
                continue
            item = _object(annotation, names[category])
        except MISTAKES as error:
            shown = ", ".join(f"{field} {annotation.get(field)!r:.40}" for field in ("id", "image_id", "bbox"))
            reason = str(error) if type(error) is ValueError else f"{type(error).__name__} {error}"
            raise ValueError(f"the annotation of {shown}: {reason}") from None
        key = str(annotation.get("id", f"number {number}")), image, category, item.box
        if key in seen:
            counts["annotations that repeat another, left out"] += 1
            continue
        seen.add(key)
        yield image, item
    if unlisted:
        image, category = (unlisted[0][field] for field in ("image_id", "category_id"))
        raise ValueError(
            f"the image or category of {len(unlisted)} of {len(annotations)} annotations is not listed, such as "
            f"category {category!r} on image {image!r}"
        )


def _object(annotation: dict, name: str) -> Object:
    x, y, width, height = (float(value) for value in annotation["bbox"])
    area = annotation.get("area")
    ignored = [read_flag(annotation.get(flag)) for flag in ("iscrowd", "ignore", "difficult")]
    box = (x, y, x + width, y + height)
    return Object(name, box, None if area is None else float(area), any(ignored), annotation.get("segmentation"))


def _folder(root: Path, split: str, file: Path, names: list[str]) -> Path:
    """The folder that holds the first listed images; sets differ in what they call it."""
    return split_folder(root, split, (file.stem.removeprefix("instances_"),), names[:100], file)
