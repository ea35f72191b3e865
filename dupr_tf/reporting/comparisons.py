"""Reads the folder of a comparison for the report."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from dupr_tf.comparing.outputs import PICTURE_FILE, head, table
from dupr_tf.comparing.record import RECORD_FILE, read_comparison
from dupr_tf.comparing.results import choose_rates, read_result, sentences
from dupr_tf.errors import UserError

UNREADABLE = (UserError, OSError, ValueError)


@dataclasses.dataclass(frozen=True)
class Compared:
    """Holds a comparison: its table, as in `reporting.tables`, and what the table shows."""

    head: list[str]
    rows: list[list[str]]
    sentences: list[str]
    caption: str = ""


def is_comparison(path: Path) -> bool:
    """Returns True for the output folder of `dupr-tf compare`."""
    return (path / RECORD_FILE).is_file()


def read_compared(path: Path, notes: list[str]) -> Compared | None:
    """Reads a comparison. Adds a note, and returns None, if its files are damaged."""
    try:
        comparison = read_comparison(path)
        result, rates = read_result(path, comparison), choose_rates(path, comparison)
    except UNREADABLE as error:
        notes.append(f"The comparison cannot be read. {error}")
        return None
    if result.finished < result.cells:
        notes.append(f"{result.finished} of {result.cells} cells are finished.")
    rows = [list(row) for row in table(result, comparison, rates)]
    return Compared(list(head(result, comparison)), rows, sentences(result, comparison))


def picture_of(path: Path) -> Path:
    """Returns the file of the plot of a comparison."""
    return path / PICTURE_FILE
