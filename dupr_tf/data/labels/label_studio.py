"""Reads Label Studio's JSON export: a file with a task for each image. Shapes are in percent of the image."""

from __future__ import annotations

import re
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

import numpy as np

from dupr_tf.data.labels.annotations import ListedImage, Object, class_names_of, in_pixels
from dupr_tf.data.labels.counts import Counts
from dupr_tf.data.labels.finding import OTHERS, ImageIndex, missing_split, part_of, recognised
from dupr_tf.data.labels.shapes import ellipse, not_read, polygon, rotated_box, turned
from dupr_tf.data.labels.split import at, reading
from dupr_tf.errors import UserError
from dupr_tf.files import read_bounded
from dupr_tf.records import parse_json
from dupr_tf.values import read_name, read_text

MAX_STUDIO_BYTES = 2 << 30
PREFIX = re.compile(r"^[0-9a-f]{8}-")  # prefix that an upload puts before a name
UNFINISHED = "tasks without annotations, left out"
FURTHER = "further annotations of a task, not read"
TURNED = "images that were turned in Label Studio, left out"
SEVERAL = "labels beside the first one of a region, each read as an object"
NAMELESS = "regions without a label, left out"
SHAPES = ("rectangle", "polygon", "ellipse")


def find(root: Path, split: str | None = None) -> list[Path]:
    """Finds the JSON files of a split."""
    return part_of(root, split or "train", _files)[1]


def _files(folder: Path) -> list[Path]:
    files = [*folder.glob("*.json"), *([] if folder.is_dir() else folder.parent.glob(f"{folder.name}.json"))]
    return recognised(files, _is_export)


def _is_export(head: str) -> bool:
    """Returns True for the start of the exports JSON and JSON-MIN."""
    named = any(f'"{key}"' in head for key in ("annotations", "original_width", "annotation_id"))
    return named and head.lstrip("\ufeff \n\r\t").startswith("[")


def read_label_studio(root: Path, split: str, counts: Counts, masks: bool) -> tuple[list[ListedImage], list[str]]:
    """Reads the images of a split with their objects, and the classes of train and val by name."""
    folder, files = part_of(root, split, _files)
    if not files:
        raise missing_split(root, split, "Label Studio export (JSON)")
    index, images = ImageIndex(folder if folder.is_dir() else root), []
    for file in files:
        for task in _tasks(file, counts):
            with reading(file, "a Label Studio export"):
                images += _image(task, index, counts, file)
    others = [file for other in {"train", "val"} - {split} for file in find(root, other)]
    unused, nowhere = Counts(), ImageIndex(folder / "none")
    met = images + [
        image for file in others for task in _tasks(file, unused) for image in _image(task, nowhere, unused, file)
    ]
    return images, sorted(class_names_of(met))


def _tasks(file: Path, counts: Counts) -> list[dict]:
    """Returns the tasks of an export. `counts` receives `OTHERS` for another JSON file.

    Raises:
        UserError: the file is an export JSON-MIN. It lacks which images were turned, and which annotation is the truth.
    """
    with reading(file, "a Label Studio export"):
        tasks = parse_json(read_text(read_bounded(file, MAX_STUDIO_BYTES)))
        if not isinstance(tasks, list):
            counts.note(OTHERS, file)
            return []
        if any("annotation_id" in task and "annotations" not in task for task in tasks):
            problem = f"{file} is Label Studio's export JSON-MIN, which does not say how images were turned."
            raise UserError(None, problem, "Export the project as JSON.")
        return tasks


def _image(task: dict, index: ImageIndex, counts: Counts, file: Path) -> list[ListedImage]:
    """Returns the image of a task, or None if no annotation of the task was kept."""
    kept = [one for one in task.get("annotations") or () if not one.get("was_cancelled")]
    if not kept:
        counts.note(UNFINISHED, f"task {task.get('id')} of {file}")
        return []
    counts[FURTHER] += len(kept) - 1
    results = next((one for one in kept if one.get("ground_truth")), kept[0])["result"]
    if any(result.get("image_rotation") for result in results):
        counts.note(TURNED, f"task {task.get('id')} of {file}")
        return []
    path = index.find(*_names(task))
    objects = []
    for result in results:
        with at(place := f"region {result.get('id')} of task {task.get('id')}"):
            objects += [item._replace(place=place) for item in _objects(result, results, counts)]
    return [ListedImage(path, (0, 0), str(task["id"]), objects, shares=True, labels=file)]


def _names(task: dict) -> list[str]:
    """Returns possible file names of a task's image: the name on the server, and the name before the upload."""
    data = task["data"]
    address = data.get("image") or next((value for value in data.values() if isinstance(value, str)), None)
    if address is None:
        raise ValueError(f"task {task['id']} names no image")
    address = urlsplit(str(address))
    path = (parse_qs(address.query).get("d") or [unquote(address.path)])[0].lstrip("/")
    name = path.rpartition("/")[2]
    return [path, f"{path.removesuffix(name)}{PREFIX.sub('', name)}", PREFIX.sub("", name)]


def _objects(result: dict, results: list[dict], counts: Counts) -> list[Object]:
    """Returns the objects of a region, one for each of its labels."""
    value, kind = result.get("value", {}), result.get("type", "")
    shape = kind.removesuffix("labels")
    if kind == "labels":  # the label of a region whose shape is in another result
        return []
    if shape not in SHAPES:
        what = f"results of kind {kind}"
        if kind.endswith("labels"):
            return [not_read(what)]
        counts[f"{what}, not read"] += 1  # about the image, such as choices
        return []
    labels = value.get(kind) or [
        label for one in results if one.get("id") == result.get("id") for label in one["value"].get("labels", ())
    ]
    counts[SEVERAL] += max(0, len(labels) - 1)
    if not labels:
        return [Object("", (0.0,) * 4, fault=NAMELESS)]
    height, width = (float(result[f"original_{side}"]) for side in ("height", "width"))
    objects = [_shape(read_name(label), shape, value, (height, width), counts) for label in labels]
    return [in_pixels(item, (1 / height, 1 / width)) for item in objects]


def _shape(name: str, shape: str, value: dict, size: tuple[float, float], counts) -> Object:
    """Returns the object of a shape in pixels. Boxes turn about their first corner, ellipses about their centre."""
    height, width = size
    scale, turn = np.array([width, height]) / 100, float(value.get("rotation") or 0)
    if shape == "polygon":
        return polygon(name, np.array(value["points"], np.float64) * scale)
    corner = np.array([value["x"], value["y"]], np.float64) * scale
    if shape == "ellipse":
        radii = np.array([value["radiusX"], value["radiusY"]], np.float64) * scale
        return ellipse(name, corner, radii, turn, counts)
    sides = np.array([value["width"], value["height"]], np.float64) * scale
    if turn % 360 == 0:
        return Object(name, (*corner.tolist(), *(corner + sides).tolist()))
    return rotated_box(name, corner + turned(sides[None] / 2, turn)[0], sides, turn, counts)
