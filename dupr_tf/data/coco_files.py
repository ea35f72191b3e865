"""COCO's layout: one JSON file a split, beside a folder of images."""

from __future__ import annotations

import collections
import json
from pathlib import Path

from dupr_tf.data.entries import MISTAKES, Entry, Object, bounded, file_error, refuse_outside, refuse_repeated, side
from dupr_tf.data.formats import COCO_IMAGES
from dupr_tf.errors import UserError

MAX_COCO_BYTES = 4 << 30  # read, it takes about six times as much memory; COCO's largest has 0.5 GB, LVIS's 1.2


def coco_files(root: Path, split: str) -> list[Path]:
    """Where a split's annotations may be, the plainest name first."""
    return [root / "annotations" / f"instances_{split}{year}.json" for year in ("", "2017", "2014")]


def photo_folders(root: Path) -> list[Path]:
    """The folders of photos of a root."""
    folders = [root / name for name in COCO_IMAGES if (root / name).is_dir()]
    if not folders:
        raise UserError("data.kind", f"{root} is no COCO root: it has no images/.", "Use folder.")
    return folders


def read_coco(root: Path, split: str, counts: collections.Counter, masks: bool) -> tuple[list[Entry], list[str]]:
    """The listed images with their objects, and the classes by id; `counts` gets what was odd."""
    file = next((path for path in coco_files(root, split) if path.is_file()), None)
    if file is None:
        raise UserError(None, f"There is no {coco_files(root, split)[0]}.", "Pass the root of a COCO data set.")
    try:
        content = json.loads(bounded(file, MAX_COCO_BYTES))
        refuse_repeated((c["id"] for c in content["categories"]), "category", file)
        refuse_repeated((image["id"] for image in content["images"]), "image", file)
        names = {c["id"]: str(c["name"]) for c in sorted(content["categories"], key=lambda c: c["id"])}
        folder = _folder(root, split, file, content["images"])
        entries = {
            image["id"]: Entry(
                folder / image["file_name"], (side(image, "height"), side(image, "width")), str(image["id"])
            )
            for image in content["images"]
        }
        annotations = _without_repeated(content["annotations"], counts)
        _refuse_unlisted(annotations, names, entries, file)
        for annotation in annotations:
            entries[annotation["image_id"]].objects.append(_object(annotation, names))
    except MISTAKES as error:
        raise file_error(error, "COCO", file) from None
    return list(entries.values()), list(names.values())


def _refuse_unlisted(annotations: list[dict], names: dict, entries: dict, file: Path) -> None:
    odd = [a for a in annotations if a["category_id"] not in names or a["image_id"] not in entries]
    if odd:
        raise UserError(
            None,
            f"{file} has {len(odd)} of {len(annotations)} annotations whose image or category is not listed, such as "
            f"category {odd[0]['category_id']} on image {odd[0]['image_id']}.",
            "Correct the file.",
        )


def _without_repeated(annotations: list[dict], counts: collections.Counter) -> list[dict]:
    """Leaves out an annotation that repeats an earlier one in id, image, class and box; ids alone mean nothing here."""
    seen, kept = set(), []
    for annotation in annotations:
        key = annotation.get("id"), annotation["image_id"], annotation["category_id"], str(annotation["bbox"])
        if key[0] is None or key not in seen:
            kept.append(annotation)
            seen.add(key)
    counts["annotations that repeat another, left out"] += len(annotations) - len(kept)
    return kept


def _object(annotation: dict, names: dict[int, str]) -> Object:
    x, y, width, height = (float(value) for value in annotation["bbox"])
    ignored = any(annotation.get(flag) for flag in ("iscrowd", "ignore", "difficult"))
    area = annotation.get("area")
    area = None if area is None else float(area)
    name = names[annotation["category_id"]]
    return Object(name, x, y, x + width, y + height, area, ignored, annotation.get("segmentation"))


def _folder(root: Path, split: str, file: Path, images: list[dict]) -> Path:
    """The folder that holds the first listed images; sets differ in what they call it."""
    year_split = file.stem.removeprefix("instances_")
    names = ["images", f"images/{year_split}", f"images/{split}", "JPEGImages", year_split, split, "."]
    for image in images:
        refuse_outside(image["file_name"], file)
    for image in images[:100]:
        for name in names:
            if (root / name / image["file_name"]).is_file():
                return root / name
    if images:
        raise UserError(
            None,
            f"The images of {file.name}, such as {images[0]['file_name']}, are in none of {', '.join(names)} under "
            f"{root}.",
            "Move or link the folder of images there.",
        )
    return root
