"""Draws feature maps as colours of their first three principal components, beside the photos."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image

from dupr_tf.probing.drawing import GAP, LINE, paper, tile, write

DIMMEST, BRIGHTEST = 2, 98  # percentiles of a component that are black and full colour
COMPONENTS = 3


def component_colours(maps: Sequence[np.ndarray]) -> tuple[list[np.ndarray], float]:
    """Turns feature maps of one level into colours. Equal features have equal colours in all maps.

    Features are scaled to length 1, as for a cosine. Red, green and blue are the first three principal components of
    the cells of all maps.

    Args:
        maps: (h, w, C) float32 each.

    Returns:
        colours: (h, w, 3) uint8 for each map.
        share: share of the variance in the three components, 0 to 1.
    """
    rows = [_unit_rows(one.reshape(-1, one.shape[-1])) for one in maps]
    cells = np.concatenate(rows)
    cells -= cells.mean(0)
    variances, axes = np.linalg.eigh(cells.T @ cells / len(cells))
    axes = axes[:, ::-1][:, :COMPONENTS]
    axes = axes * np.where(np.take_along_axis(axes, np.abs(axes).argmax(0)[None], 0) < 0, -1, 1)  # signs are arbitrary
    values = cells @ axes
    low, high = np.percentile(values, (DIMMEST, BRIGHTEST), axis=0)
    colours = np.zeros((len(values), COMPONENTS), np.uint8)
    scaled = (values - low) / np.where(high - low > 1e-9, high - low, 1)
    colours[:, : values.shape[1]] = (np.clip(scaled, 0, 1) * 255).round()
    parts = np.split(colours, np.cumsum([len(one) for one in rows])[:-1])
    share = variances[::-1][:COMPONENTS].sum() / max(variances.sum(), 1e-12)
    return [part.reshape(*one.shape[:2], 3) for part, one in zip(parts, maps, strict=True)], float(share)


def _unit_rows(rows: np.ndarray) -> np.ndarray:
    """Returns rows (n, C) scaled to length 1 in float64."""
    rows = rows.astype(np.float64)
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)


def component_sheet(views: Sequence[np.ndarray], maps: Sequence[dict[str, np.ndarray]], side: int = 144) -> Image.Image:
    """Draws a row for each photo: the photo, then the colours of each level.

    Args:
        views: (S, S, 3) uint8, the photos as the backbone takes them.
        maps: {level: (h, w, C)} for each photo, the same levels for all.
        side: side of a photo and of a map, px.
    """
    levels = list(maps[0])
    sheet, draw = paper(GAP + (1 + len(levels)) * (side + GAP), LINE + GAP + len(views) * (side + GAP))
    write(draw, (GAP, 4), "photo")
    for row, view in enumerate(views):
        sheet.paste(tile(view, side), (GAP, LINE + row * (side + GAP)))
    for column, level in enumerate(levels, start=1):
        x = GAP + column * (side + GAP)
        colours, share = component_colours([one[level] for one in maps])
        height, width = colours[0].shape[:2]
        write(draw, (x, 4), f"{level}: {height} x {width}, {share:.0%}")
        for row, picture in enumerate(colours):
            resized = Image.fromarray(picture).resize((side, side), Image.Resampling.NEAREST)
            sheet.paste(resized, (x, LINE + row * (side + GAP)))
    return sheet
