"""Draws pictures of the localisation probes: lines between matches, affinity matrices, neighbours, curves."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from PIL.PngImagePlugin import PngInfo

from dupr_tf.files import write_whole
from dupr_tf.text import plot_label

# Okabe and Ito's colours: colour-blind readers can distinguish them, also on photographs.
RIGHT, NEAR, WRONG, BOX = (0, 158, 115), (240, 228, 66), (213, 94, 0), (86, 180, 233)
SERIES = ((0, 114, 178), (213, 94, 0), (0, 158, 115), (204, 121, 167), (230, 159, 0), (86, 180, 233))
INK, PAPER, PALE = (0, 0, 0), (255, 255, 255), (120, 120, 120)
GAP, LINE = 8, 20  # px
LINES = 36  # matches drawn in a pair


def save(picture: Image.Image, path: str | Path, colours: int | None = 192, software: str = "") -> None:
    """Writes a PNG of few colours, which takes a third of the bytes and looks the same.

    Args:
        picture: the picture.
        path: file to write.
        colours: number of colours; None keeps all.
        software: what has drawn it, for the file's metadata.
    """
    facts = PngInfo()
    if software:
        facts.add_text("Software", software)
    file, picture = io.BytesIO(), picture.convert("RGB")
    if colours is not None:
        picture = picture.quantize(colours, dither=Image.Dither.NONE)
    picture.save(file, "PNG", optimize=True, pnginfo=facts)
    write_whole(Path(path), file.getvalue())


def tile(view: np.ndarray, side: int) -> Image.Image:
    """Resizes a view (S, S, 3) in 0–255 to a square of `side` px."""
    pixels = np.clip(np.asarray(view, np.float32) + 0.5, 0, 255).astype(np.uint8)
    return Image.fromarray(pixels).resize((side, side), Image.Resampling.LANCZOS)


def write(draw: ImageDraw.ImageDraw, place, text: str, size: int = 13, colour=INK, anchor: str = "la") -> None:
    draw.text(place, text, fill=colour, font=ImageFont.load_default(size), anchor=anchor)


def paper(width: int, height: int) -> tuple[Image.Image, ImageDraw.ImageDraw]:
    sheet = Image.new("RGB", (width, height), PAPER)
    return sheet, ImageDraw.Draw(sheet)


def matching_picture(drawn: dict[str, Sequence], side: int = 200) -> Image.Image:
    """Draws a row of pairs for each backbone, with lines from every few cells to their matches.

    Args:
        drawn: {label: from `matching`}, the same pairs for each.
        side: side of a view, px.
    """
    pairs = max(map(len, drawn.values()))
    block = 2 * side + 2 * GAP
    sheet, draw = paper(GAP + pairs * (block + GAP), 2 * LINE + len(drawn) * (side + LINE + GAP))
    x = GAP
    for colour, text in ((RIGHT, "within 1 cell"), (NEAR, "within 2"), (WRONG, "elsewhere")):
        draw.line((x, LINE // 2 + 2, x + 22, LINE // 2 + 2), fill=colour, width=4)
        write(draw, (x + 28, 5), text)
        x += 125
    for row, (label, shown) in enumerate(drawn.items()):
        top = LINE + row * (side + LINE + GAP)
        write(draw, (GAP, top + 3), label, 14)
        for column, pair in enumerate(shown):
            _matches(sheet, draw, pair, (GAP + column * (block + GAP), top + LINE), side)
    return sheet


def _matches(sheet, draw, pair, corner, side) -> None:
    x, y = corner
    other = x + side + GAP
    sheet.paste(tile(pair.view_1, side), (x, y))
    sheet.paste(tile(pair.view_2, side), (other, y))
    step = side / pair.side
    for k in np.linspace(0, len(pair.cells) - 1, min(LINES, len(pair.cells))).round().astype(int):
        error = np.linalg.norm(pair.matched[k] - pair.places[k])
        colour = RIGHT if error <= 1 else NEAR if error <= 2 else WRONG
        (y1, x1), (y2, x2) = ((pair.cells[k] + 0.5) * step, (pair.matched[k] + 0.5) * step)
        ends = (x + x1, y + y1, other + x2, y + y2)
        draw.line(ends, fill=colour, width=1)
        for px, py in (ends[:2], ends[2:]):
            draw.ellipse((px - 2, py - 2, px + 2, py + 2), fill=colour)


def affinity_picture(drawn: dict[str, Sequence], side: int = 196) -> Image.Image:
    """Draws a row for each pair: both views with the region framed, then the matrix of each backbone.

    Args:
        drawn: {label: from `affinities`}, the same pairs for each.
        side: side of a view and of a matrix, px.
    """
    labels, pairs = list(drawn), max(map(len, drawn.values()))
    sheet, draw = paper(GAP + (2 + len(labels)) * (side + GAP), LINE + GAP + pairs * (side + GAP))
    for column, text in enumerate(["view 1", "view 2", *labels]):
        write(draw, (GAP + column * (side + GAP), 4), text)
    for row in range(pairs):
        y = LINE + row * (side + GAP)
        views = drawn[labels[0]][row]
        for n in range(2):
            x = GAP + n * (side + GAP)
            sheet.paste(tile(views[n], side), (x, y))
            scale = side / views[n].shape[0]
            y1, x1, y2, x2 = np.clip(views[2 + n] * scale, 0, side - 1)
            draw.rectangle((x + x1, y + y1, x + x2, y + y2), outline=BOX, width=3)
        for column, label in enumerate(labels):
            x = GAP + (2 + column) * (side + GAP)
            sheet.paste(_matrix(drawn[label][row][4], side), (x, y))
            draw.rectangle((x - 1, y - 1, x + side, y + side), outline=PALE)
    return sheet


def _matrix(matrix: np.ndarray, side: int) -> Image.Image:
    """Draws high affinity dark; the square root makes affinity shared between several places visible too."""
    shade = Image.fromarray((255 * (1 - np.sqrt(matrix))).astype(np.uint8))
    return shade.resize((side, side), Image.Resampling.BOX if side < matrix.shape[0] else Image.Resampling.NEAREST)


def retrieval_picture(rows: dict[str, Sequence], side: int = 112) -> Image.Image:
    """Draws a block of rows for each query: the query, then a row of neighbours for each backbone.

    Args:
        rows: `{label: [(query view, [(view, alignment), …]), …]}`, the same queries for each.
        side: side of an image, px.
    """
    labels, queries = list(rows), max(map(len, rows.values()))
    top = max(len(nearest) for shown in rows.values() for _, nearest in shown)
    margin = 20 + max(round(ImageFont.load_default(13).getlength(label)) for label in labels)
    sheet, draw = paper(margin + (1 + top) * (side + GAP) + GAP, LINE + queries * len(labels) * (side + LINE) + GAP)
    write(draw, (margin, 4), "query")
    write(draw, (margin + side + GAP, 4), "nearest, and the share of its cells that match in place")
    y = LINE
    for query in range(queries):
        for label in labels:
            view, nearest = rows[label][query]
            write(draw, (8, y + side // 2 - 6), label)
            sheet.paste(tile(view, side), (margin, y))
            for column, (other, share) in enumerate(nearest):
                x = margin + (column + 1) * (side + GAP)
                sheet.paste(tile(other, side), (x, y))
                write(draw, (x, y + side + 1), f"{share:.2f}")
            y += side + LINE
    return sheet


def sensitivity_picture(curves: dict[str, dict], size: tuple[float, float] = (5.2, 3.6)) -> Image.Image:
    """Draws similarity against IoU, a line and a band of one deviation for each backbone (Fig. 5b).

    Args:
        curves: {label: from `sensitivity`}.
        size: inches at 100 px.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(size, dpi=100, layout="constrained")
    axes = figure.add_subplot()
    for k, (label, curve) in enumerate(curves.items()):
        colour = np.array(SERIES[k % len(SERIES)]) / 255
        filled = [n for n, value in enumerate(curve["mean"]) if value is not None]
        ious, mean, std = (np.array([curve[name][n] for n in filled]) for name in ("iou", "mean", "std"))
        axes.plot(
            ious,
            mean,
            marker="os^Dvp"[k % 6],
            ms=4,
            color=colour,
            label=f"{plot_label(label)}, slope {curve['slope']:.2f}",
        )
        axes.fill_between(ious, mean - std, mean + std, color=colour, alpha=0.15, lw=0)
    axes.set(xlabel="IoU with the object's box", ylabel="cosine with its features (eq. 8)", xlim=(0, 1))
    axes.grid(alpha=0.3)
    axes.legend(loc="upper left", fontsize=8)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return Image.fromarray(np.asarray(canvas.buffer_rgba())[..., :3])
