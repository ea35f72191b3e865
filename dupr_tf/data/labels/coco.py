"""COCO's layout: one JSON file a split, beside a folder of images."""

from __future__ import annotations

import collections
import json
from pathlib import Path

from dupr_tf.data.labels.annotations import ListedImage, Object
from dupr_tf.data.labels.split import inside, reading, size_of
from dupr_tf.files import read_bounded
from dupr_tf.data.layouts import coco_files
from dupr_tf.errors import UserError

MAX_COCO_BYTES = 4 << 30  # read, it takes about six times as much memory; COCO's largest has 0.5 GB, LVIS's 1.2


def read_coco(root: Path, split: str, counts: collections.Counter, masks: bool) -> tuple[list[ListedImage], list[str]]:
    """The listed images with their objects, and the classes by id; `counts` gets what was odd."""
    files = coco_files(root, split)
    file = next((path for path in files if path.is_file()), files[0])
    with reading(file, "COCO annotations"):
        content = json.loads(read_bounded(file, MAX_COCO_BYTES))
        for what in ("categories", "images"):
            ids = collections.Counter(row["id"] for row in content[what])
            repeated = [key for key, count in ids.items() if count > 1]
            if repeated:
                raise ValueError(f"{len(repeated)} ids of {what} occur more than once, such as {repeated[0]}")
        names = {c["id"]: str(c["name"]) for c in sorted(content["categories"], key=lambda c: c["id"])}
        folder = _folder(root, split, file, [inside(image["file_name"]) for image in content["images"]])
        images = {
            image["id"]: ListedImage(folder / image["file_name"], size_of(image), str(image["id"]))
            for image in content["images"]
        }
        annotations = _without_repeated(content["annotations"], counts)
        odd = [a for a in annotations if a["category_id"] not in names or a["image_id"] not in images]
        if odd:
            raise ValueError(
                f"the image or category of {len(odd)} of {len(annotations)} annotations is not listed, such as "
                f"category {odd[0]['category_id']} on image {odd[0]['image_id']}"
            )
        for annotation in annotations:
            images[annotation["image_id"]].objects.append(_object(annotation, names))
    return list(images.values()), list(names.values())


def _without_repeated(annotations: list[dict], counts: collections.Counter) -> list[dict]:
    """Leaves out an annotation that repeats an earlier one in id, image, class and box; ids alone mean nothing here."""
    kept = {}
    for number, annotation in enumerate(annotations):
        key = annotation.get("id"), annotation["image_id"], annotation["category_id"], str(annotation["bbox"])
        kept.setdefault(number if key[0] is None else key, annotation)
    counts["annotations that repeat another, left out"] += len(annotations) - len(kept)
    return list(kept.values())


def _object(annotation: dict, names: dict[int, str]) -> Object:
    x, y, width, height = (float(value) for value in annotation["bbox"])
    ignored = any(annotation.get(flag) for flag in ("iscrowd", "ignore", "difficult"))
    area = annotation.get("area")
    return Object(
        names[annotation["category_id"]],
        (x, y, x + width, y + height),
        None if area is None else float(area),
        ignored,
        annotation.get("segmentation"),
    )


def _folder(root: Path, split: str, file: Path, names: list[str]) -> Path:
    """The folder that holds the first listed images; sets differ in what they call it."""
    year_split = file.stem.removeprefix("instances_")
    folders = ["images", f"images/{year_split}", f"images/{split}", "JPEGImages", year_split, split, "."]
    for name in names[:100]:
        for folder in folders:
            if (root / folder / name).is_file():
                return root / folder
    if names:
        problem = f"The images of {file}, such as {names[0]}, are in none of {', '.join(folders)} under {root}."
        raise UserError(None, problem, "Move or link the folder of images there.")
    return root
