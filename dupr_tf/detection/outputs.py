"""Writes predictions in several formats. Each has a line in the table and a function. Imports no TensorFlow.

A function writes `predictions`, the predictions of all images. It is called with

    folder: the output folder.
    predictions: a function that returns an iterator of one dict an image: `name` (below `root`), `size` (height and
        width), and `boxes`, `classes`, `scores` and perhaps `masks`, or `segments`, all as JSON values. It reads the
        disk again each time, so memory does not grow with the number of images.
    root: folder that the names of the images are relative to.
    class_names: names of the classes 0, 1, …
    labels: True to leave out scores in formats in which labels must not have them.
"""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path, PurePath
from typing import TextIO

from PIL import Image

from dupr_tf.data.labels.run_lengths import area_of
from dupr_tf.detection.prediction import segments_of
from dupr_tf.files import publishing
from dupr_tf.registry import Entry, Registry
from dupr_tf.safe_yaml import quoted
from dupr_tf.text import escape

Predictions = Callable[[], Iterator[dict]]
TEXT = {"encoding": "utf-8", "errors": "surrogateescape", "newline": ""}
COCO_FILE = "annotations/instances_train.json"
BOXES = ("boxes", "masks")  # tasks
CSV_FILE, CSV_HEAD = "detections.csv", ("image", "class", "score", "x1", "y1", "x2", "y2")


def _format(function: str, summary: str, tasks: tuple[str, ...], *files: str, one_file_a_stem: bool = False) -> Entry:
    facts = {"tasks": tasks, "one_file_a_stem": one_file_a_stem, "files": files}
    return Entry(f"dupr_tf.detection.outputs:{function}", summary, facts=facts)


OUTPUTS = Registry(
    "output format",
    "--to",
    {
        "coco": _format("write_coco", "COCO JSON: boxes, and masks as RLE", BOXES, COCO_FILE),
        "yolo": _format(
            "write_yolo",
            "YOLO: a text file of boxes for each image",
            BOXES,
            "data.yaml",
            "labels",
            one_file_a_stem=True,
        ),
        "csv": _format("write_csv", "CSV: one table of boxes", BOXES, CSV_FILE),
        "png": _format(
            "write_png",
            "8-bit PNG for each image, whose values are classes",
            ("segments",),
            "classes.txt",
            "masks",
            one_file_a_stem=True,
        ),
    },
)


def default_format(task: str) -> str:
    """Returns the first format that a task has."""
    return next(name for name, entry in OUTPUTS.items() if task in entry.facts["tasks"])


def write_coco(folder: Path, predictions: Predictions, root: str, class_names, labels: bool) -> None:
    """Writes a COCO set whose images are a link to the original folder. `finetune` reads it."""
    path = folder / COCO_FILE
    path.parent.mkdir(exist_ok=True)
    with publishing(path, "w", **TEXT) as file:
        file.write('{"categories": ')
        json.dump([{"id": number, "name": name} for number, name in enumerate(class_names, start=1)], file)
        file.write(',\n"images": ')
        _write_rows(file, (_coco_image(number, image) for number, image in enumerate(predictions(), start=1)))
        file.write(',\n"annotations": ')
        _write_rows(file, _coco_annotations(predictions()))
        file.write("}\n")
    link(folder / "images" / "train", root)


def _write_rows(file: TextIO, rows: Iterator[dict]) -> None:
    """Writes a JSON list, one row a line, without holding it in memory."""
    before = "[\n"
    for row in rows:
        file.write(before + json.dumps(row))
        before = ",\n"
    file.write("[]" if before == "[\n" else "]")


def _coco_image(number: int, image: dict) -> dict:
    height, width = image["size"]
    return {"id": number, "file_name": image["name"], "height": height, "width": width}


def _coco_annotations(images: Iterator[dict]) -> Iterator[dict]:
    count = 0
    for number, image in enumerate(images, start=1):
        for k, (x1, y1, x2, y2) in enumerate(image["boxes"]):
            if x2 <= x1 or y2 <= y1:
                continue
            count += 1
            row = {"id": count, "image_id": number, "category_id": image["classes"][k] + 1}
            row |= {"bbox": [x1, y1, round(x2 - x1, 3), round(y2 - y1, 3)], "area": round((x2 - x1) * (y2 - y1), 3)}
            if "masks" in image:
                mask = image["masks"][k]
                row["segmentation"] = {"size": image["size"], "counts": mask}
                row["area"] = area_of(mask.encode(), image["size"])
            yield {**row, "iscrowd": 0, "score": image["scores"][k]}


def write_yolo(folder: Path, predictions: Predictions, root: str, class_names, labels: bool) -> None:
    """Writes `labels/train/NAME.txt` and `data.yaml`. A line is class, centre, width, height, and the score or not."""
    for image in predictions():
        (height, width), lines = image["size"], []
        for (x1, y1, x2, y2), label, score in zip(image["boxes"], image["classes"], image["scores"], strict=True):
            shares = (x1 + x2) / 2 / width, (y1 + y2) / 2 / height, (x2 - x1) / width, (y2 - y1) / height
            lines.append(
                " ".join([str(label), *(f"{share:.6f}" for share in shares), *([] if labels else [str(score)])])
            )
        path = (folder / "labels" / "train" / image["name"]).with_suffix(".txt")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(f"{line}\n" for line in lines))
    names = "".join(f"  {number}: {quoted(name)}\n" for number, name in enumerate(class_names))
    (folder / "data.yaml").write_text(f"train: images/train\nnames:\n{names}", encoding="utf-8")
    link(folder / "images" / "train", root)


def write_csv(folder: Path, predictions: Predictions, root: str, class_names, labels: bool) -> None:
    """Writes a table with a row for each box, and its corners in pixels."""
    with publishing(folder / CSV_FILE, "w", **TEXT) as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(CSV_HEAD)
        for image in predictions():
            for box, label, score in zip(image["boxes"], image["classes"], image["scores"], strict=True):
                table.writerow([escape(image["name"]), class_names[label], score, *box])


def write_png(folder: Path, predictions: Predictions, root: str, class_names, labels: bool) -> None:
    """Writes `masks/train/NAME.png`, links in `images/train/` and `classes.txt`. `finetune` reads them."""
    masks, images = folder / "masks" / "train", folder / "images" / "train"
    masks.mkdir(parents=True, exist_ok=True)
    for image in predictions():
        flat = flat_name(image["name"])
        values = segments_of(image)
        Image.fromarray(values).save(masks / PurePath(flat).with_suffix(".png"))
        link(images / flat, os.path.join(root, image["name"]))
    (folder / "classes.txt").write_text(
        "".join(f"{k} {escape(name)}\n" for k, name in enumerate(class_names)), encoding="utf-8"
    )


def flat_name(name: str) -> str:
    """Returns the name of a file below a folder as a name without folders."""
    return name.replace("/", "__")


def link(path: Path, target: str) -> None:
    """Creates a symbolic link, and replaces an earlier one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    path.symlink_to(target)
