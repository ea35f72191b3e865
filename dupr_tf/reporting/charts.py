"""Computes line charts: ticks, paths and a description for screen readers. The template turns them into SVG."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

WIDTH, HEIGHT = 380, 230  # units of the drawing, about px on a phone
LEFT, RIGHT, TOP, BOTTOM = 48, 10, 10, 38  # margins
MOST_POINTS = 300  # points per line; more cannot be distinguished

Points = Sequence[tuple[float, float | None]]


@dataclasses.dataclass(frozen=True)
class Line:
    label: str
    style: int  # style of the run, from 0: colour and dashes
    path: str  # SVG path data
    dots: list[tuple[float, float]]  # points without a line, because their neighbours are not finite


@dataclasses.dataclass(frozen=True)
class Reference:
    """A horizontal line at a level to compare with."""

    label: str
    y: float
    text_y: float


@dataclasses.dataclass(frozen=True)
class Chart:
    title: str
    description: str  # its content, in words and numbers
    lines: list[Line]
    references: list[Reference]
    x_ticks: list[tuple[float, str]]
    y_ticks: list[tuple[float, str]]


def line_chart(
    title: str, series: dict[str, tuple[int, Points]], references: dict[str, float] | None = None
) -> Chart | None:
    """Draws series against the step.

    Args:
        title: title of the chart.
        series: `{label: (style, [(step, value), …])}`; None is a gap.
        references: {label: level} of horizontal lines.

    Returns:
        The chart, or None if no series has a finite value.
    """
    finite = {label: [p for p in points if p[1] is not None] for label, (_, points) in series.items()}
    finite = {label: points for label, points in finite.items() if points}
    if not finite:
        return None
    references = references or {}
    values = [v for points in finite.values() for _, v in points] + list(references.values())
    steps = [s for points in finite.values() for s, _ in points]
    x_of, x_ticks = _axis(min(0, min(steps)), max(steps), LEFT, WIDTH - RIGHT, 4)
    room = (max(values) - min(values)) / 25  # so that no line runs along an edge
    low, high = min(values) - room * (min(values) < 0 or min(values) > room), max(values) + room
    y_of, y_ticks = _axis(low, high, HEIGHT - BOTTOM, TOP, 5)
    lines = [_line(label, *series[label], x_of, y_of) for label in finite]
    levels = [_reference(label, y_of(value)) for label, value in references.items()]
    return Chart(title, _described(title, finite, references), lines, levels, x_ticks, y_ticks)


def thin(points: Points, most: int = MOST_POINTS) -> Points:
    """Keeps at most `most` points: the least and the largest of each stretch, so that no spike is lost, and gaps."""
    if len(points) <= most:
        return points
    size = -(-len(points) // (most // 3))
    kept = []
    for start in range(0, len(points), size):
        part = range(start, min(start + size, len(points)))
        finite = [i for i in part if points[i][1] is not None]
        chosen = {min(finite, key=lambda i: points[i][1]), max(finite, key=lambda i: points[i][1])} if finite else set()
        if len(finite) < len(part):
            chosen.add(next(i for i in part if points[i][1] is None))
        kept += [points[i] for i in sorted(chosen)]
    return kept


def ticks(low: float, high: float, most: int) -> list[float]:
    """Returns round numbers (1, 2 or 5 times a power of ten apart) within low..high, at most `most` + 1 of them."""
    raw = (high - low) / most
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(power * k for k in (1, 2, 5, 10) if power * k >= raw * (1 - 1e-9))
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [k * step for k in range(first, last + 1)]


def tick_text(value: float) -> str:
    """Formats a number as `0.05`, `12k`, `3M`: about six characters."""
    for unit, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= unit:
            return f"{value / unit:.4g}{letter}"
    return f"{value:.3g}" if value else "0"


def _axis(low: float, high: float, start: float, end: float, most: int):
    """Maps low..high to start..end with a margin; returns the map and [(position, text)]."""
    if high - low <= 1e-9 * max(abs(high), abs(low), 1e-12):
        low, high = min(0.0, 1.1 * low), max(0.0, 1.1 * high) or (1.0 if low == 0 else 0.0)

    def place(value: float) -> float:
        return round(start + (value - low) / (high - low) * (end - start), 1)

    return place, [(place(value), tick_text(value)) for value in ticks(low, high, most)]


def _line(label, style, points, x_of, y_of) -> Line:
    commands, dots, pen_down = [], [], False
    points = thin(points)
    for i, (step, value) in enumerate(points):
        if value is None:
            pen_down = False
            continue
        x, y = x_of(step), y_of(value)
        follows = i + 1 < len(points) and points[i + 1][1] is not None
        if not pen_down and not follows:
            dots.append((x, y))
        else:
            commands.append(f"{'L' if pen_down else 'M'}{x:g} {y:g}")
            pen_down = True
    return Line(label, style, "".join(commands), dots)


def _reference(label, y) -> Reference:
    return Reference(label, y, y + 12 if y < TOP + 14 else y - 4)


def _described(title, finite, references) -> str:
    parts = [
        f"{label} from {points[0][1]:.4g} at step {points[0][0]:,.0f} to {points[-1][1]:.4g} at step "
        f"{points[-1][0]:,.0f}, least {min(v for _, v in points):.4g}, largest {max(v for _, v in points):.4g}"
        for label, points in finite.items()
    ]
    levels = [f"{label} at {value:.4g}" for label, value in references.items()]
    return f"{title} against the step: " + "; ".join(parts + levels) + "."
