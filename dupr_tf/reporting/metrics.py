"""Reads metrics.jsonl of any length and with any damage."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

from dupr_tf.files import open_file
from dupr_tf.records import mapping, read_lines

MOST_ROWS = 4000  # rows kept in memory and drawn; of longer files every second, fourth, … line is kept
MOST_NAMES = 200  # scalars a line may hold


@dataclasses.dataclass
class Metrics:
    """The lines of a metrics file, every `stride`-th of them, and counts over all of them."""

    rows: list[dict[str, float | None]] = dataclasses.field(default_factory=list)  # rising in "step"; None: not finite
    lines: int = 0  # readable lines
    damaged: int = 0  # unreadable lines
    cut: bool = False  # True if the last line is incomplete, as after a kill
    disordered: int = 0  # lines left out, because an earlier line has the same or a later step
    not_finite: dict[str, list[int]] = dataclasses.field(
        default_factory=dict
    )  # {loss: first steps at which it was no number}
    stride: int = 1
    probe_seconds: float = 0.0  # seconds of probing in training

    @property
    def last_step(self) -> int:
        return int(self.rows[-1]["step"]) if self.rows else 0

    def names(self) -> list[str]:
        """Lists scalars in the order of their first appearance, except step and epoch."""
        return [name for name in dict.fromkeys(n for row in self.rows for n in row) if name not in ("step", "epoch")]

    def points(self, name: str) -> list[tuple[float, float | None]]:
        """Returns (step, value) of a scalar; None if it was not finite."""
        return [(row["step"], row[name]) for row in self.rows if name in row]

    def mean_of_last(self, name: str, share: float = 0.2) -> float | None:
        """Returns the mean of a scalar over the last share of the steps; None if it is never finite."""
        first = (1 - share) * self.last_step
        values = [value for step, value in self.points(name) if step > first and value is not None]
        return sum(values) / len(values) if values else None


def read_metrics(path: Path) -> Metrics:
    """Reads a metrics file and counts unreadable lines. Raises OSError if the file is missing."""
    metrics, last, row = Metrics(), None, None
    complete = _ends_with_a_line(path)
    for row in read_lines(path, _row):
        if row is None:
            metrics.damaged += 1
        elif last is not None and row["step"] <= last["step"]:
            metrics.disordered += 1
        else:
            last = row
            _keep(metrics, row)
    metrics.cut = bool(metrics.damaged) and row is None and not complete
    if last is not None and metrics.rows[-1] is not last:
        metrics.rows.append(last)
    return metrics


def _ends_with_a_line(path: Path) -> bool:
    """Returns False if the last line of a file has no end, as a kill leaves it."""
    with open_file(path) as file:
        if file.seek(0, 2) == 0:
            return True
        file.seek(-1, 2)
        return file.read(1) == b"\n"


def _keep(metrics: Metrics, row: dict) -> None:
    for name, value in row.items():
        if value is None and name.startswith("loss") and len(metrics.not_finite.setdefault(name, [])) < 3:
            metrics.not_finite[name].append(int(row["step"]))
    metrics.probe_seconds += row.get("seconds/probes") or 0.0
    if metrics.lines % metrics.stride == 0:
        metrics.rows.append(row)
    metrics.lines += 1
    if len(metrics.rows) > MOST_ROWS:
        metrics.rows, metrics.stride = metrics.rows[::2], 2 * metrics.stride


def _row(entry) -> dict[str, float | None]:
    """Returns a line's numbers, None for those not finite. Raises ValueError if it is no line of the metrics."""
    step = number(mapping(entry)["step"])
    if step is None or step < 0 or step != int(step) or len(entry) > MOST_NAMES:
        raise ValueError("expected a step, and at most 200 scalars")
    numbers = {name: number(value) for name, value in entry.items() if value is None or is_number(value)}
    return {**numbers, "step": step}


def is_number(value) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def number(value) -> float | None:
    """Returns a finite float, or None."""
    try:
        value = float(value) if is_number(value) else math.nan
    except OverflowError:  # an integer larger than every float
        return None
    return value if math.isfinite(value) else None
