"""Prints the tables of the commands."""

from __future__ import annotations


def print_table(head: tuple[str, ...], rows: list[tuple]) -> None:
    """Prints rows under bold headings; on a terminal, cut to its width."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(*head, box=None, header_style="bold")
    for row in rows:
        table.add_row(*(Text(str(cell)) for cell in row))  # plain text: a name may hold [brackets]
    Console().print(table)
