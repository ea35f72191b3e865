"""Draws a sheet of images with their true and predicted pixel classes."""

from __future__ import annotations

import colorsys
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from dupr_tf.config import DataConfig
from dupr_tf.data.detection import read_image
from dupr_tf.data.labels.segments import IGNORED, SegmentedImages
from dupr_tf.detection.pictures import CELL, GAP, HEADER, sheet_positions
from dupr_tf.text import escape

NO_CLASS = (235, 235, 235)  # ignored pixels, and the space around pictures
TITLES = ("image", "ground truth (light grey: ignored)", "prediction")
LEGEND_ROW = 22  # px


def segmentation_sheet(
    segmented: SegmentedImages, predictions: dict[int, np.ndarray], path: str | Path, data: DataConfig | None = None
) -> None:
    """Draws up to four images with their true and predicted classes, and the colours of the classes below.

    Args:
        segmented: the images and their truth.
        predictions: {position: (H, W) classes of the original's pixels}, for `sheet_positions(len(segmented), 4)`.
        path: PNG file to write.
        data: how images are read. None takes the defaults.
    """
    chosen = [position for position in sheet_positions(len(segmented), 4) if position in predictions]
    heights = [_cell_size(segmented.sizes[position])[1] for position in chosen]
    width = len(TITLES) * (CELL + GAP) + GAP
    legend = _legend(segmented.class_names, width)
    sheet = Image.new("RGB", (width, HEADER + sum(heights) + GAP * len(heights) + legend.height), (255, 255, 255))
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(15)
    for column, title in enumerate(TITLES):
        draw.text((GAP + column * (CELL + GAP), 7), title, fill=(0, 0, 0), font=font)
    colours, y = class_colours(len(segmented.class_names)), HEADER
    for position, height in zip(chosen, heights, strict=True):
        for column, cell in enumerate(_row(segmented, position, predictions[position], colours, data)):
            sheet.paste(cell, (GAP + column * (CELL + GAP), y))
        y += height + GAP
    sheet.paste(legend, (0, y))
    sheet.save(path)


def segments_picture(image: np.ndarray, segments: np.ndarray, class_names, side: int = 960) -> Image.Image:
    """Draws the predicted classes of an image over it at half opacity, and the colours of the classes below.

    Args:
        image: (H, W, 3) uint8 RGB.
        segments: (H, W) classes.
        class_names: names of the classes 0, 1, …
        side: px; larger images are shrunk to it.
    """
    scale, colours = min(1.0, side / max(image.shape[:2])), class_colours(len(class_names))
    shape = [max(1, round(length * scale)) for length in image.shape[1::-1]]
    classes = Image.fromarray(colours[segments]).resize(shape, Image.Resampling.NEAREST)
    blended = Image.blend(Image.fromarray(image).resize(shape, Image.Resampling.BICUBIC), classes, 0.5)
    legend = _legend(class_names, max(shape[0], CELL))
    picture = Image.new("RGB", (legend.width, shape[1] + GAP + legend.height), (255, 255, 255))
    picture.paste(blended)
    picture.paste(legend, (0, shape[1] + GAP))
    return picture


def class_colours(classes: int) -> np.ndarray:
    """Returns (256, 3) uint8: a colour for each class, far from its neighbours', light grey for no class."""
    colours = np.full((256, 3), NO_CLASS, np.uint8)
    for number in range(classes):
        hue, value = number * 0.618034 % 1, (1.0, 0.75, 0.5)[number % 3]
        colours[number] = [round(255 * part) for part in colorsys.hsv_to_rgb(hue, (0.75, 0.9)[number % 2], value)]
    colours[IGNORED] = NO_CLASS
    return colours


def _cell_size(size) -> tuple[int, int]:
    """Returns width and height of a picture of `size` (height, width) in the sheet."""
    scale = CELL / max(size)
    return max(1, round(size[1] * scale)), max(1, round(size[0] * scale))


def _row(segmented: SegmentedImages, position: int, predicted, colours: np.ndarray, data) -> list[Image.Image]:
    shape = _cell_size(segmented.sizes[position])
    image = Image.fromarray(read_image(segmented.paths[position], data)).resize(shape, Image.Resampling.BICUBIC)
    maps = (segmented.truth(position), np.asarray(predicted).astype(np.uint8))
    return [image, *(Image.fromarray(colours[values]).resize(shape, Image.Resampling.NEAREST) for values in maps)]


def _legend(names: tuple[str, ...], width: int) -> Image.Image:
    """Draws squares of colour with names, in as many lines as needed."""
    font, colours, places = ImageFont.load_default(13), class_colours(len(names)), []
    probe, x, row = ImageDraw.Draw(Image.new("RGB", (1, 1))), GAP, 0
    names = [escape(name) for name in names]
    for name in names:
        wide = 36 + round(probe.textlength(name, font))
        if x > GAP and x + wide > width:
            x, row = GAP, row + 1
        places.append((x, row * LEGEND_ROW))
        x += wide
    legend = Image.new("RGB", (width, (row + 1) * LEGEND_ROW + GAP), (255, 255, 255))
    draw = ImageDraw.Draw(legend)
    for number, (name, (x, y)) in enumerate(zip(names, places, strict=True)):
        draw.rectangle((x, y + 2, x + 14, y + 16), fill=tuple(colours[number].tolist()))
        draw.text((x + 20, y), name, fill=(0, 0, 0), font=font)
    return legend
