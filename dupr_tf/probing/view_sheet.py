"""Draws view pairs as in training. Their overlap is cut into numbered patches; equal numbers show equal content."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import tensorflow as tf
from PIL import Image, ImageFont

from dupr_tf.config import Config
from dupr_tf.data.images.bad_images import BadImages
from dupr_tf.data.images.source import ImageSource
from dupr_tf.data.pipeline import view_pairs
from dupr_tf.ops.photometric import PRESETS, apply, draw
from dupr_tf.probing.drawing import BOX, GAP, INK, LINE, PAPER, WRONG, paper, tile, write

SIDE = 224  # px of a view on the sheet
MOST_CELLS = 4  # most patches per side that are numbered: more cannot be read


def first_pairs(source: ImageSource, config: Config, count: int, colours: bool = True) -> tuple[dict, list[str]]:
    """Draws the first pairs of a run of this config over these images.

    Args:
        source: the images.
        config: config whose `data`, `views`, `train.batch_size` and `train.seed` are read.
        count: number of pairs; at most as many as there are images.
        colours: change colours by a recipe of the config. The draws are not those of the run.

    Returns:
        A ViewPair of NumPy arrays, views in 0–255, and the names of the images.
    """
    bad, count = BadImages.of(source, config.data), min(count, len(source))
    # The first images of a run do not depend on its batch, threads and processes.
    train, data = config.train.model_copy(update={"batch_size": count}), config.data.model_copy(update={"processes": 0})
    with view_pairs(source, config.model_copy(update={"train": train, "data": data}), 0, 1, bad) as batches:
        pairs = next(batches)
    for number in (1, 2) if colours else ():
        drawn = draw(count, tf.constant([config.train.seed, number], tf.int64), config.views.photometric)
        recipe = PRESETS[config.views.photometric]
        pairs[f"view_{number}"] = 255 * apply(pairs[f"view_{number}"], drawn, recipe).numpy()
    return pairs, [source.name(int(index)) for index in pairs["index"]]


def patch_centres(box, flipped: bool, cells: int) -> np.ndarray:
    """Returns (cells, cells, 2) `(y, x)` of an overlap's patches in a view; a mirrored view is read right to left."""
    steps = (np.arange(cells) + 0.5) / cells
    y, x = box[0] + steps * (box[2] - box[0]), box[1] + steps * (box[3] - box[1])
    return np.stack(np.meshgrid(y, x[::-1] if flipped else x, indexing="ij"), -1)


def cells_of(config: Config) -> int:
    """Returns the patches per side to number: those of the coarsest patch loss; 3 if none, or too many to read."""
    smallest = min(config.model.patch_sizes.values(), default=3)
    return smallest if smallest <= MOST_CELLS else 3


def view_sheet(pairs: dict, names: Sequence[str], cells: int, columns: int = 2) -> Image.Image:
    """Draws pairs next to each other. Pairs without enough overlap for a patch loss are framed and labelled.

    Args:
        pairs: as from `first_pairs`.
        names: a title for each.
        cells: patches per side to number.
        columns: pairs per row.
    """
    count = len(names)
    columns = min(columns, count)
    wide, high = 2 * SIDE + 3 * GAP, SIDE + LINE + GAP
    sheet, pen = paper(columns * wide + GAP, -(-count // columns) * high + GAP)
    for k in range(count):
        row, column = divmod(k, columns)
        x, y = GAP + column * wide, GAP + row * high
        flips = [" mirrored" * bool(pairs[f"flipped_{n}"][k]) for n in (1, 2)]
        write(pen, (x, y), fitting(Path(names[k]).name, SIDE - 70 * bool(flips[0])))
        for n in range(2):
            left = x + n * (SIDE + GAP)
            sheet.paste(tile(pairs[f"view_{n + 1}"][k], SIDE), (left, y + LINE))
            write(pen, (left + SIDE, y), f"view {n + 1}{flips[n]}" if n else f"{flips[n].strip()}", 13, INK, "ra")
            if pairs["valid"][k]:
                scale = SIDE / pairs["view_1"].shape[1]
                _patches(pen, pairs[f"boxes_{n + 1}"][k] * scale, flips[n], cells, (left, y + LINE))
            else:
                pen.rectangle((left, y + LINE, left + SIDE - 1, y + LINE + SIDE - 1), outline=WRONG, width=4)
                pen.rectangle((left + 4, y + LINE + 4, left + SIDE - 5, y + LINE + 28), fill=PAPER)
                write(pen, (left + 8, y + LINE + 8), "too little overlap: no patch loss", 14, INK)
    return sheet


def fitting(text: str, width: int) -> str:
    """Cuts a text from the left to a width in px."""
    while len(text) > 1 and ImageFont.load_default(13).getlength(text) > width:
        text = text[1:]
    return text


def _patches(pen, box, flipped, cells, corner) -> None:
    x, y = corner
    y1, x1, y2, x2 = np.clip(box, 0, SIDE - 1)
    for part in range(1, cells):
        across, down = x1 + (x2 - x1) * part / cells, y1 + (y2 - y1) * part / cells
        pen.line((x + across, y + y1, x + across, y + y2), fill=BOX)
        pen.line((x + x1, y + down, x + x2, y + down), fill=BOX)
    pen.rectangle((x + x1, y + y1, x + x2, y + y2), outline=BOX, width=3)
    for number, (py, px) in enumerate(patch_centres(box, flipped, cells).reshape(-1, 2), 1):
        for dy, dx in ((-1, 0), (1, 0), (0, -1), (0, 1)):  # a dark edge keeps it readable on any picture
            write(pen, (x + px + dx, y + py + dy), str(number), 14, INK, "mm")
        write(pen, (x + px, y + py), str(number), 14, (255, 255, 255), "mm")
