"""Pictures of detections, with the ground truth if there is one."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from dupr_tf.config import DataConfig
from dupr_tf.data.boxes import apart
from dupr_tf.data.detection import read_image
from dupr_tf.data.labels.annotations import AnnotatedImages
from dupr_tf.data.labels.run_lengths import pixels_of
from dupr_tf.text import escape

Rectangle = tuple[int, int, int, int]  # x1 y1 x2 y2, px

# Okabe and Ito's colours: colour-blind readers can distinguish them, also on photographs.
TRUTH, IGNORED, FOUND = (86, 180, 233), (150, 150, 150), (230, 159, 0)
CLASSES = (FOUND, TRUTH, (0, 158, 115), (240, 228, 66), (213, 94, 0), (204, 121, 167))
CELL, GAP, HEADER, LABEL = 320, 8, 32, 15  # px
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
        data: how images are read. None takes the defaults.
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


def detections_picture(image: np.ndarray, detections: dict, class_names: Sequence[str], side: int = 960) -> Image.Image:
    """Draws all detections of one image, each class in its colour.

    Args:
        image: (H, W, 3) uint8 RGB.
        detections: `boxes`, `classes` and `scores`, and `masks` if any, as `convert_to_originals` returns them.
        class_names: names of the classes 0, 1, …
        side: px; larger images are shrunk to it, and images below two thirds of it are enlarged to that.
    """
    longest = max(image.shape[:2])
    scale = min(side, max(longest, side * 2 // 3)) / longest
    small = _resize(Image.fromarray(image), scale)
    colours = [class_colour(int(label)) for label in detections["classes"]]
    small = _draw_masks(small, image.shape[:2], detections.get("masks") or [], colours)
    order = np.argsort(detections["scores"], kind="stable")  # the best is drawn last, on top
    return _draw_boxes(small, [_mark(detections, k, scale, class_names, colours[k]) for k in order])


def class_colour(label: int) -> tuple[int, int, int]:
    """Returns the colour of a class, on which black text can be read; 18 classes have different ones."""
    pale = 0.3 * (label // len(CLASSES) % 3)
    return tuple(round(value + pale * (255 - value)) for value in CLASSES[label % len(CLASSES)])


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
    scale, size, ignored = CELL / max(image.size), annotated.sizes[index], annotated.ignored[index]
    chosen = _select(results, min_score)[:most_boxes]
    masks = [results["masks"][k] for k in chosen] if "masks" in results else []
    image = _draw_masks(_resize(image, scale), size, masks, [FOUND] * len(masks))
    colours = [IGNORED if flag else TRUTH for flag in ignored]
    image = _draw_rims(image, size, annotated.masks[index] if annotated.masks else [], colours)
    names = [annotated.class_names[label] for label in annotated.labels[index]]
    marks = list(zip(annotated.boxes[index] * scale, colours, names, [False] * len(names), strict=True))
    marks += [_mark(results, k, scale, annotated.class_names) for k in reversed(chosen)]  # the best last, on top
    cell = Image.new("RGB", (CELL, CELL), (235, 235, 235))
    cell.paste(image)
    return _draw_boxes(cell, marks)


def _resize(image: Image.Image, scale: float) -> Image.Image:
    return image.resize([max(1, round(side * scale)) for side in image.size], Image.Resampling.BICUBIC)


def _mark(detections: dict, k: int, scale: float, class_names: Sequence[str], colour=FOUND) -> tuple:
    """Returns box, colour and text of a detection, and True, as `_draw_boxes` takes them."""
    text = f"{class_names[int(detections['classes'][k])]} {detections['scores'][k]:.2f}"
    return np.asarray(detections["boxes"][k]) * scale, colour, text, True


def _draw_boxes(image: Image.Image, marks: Sequence[tuple]) -> Image.Image:
    """Draws (box, colour, text, whether it is a detection) of each mark: first the frames, then the labels."""
    draw, taken = ImageDraw.Draw(image), []
    for box, colour, _, _ in marks:
        _frame(draw, _corners(box, image.size), colour)
    for box, colour, text, found in reversed(marks):  # the most important label chooses its place first
        taken.append(_label(draw, _corners(box, image.size), colour, escape(text), found, image.size, taken))
    return image


def _draw_masks(image: Image.Image, size: Sequence[int], masks: Sequence[bytes], colours: Sequence) -> Image.Image:
    """Draws detected masks of an image of `size` at half opacity, with a rim."""
    if not masks:
        return image
    pixels = np.asarray(image, np.float32).copy()
    for mask, colour in zip(masks, colours, strict=True):
        inside = _shrink(mask, size, image)
        pixels[inside] = 0.5 * pixels[inside] + 0.5 * np.array(colour)
        pixels[_rim(inside)] = colour
    return Image.fromarray(pixels.astype(np.uint8))


def _draw_rims(image: Image.Image, size: Sequence[int], masks: Sequence[bytes], colours: Sequence) -> Image.Image:
    """Draws the outlines of masks of an image of `size`."""
    pixels = np.asarray(image).copy()
    for mask, colour in zip(masks, colours, strict=False):
        pixels[_rim(_shrink(mask, size, image))] = colour
    return Image.fromarray(pixels)


def _shrink(mask: bytes, size: Sequence[int], image: Image.Image) -> np.ndarray:
    """Returns a mask of an image of `size` as (H, W) bool at the size of the picture."""
    return np.asarray(Image.fromarray(pixels_of(mask, size)).resize(image.size, Image.Resampling.NEAREST)) > 0


def _rim(inside: np.ndarray) -> np.ndarray:
    """Returns the pixels of a mask within two pixels of its outside."""
    core = np.pad(inside, 2)
    core = core[2:-2, 2:-2] & core[:-4, 2:-2] & core[4:, 2:-2] & core[2:-2, :-4] & core[2:-2, 4:]
    return inside & ~core


def _select(results: dict[str, np.ndarray], min_score: float) -> np.ndarray:
    """Returns detections from the best on, without those that repeat nearly the same box with another class."""
    order = np.argsort(-results["scores"], kind="stable")
    order = order[: max(1, np.count_nonzero(results["scores"] >= min_score))]
    return order[apart(results["boxes"][order], 0.7)]


def _frame(draw: ImageDraw.ImageDraw, corners: Rectangle, colour) -> None:
    x1, y1, x2, y2 = corners
    draw.rectangle((x1 - 1, y1 - 1, x2 + 1, y2 + 1), outline=(0, 0, 0), width=4)  # a dark edge on both sides
    draw.rectangle((x1, y1, x2, y2), outline=colour, width=2)


def _label(draw, corners: Rectangle, colour, text: str, found: bool, size, taken: Sequence[Rectangle]) -> Rectangle:
    """Draws a label at the top left of a detection or the bottom left of ground truth, always inside the picture.

    Args:
        draw: of the picture.
        corners: the box.
        colour: background of the label.
        text: on one line.
        found: True for a detection.
        size: width and height of the picture.
        taken: labels that it must not cover; it moves up or down to the nearest free place, if there is one.

    Returns:
        The rectangle of the label.
    """
    font = ImageFont.load_default(12)
    wide, left, top = round(draw.textlength(text, font)) + 4, corners[0], corners[1] - LABEL
    left = max(0, min(left, size[0] - wide))
    wanted = top if found else corners[3] + 2
    tops = range(0, max(1, size[1] - LABEL + 1))
    places = sorted(((left, y, left + wide, y + LABEL) for y in tops), key=lambda place: abs(place[1] - wanted))
    place = next((one for one in places if not any(_overlap(one, other) for other in taken)), places[0])
    draw.rectangle(place, fill=colour)
    draw.text((left + 2, place[1]), text, fill=(0, 0, 0), font=font)
    return place


def _overlap(a: Rectangle, b: Rectangle) -> bool:
    return a[0] <= b[2] and b[0] <= a[2] and a[1] <= b[3] and b[1] <= a[3]


def _corners(box: np.ndarray, size) -> Rectangle:
    """Returns a box in whole pixels of a picture (width, height), at least 3 px wide and high."""
    x1, y1, x2, y2 = (round(float(value)) for value in np.clip(box, 0, np.tile(np.array(size) - 1, 2)))
    return x1, y1, max(x1 + 3, x2), max(y1 + 3, y2)
