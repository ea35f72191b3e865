"""metrics.jsonl, as long and as damaged as it may be."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterator
from pathlib import Path

MOST_ROWS = 4000  # kept in memory and drawn; of more lines every second, fourth, … is
MOST_BYTES = 1 << 20  # of a line
MOST_NAMES = 200  # scalars a line may hold


@dataclasses.dataclass
class Metrics:
    """The lines of a metrics file, every `stride`-th of them, and what was counted over all of them."""

    rows: list[dict[str, float | None]] = dataclasses.field(default_factory=list)  # rising in "step"; None: not finite
    lines: int = 0  # that could be read
    damaged: int = 0  # that could not
    cut: bool = False  # the last one was not whole, as a kill leaves it
    disordered: int = 0  # left out, because a line with the same or a later step came before
    not_finite: dict[str, list[int]] = dataclasses.field(
        default_factory=dict
    )  # {loss: first steps it was no number at}
    stride: int = 1
    probe_seconds: float = 0.0  # that probing in training took

    @property
    def last_step(self) -> int:
        return int(self.rows[-1]["step"]) if self.rows else 0

    def names(self) -> list[str]:
        """Scalars in the order they come up, step and epoch aside."""
        return [name for name in dict.fromkeys(n for row in self.rows for n in row) if name not in ("step", "epoch")]

    def points(self, name: str) -> list[tuple[float, float | None]]:
        """(step, value) of a scalar; None where it was not finite."""
        return [(row["step"], row[name]) for row in self.rows if name in row]

    def mean_of_last(self, name: str, share: float = 0.2) -> float | None:
        """The mean of a scalar over the last share of the steps; None where it is nowhere finite."""
        first = (1 - share) * self.last_step
        values = [value for step, value in self.points(name) if step > first and value is not None]
        return sum(values) / len(values) if values else None


def read_metrics(path: Path) -> Metrics:
    """Reads a metrics file; what cannot be read is counted. Raises OSError where there is no file."""
    found = Metrics()
    last = None
    with path.open("rb") as file:
        for line in _lines(file):
            row = _row(line)
            found.cut = row is None and not line.endswith(b"\n")
            if row is None:
                found.damaged += 1
            elif found.rows and row["step"] <= last["step"]:
                found.disordered += 1
            else:
                last = row
                _keep(found, row)
    if last is not None and found.rows[-1] is not last:
        found.rows.append(last)
    return found


def _keep(found: Metrics, row: dict) -> None:
    for name, value in row.items():
        if value is None and name.startswith("loss") and len(found.not_finite.setdefault(name, [])) < 3:
            found.not_finite[name].append(int(row["step"]))
    found.probe_seconds += row.get("seconds/probes") or 0.0
    if found.lines % found.stride == 0:
        found.rows.append(row)
    found.lines += 1
    if len(found.rows) > MOST_ROWS:
        found.rows, found.stride = found.rows[::2], 2 * found.stride


def _lines(file) -> Iterator[bytes]:
    """Lines; of one that is too long its beginning, which no longer is JSON."""
    while line := file.readline(MOST_BYTES):
        whole = line
        while not line.endswith(b"\n") and len(line) == MOST_BYTES:
            line = file.readline(MOST_BYTES)
            whole = whole[:100] + b"\n"
        if whole.strip():
            yield whole


def _row(line: bytes) -> dict[str, float | None] | None:
    """A line's numbers, None for those that are not finite; None if it is no line of ours."""
    try:
        entry = json.loads(line)
        step = number(entry["step"])
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
    if step is None or step < 0 or step != int(step) or len(entry) > MOST_NAMES:
        return None
    numbers = {name: number(value) for name, value in entry.items() if value is None or is_number(value)}
    return {**numbers, "step": step}


def is_number(value) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def number(value) -> float | None:
    """A finite float, or None."""
    try:
        value = float(value) if is_number(value) else math.nan
    except OverflowError:  # an integer beyond every float
        return None
    return value if math.isfinite(value) else None
