"""Pictures of an evaluation: detections and ground truth of sample images."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from dupr_tf.config import DataConfig
from dupr_tf.data.detection import read_image
from dupr_tf.data.labels.annotations import AnnotatedImages
from dupr_tf.data.labels.run_lengths import pixels_of

# Okabe and Ito's colours: colour-blind readers can distinguish them, also on photographs.
TRUTH, IGNORED, FOUND = (86, 180, 233), (150, 150, 150), (230, 159, 0)
CELL, GAP, HEADER = 320, 8, 32  # px
ROWS, COLUMNS = 3, 4


def contact_sheet(
    annotated: AnnotatedImages,
    detections: Sequence[dict[str, np.ndarray]],
    path: str | Path,
    min_score: float = 0.3,
    most_boxes: int = 8,
    data: DataConfig | None = None,
) -> None:
    """Draws up to 12 images, evenly spread over the split, with ground truth and detections.

    Args:
        annotated: the ground truth; masks, if they were read, are drawn as outlines.
        detections: as for `coco_ap`; masks are drawn as areas.
        path: PNG file to write.
        min_score: detections below it are not drawn, except the best one of an image.
        most_boxes: detections drawn in an image.
        data: how images are read; None: as by default.
    """
    chosen = sheet_positions(len(annotated), ROWS * COLUMNS)
    count = len(chosen)
    width = COLUMNS * (CELL + GAP) + GAP
    rows = -(-count // COLUMNS)
    sheet = Image.new("RGB", (width, HEADER + rows * (CELL + GAP)), (255, 255, 255))
    _header(ImageDraw.Draw(sheet), min_score)
    for place, index in enumerate(chosen):
        image = Image.fromarray(read_image(annotated.paths[index], data))
        cell = _cell(image, annotated, index, detections[index], min_score, most_boxes)
        row, column = divmod(place, COLUMNS)
        sheet.paste(cell, (GAP + column * (CELL + GAP), HEADER + row * (CELL + GAP)))
    sheet.save(path)


def sheet_positions(count: int, most: int) -> list[int]:
    """Returns up to `most` of the positions 0 … count - 1, evenly spread."""
    return np.linspace(0, count - 1, min(count, most)).round().astype(int).tolist()


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


def _cell(image, annotated, index, results, min_score, most_boxes) -> Image.Image:
    """Draws one image, scaled to fit a square cell, with lines and letters of the same size for all images."""
    scale = CELL / max(image.size)
    chosen = _select(results, min_score)[:most_boxes]
    image = image.resize([max(1, round(side * scale)) for side in image.size], Image.Resampling.BICUBIC)
    image = _draw_masks(image, annotated, index, [results["masks"][k] for k in chosen] if "masks" in results else [])
    cell = Image.new("RGB", (CELL, CELL), (235, 235, 235))
    cell.paste(image)
    truth = zip(annotated.boxes[index], annotated.labels[index], annotated.ignored[index], strict=True)
    marks = [
        (box * scale, IGNORED if ignored else TRUTH, annotated.class_names[label]) for box, label, ignored in truth
    ]
    for k in reversed(chosen):  # the best is drawn last, on top
        text = f"{annotated.class_names[int(results['classes'][k])]} {results['scores'][k]:.2f}"
        marks.append((results["boxes"][k] * scale, FOUND, text))
    draw = ImageDraw.Draw(cell)
    for box, colour, _ in marks:
        _frame(draw, box, colour)
    for box, colour, text in marks:
        _label(draw, box, colour, text)
    return cell


def _draw_masks(image: Image.Image, annotated: AnnotatedImages, index: int, masks: list[bytes]) -> Image.Image:
    """Draws detected masks at half opacity and true ones as lines, all at the size of the cell."""
    pixels, size = np.asarray(image, np.float32).copy(), annotated.sizes[index]

    def small(mask):
        return np.asarray(Image.fromarray(pixels_of(mask, size)).resize(image.size, Image.Resampling.NEAREST)) > 0

    for mask in masks:
        inside = small(mask)
        pixels[inside] = 0.5 * pixels[inside] + 0.5 * np.array(FOUND)
        pixels[_rim(inside)] = FOUND
    for mask, ignored in zip(annotated.masks[index] if annotated.masks else (), annotated.ignored[index], strict=False):
        pixels[_rim(small(mask))] = IGNORED if ignored else TRUTH
    return Image.fromarray(pixels.astype(np.uint8))


def _rim(inside: np.ndarray) -> np.ndarray:
    """Returns the pixels of a mask within two pixels of its outside."""
    core = np.pad(inside, 2)
    core = core[2:-2, 2:-2] & core[:-4, 2:-2] & core[4:, 2:-2] & core[2:-2, :-4] & core[2:-2, 4:]
    return inside & ~core


def _select(results: dict[str, np.ndarray], min_score: float) -> list[int]:
    """Returns detections from the best on, without those that repeat nearly the same box with another class."""
    chosen: list[int] = []
    for k in np.argsort(-results["scores"], kind="stable"):
        if chosen and results["scores"][k] < min_score:
            break
        if all(_iou(results["boxes"][k], results["boxes"][other]) < 0.7 for other in chosen):
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
    """Draws a label at the top left of a detection or the bottom left of ground truth, always inside the cell."""
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
