"""Draws a detector's training pictures, with their boxes and matching anchors. Imports no TensorFlow."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from dupr_tf.config import Config
from dupr_tf.config.detectors import DETECTORS
from dupr_tf.data.detection import TrainingExamples, image_rows, read_image, visible_boxes
from dupr_tf.data.inspection import ANCHOR_SCALE, match_anchors
from dupr_tf.data.labels.annotations import AnnotatedImages
from dupr_tf.data.placing import pad_batch
from dupr_tf.probing.drawing import BOX, GAP, INK, LINE, RIGHT, WRONG, paper, write

SIDE = 448  # px of the longer side of a picture on the sheet


class TrainingPicture(NamedTuple):
    """Holds an image as the network receives it."""

    name: str
    pixels: np.ndarray  # (H, W, 3) float32 in 0–255
    boxes: np.ndarray  # (n, 4) float32 xyxy, px of the picture
    classes: list[str]  # n
    anchors: np.ndarray  # (k, 4) float32 xyxy, px of the picture
    owners: np.ndarray  # (k,) the box of each anchor
    anchored: bool  # whether a box needs an anchor


def training_pictures(annotated: AnnotatedImages, config: Config, count: int) -> list[TrainingPicture]:
    """Makes the first pictures of a run, at most as many as there are images.

    Args:
        annotated: the training split.
        config: config of the run.
        count: number of pictures.
    """
    examples = TrainingExamples(annotated, config)
    return [_picture(examples, annotated, config, n) for n in range(min(count, len(examples.kept)))]


def _picture(examples: TrainingExamples, annotated: AnnotatedImages, config: Config, position: int) -> TrainingPicture:
    index = examples.order(position)
    image = read_image(examples.paths[index], config.data)
    place = examples.place(position, image.shape[:2])
    pixels = pad_batch([image_rows(image, place)], examples.side)["images"][0]
    boxes, kept = visible_boxes(place.move(examples.boxes[index]), place.frame, crops=examples.side is not None)
    iou, scale = DETECTORS[config.detector.kind].facts["anchor_iou"], config.detector.anchor_scale or ANCHOR_SCALE
    anchors, owners = match_anchors(boxes if iou else boxes[:0], place.frame, scale, iou or 1.0)
    classes = [annotated.class_names[label] for label in examples.labels[index][kept]]
    name = Path(examples.paths[index]).name
    return TrainingPicture(name, pixels, boxes, classes, anchors, owners, iou is not None)


def box_sheet(pictures: Sequence[TrainingPicture], columns: int) -> Image.Image:
    """Draws pictures next to each other: boxes thick, their anchors thin, boxes without an anchor in another colour."""
    columns = min(columns, len(pictures))
    scale = SIDE / max(max(picture.pixels.shape[:2]) for picture in pictures)
    height, width = (round(scale * max(p.pixels.shape[axis] for p in pictures)) for axis in (0, 1))
    rows = -(-len(pictures) // columns)
    sheet, pen = paper(columns * (width + GAP) + GAP, rows * (height + LINE + GAP) + GAP)
    for number, picture in enumerate(pictures):
        row, column = divmod(number, columns)
        _draw(sheet, pen, picture, (GAP + column * (width + GAP), GAP + row * (height + LINE + GAP)), scale)
    return sheet


def _draw(sheet: Image.Image, pen, picture: TrainingPicture, corner: tuple[int, int], scale: float) -> None:
    x, y = corner[0], corner[1] + LINE
    sides = [max(1, round(scale * side)) for side in picture.pixels.shape[1::-1]]
    sheet.paste(Image.fromarray(picture.pixels.round().astype(np.uint8)).resize(sides), (x, y))
    text = f"{picture.name}: {len(picture.boxes)} boxes"
    write(pen, corner, f"{text}, {len(picture.anchors)} anchors" if picture.anchored else text)
    for anchor in picture.anchors:
        pen.rectangle(_placed(anchor, scale, x, y), outline=RIGHT)
    for number, (box, name) in enumerate(zip(picture.boxes, picture.classes, strict=True)):
        lost = picture.anchored and number not in picture.owners
        place = _placed(box, scale, x, y)
        pen.rectangle(place, outline=WRONG if lost else BOX, width=3)
        write(pen, (place[0] + 5, place[1] + 4), f"{name}, no anchor" if lost else name, 13, INK)


def _placed(box: np.ndarray, scale: float, x: int, y: int) -> tuple[float, ...]:
    x1, y1, x2, y2 = (box * scale).tolist()
    return x + x1, y + y1, x + max(x1, x2 - 1), y + max(y1, y2 - 1)
