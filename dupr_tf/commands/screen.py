"""Prints the tables and lines of the commands, with control characters of names and paths escaped."""

from __future__ import annotations

import sys
from collections.abc import Iterable

from dupr_tf.text import visible

WIDEST = 10_000  # columns of a table that no terminal shows


def print_table(head: tuple[str, ...], rows: list[tuple]) -> None:
    """Prints rows under bold headings. A terminal wraps them in columns; in a file or pipe, a row is one line."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(*head, box=None, header_style="bold", pad_edge=False)
    for row in rows:
        table.add_row(*(Text(visible(str(cell))) for cell in row))  # plain text: a name may hold [brackets]
    console = Console()
    if console.is_terminal:
        return console.print(table)
    console = Console(width=WIDEST)
    with console.capture() as lines:
        console.print(table)
    print(*(line.rstrip() for line in lines.get().splitlines()), sep="\n")


def print_line(text: object) -> None:
    """Prints a line that may hold names or paths."""
    print(visible(str(text)))


def print_warnings(warnings: Iterable[str]) -> None:
    """Prints warnings on standard error, one line each."""
    for warning in warnings:
        print("dupr-tf: warning:", visible(warning).replace("\n", "\\n"), file=sys.stderr)


def print_rows(head: tuple[str, ...], rows: list[tuple]) -> None:
    """Prints rows whole, however wide the terminal is, so that paths can be copied."""
    cells = [tuple(visible(str(cell)) for cell in row) for row in (head, *rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    for row in cells:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def with_progress(items, total: int, doing: str):
    """Yields the items; on a terminal, a bar counts them."""
    from rich.console import Console
    from rich.progress import track

    console = Console(stderr=True)
    yield from track(items, doing, total, console=console, disable=not console.is_terminal)
