"""A contact sheet: what a detector found beside what is there."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont, ImageOps

from dupr_tf.data.annotations import AnnotatedImages

# Okabe and Ito's colours: told apart by colour-blind readers, and on photographs.
TRUTH, IGNORED, FOUND = (86, 180, 233), (150, 150, 150), (230, 159, 0)
CELL, GAP, HEADER = 320, 8, 32  # px
ROWS, COLUMNS = 3, 4


def contact_sheet(
    annotated: AnnotatedImages,
    detections: Sequence[dict[str, np.ndarray]],
    path: str | Path,
    min_score: float = 0.3,
    most_boxes: int = 8,
) -> None:
    """Draws up to 12 images, evenly spread over the split, with ground truth and detections.

    Args:
        annotated: the ground truth.
        detections: as `coco_ap` takes them.
        path: PNG file to write.
        min_score: detections below it are not drawn, except the best one of an image.
        most_boxes: detections drawn in an image.
    """
    count = min(len(annotated), ROWS * COLUMNS)
    chosen = np.linspace(0, len(annotated) - 1, count).round().astype(int)
    width = COLUMNS * (CELL + GAP) + GAP
    rows = -(-count // COLUMNS)
    sheet = Image.new("RGB", (width, HEADER + rows * (CELL + GAP)), (255, 255, 255))
    _header(ImageDraw.Draw(sheet), min_score)
    for place, index in enumerate(chosen):
        cell = _cell(annotated, index, detections[index], min_score, most_boxes)
        row, column = divmod(place, COLUMNS)
        sheet.paste(cell, (GAP + column * (CELL + GAP), HEADER + row * (CELL + GAP)))
    sheet.save(path)


def _header(draw: ImageDraw.ImageDraw, min_score: float) -> None:
    legend = [
        (TRUTH, "ground truth"),
        (IGNORED, "ignored (difficult, crowd)"),
        (FOUND, f"detection: class, score (from {min_score:.2f}, or the best)"),
    ]
    x, font = GAP, ImageFont.load_default(15)
    for colour, text in legend:
        draw.rectangle((x, 8, x + 18, 23), outline=colour, width=3)
        draw.text((x + 26, 7), text, fill=(0, 0, 0), font=font)
        x += 56 + round(draw.textlength(text, font))


def _cell(annotated, index, found, min_score, most_boxes) -> Image.Image:
    """One image scaled to fit a square cell, whatever its size, with lines and letters of one size."""
    with Image.open(annotated.paths[index]) as file:
        image = ImageOps.exif_transpose(file).convert("RGB")  # boxes are those of the upright image
    scale = CELL / max(image.size)
    image = image.resize([max(1, round(side * scale)) for side in image.size], Image.Resampling.BICUBIC)
    cell = Image.new("RGB", (CELL, CELL), (235, 235, 235))
    cell.paste(image)
    truth = zip(annotated.boxes[index], annotated.labels[index], annotated.ignored[index], strict=True)
    marks = [
        (box * scale, IGNORED if ignored else TRUTH, annotated.class_names[label]) for box, label, ignored in truth
    ]
    for k in reversed(_drawn(found, min_score)[:most_boxes]):  # the best last, on top
        text = f"{annotated.class_names[int(found['classes'][k])]} {found['scores'][k]:.2f}"
        marks.append((found["boxes"][k] * scale, FOUND, text))
    draw = ImageDraw.Draw(cell)
    for box, colour, _ in marks:
        _frame(draw, box, colour)
    for box, colour, text in marks:
        _label(draw, box, colour, text)
    return cell


def _drawn(found: dict[str, np.ndarray], min_score: float) -> list[int]:
    """Detections from the best on, but for those that another class makes of nearly the same box."""
    chosen: list[int] = []
    for k in np.argsort(-found["scores"], kind="stable"):
        if chosen and found["scores"][k] < min_score:
            break
        if all(_iou(found["boxes"][k], found["boxes"][other]) < 0.7 for other in chosen):
            chosen.append(k)
    return chosen


def _iou(a: np.ndarray, b: np.ndarray) -> float:
    sides = np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2])
    overlap = float(np.prod(np.maximum(sides, 0)))
    return overlap / max(1e-9, float(np.prod(a[2:] - a[:2]) + np.prod(b[2:] - b[:2])) - overlap)


def _frame(draw: ImageDraw.ImageDraw, box: np.ndarray, colour) -> None:
    x1, y1, x2, y2 = _corners(box)
    draw.rectangle((x1 - 1, y1 - 1, x2 + 1, y2 + 1), outline=(0, 0, 0), width=4)  # a dark edge on both sides
    draw.rectangle((x1, y1, x2, y2), outline=colour, width=2)


def _label(draw: ImageDraw.ImageDraw, box: np.ndarray, colour, text: str) -> None:
    """At the top left of a detection, at the bottom left of ground truth; always inside the cell."""
    x1, y1, _, y2 = _corners(box)
    font = ImageFont.load_default(12)
    wide, high = round(draw.textlength(text, font)) + 4, 15
    left = max(0, min(x1, CELL - wide))
    top = max(0, y1 - high) if colour == FOUND else min(y2 + 2, CELL - high)
    draw.rectangle((left, top, left + wide, top + high), fill=colour)
    draw.text((left + 2, top), text, fill=(0, 0, 0), font=font)


def _corners(box: np.ndarray) -> tuple[int, int, int, int]:
    x1, y1, x2, y2 = (round(float(value)) for value in np.clip(box, 0, CELL - 1))
    return x1, y1, max(x1 + 3, x2), max(y1 + 3, y2)
