"""Reads COCO's JSON, one file for each split, in the folders of COCO, Roboflow, FiftyOne and LVIS."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

from dupr_tf.data.labels.annotations import ListedImage, Object
from dupr_tf.data.labels.counts import Counts
from dupr_tf.data.labels.finding import missing_split, part_of
from dupr_tf.data.labels.split import MISTAKES, MissingSplit, inside, reading, size_of
from dupr_tf.data.layouts import coco_files, split_folder
from dupr_tf.files import read_bounded
from dupr_tf.records import parse_json
from dupr_tf.values import read_flag, read_id, read_name

FEDERATED = "images that LVIS did not search for every class, so that right boxes may count as wrong"
KEYPOINTS = "objects with keypoints, of which boxes and masks are read"
MAX_COCO_BYTES = 4 << 30  # in memory it takes about six times as much; COCO's largest file has 0.5 GB, LVIS's 1.2


def read_coco(root: Path, split: str, counts: Counts, masks: bool) -> tuple[list[ListedImage], list[str]]:
    """Reads the listed images with their objects, and the classes by id. `counts` receives what was odd."""
    files = coco_files(root, split)
    file = next((path for path in files if path.is_file()), files[0])
    years = (file.stem.removeprefix("instances_"),)
    return _read(file, counts, lambda names: split_folder(root, split, years, names[:100], file))


def find_roboflow(root: Path, split: str | None = None) -> list[Path]:
    """Finds the file that Roboflow writes for a split into the folder of its images."""
    return part_of(root, split or "train", lambda folder: _existing(folder / "_annotations.coco.json"))[1]


def read_roboflow(root: Path, split: str, counts, masks: bool) -> tuple[list[ListedImage], list[str]]:
    """Reads Roboflow's files as `read_coco` reads COCO's."""
    return _read_found(find_roboflow, root, split, "_annotations.coco.json", counts)


def find_fiftyone(root: Path, split: str | None = None) -> list[Path]:
    """Finds the file of FiftyOne's COCODetectionDataset, beside `data`."""
    return part_of(
        root, split or "train", lambda folder: _existing(folder / "labels.json") if (folder / "data").is_dir() else []
    )[1]


def read_fiftyone(root: Path, split: str, counts, masks: bool) -> tuple[list[ListedImage], list[str]]:
    """Reads FiftyOne's files as `read_coco` reads COCO's."""
    return _read_found(find_fiftyone, root, split, "labels.json beside data", counts, "data")


def find_lvis(root: Path, split: str | None = None) -> list[Path]:
    """Finds the file of LVIS for a split, the newest version first."""
    name = f"lvis_v*_{split or 'train'}.json"
    return sorted([*root.glob(name), *root.glob(f"annotations/{name}")])[-1:]


def read_lvis(root: Path, split: str, counts, masks: bool) -> tuple[list[ListedImage], list[str]]:
    """Reads LVIS as `read_coco` reads COCO. LVIS uses COCO's images, and its files name their folders."""
    files = find_lvis(root, split)
    if not files:
        raise missing_split(root, split, "lvis_v1_….json")
    return _read(files[0], counts, lambda names: split_folder(root, split, (), names[:100], files[0]))


def _existing(file: Path) -> list[Path]:
    return [file] if file.is_file() else []


def _read_found(find, root: Path, split: str, what: str, counts, folder: str = ".") -> tuple:
    files = find(root, split)
    if not files:
        raise missing_split(root, split, what)
    return _read(files[0], counts, lambda names: files[0].parent / folder)


def _read(file: Path, counts: Counts, folder_of: Callable) -> tuple[list[ListedImage], list[str]]:
    """Reads a file whose images are in the folder that `folder_of` finds by their names."""
    if not file.is_file():
        raise MissingSplit(None, f"There is no {file}.", "Add it, or pass another root or split.")
    with reading(file, "COCO annotations"):
        content = parse_json(read_bounded(file, MAX_COCO_BYTES))
        categories, rows = (_by_id(content, what) for what in ("categories", "images"))
        names = {key: read_name(categories[key]["name"]) for key in sorted(categories, key=_rank)}
        for key in _groups(categories, content["annotations"]):
            counts[f"categories that only group others, no class ({names.pop(key)})"] += 1
        counts[FEDERATED] += sum("not_exhaustive_category_ids" in row for row in rows.values())
        folder = folder_of([_file_name(row) for row in rows.values()])
        images = {
            key: ListedImage(folder / _file_name(row), size_of(row), str(key), labels=file) for key, row in rows.items()
        }
        for image, item in _objects(content["annotations"], images, names, counts):
            images[image].objects.append(item)
    return list(images.values()), list(names.values())


def _file_name(row: dict) -> str:
    """Returns the file name of an image. LVIS has a URL instead, which ends in folder and name."""
    return inside(row["file_name"] if "file_name" in row else "/".join(row["coco_url"].split("/")[-2:]))


def _groups(categories: dict, annotations: list[dict]) -> list[int | str]:
    """Returns the ids of categories without objects that only group others. Roboflow writes one."""
    above = [row.get("supercategory") for row in categories.values()]
    suspects = {
        key: row for key, row in categories.items()
        if row.get("supercategory") in (None, "", "none") and row["name"] in above
    }  # fmt: skip
    used = {one.get("category_id") for one in annotations} if suspects else set()
    return [key for key, row in suspects.items() if row["id"] not in used and key not in used]


def _by_id(content: dict, what: str) -> dict[int | str, dict]:
    """Returns {id: row} of a list in the file. Raises ValueError for an id that occurs twice after normalisation."""
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


def _objects(annotations: list[dict], images: dict, names: dict, counts: Counts) -> Iterator[tuple[int | str, Object]]:
    """Returns image ids and objects, without repetitions of the same id, image, class and box.

    Ids alone do not identify an object, because some tools restart them in each image.
    """
    seen, unlisted = set(), []
    for number, annotation in enumerate(annotations):
        try:
            image, category = (read_id(annotation[field]) for field in ("image_id", "category_id"))
            if image not in images or category not in names:
                unlisted.append(annotation)
                continue
            place = f"annotation {annotation.get('id', f'number {number + 1}')}"
            item = _object(annotation, names[category], place)
        except MISTAKES as error:
            shown = ", ".join(f"{field} {annotation.get(field)!r:.40}" for field in ("id", "image_id", "bbox"))
            reason = str(error) if type(error) is ValueError else f"{type(error).__name__} {error}"
            raise ValueError(f"the annotation of {shown}: {reason}") from None
        key = str(annotation.get("id", f"number {number}")), image, category, item.box
        if key in seen:
            counts["annotations that repeat another, left out"] += 1
            continue
        seen.add(key)
        counts[KEYPOINTS] += bool(annotation.get("keypoints"))
        yield image, item
    if unlisted:
        image, category = (unlisted[0][field] for field in ("image_id", "category_id"))
        raise ValueError(
            f"the image or category of {len(unlisted)} of {len(annotations)} annotations is not listed, such as "
            f"category {category!r} on image {image!r}"
        )


def _object(annotation: dict, name: str, place: str) -> Object:
    x, y, width, height = (float(value) for value in annotation["bbox"])
    area = annotation.get("area")
    ignored = [read_flag(annotation.get(flag)) for flag in ("iscrowd", "ignore", "difficult")]
    box = (x, y, x + width, y + height)
    area = None if area is None else float(area)
    return Object(name, box, area, any(ignored), annotation.get("segmentation"), place=place)
