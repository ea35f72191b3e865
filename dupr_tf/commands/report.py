"""Output and error reporting that the commands share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from dupr_tf.errors import UserError, raise_all
from dupr_tf.text import escape

REFUSED = 1


def print_table(head: tuple[str, ...], rows: list[tuple]) -> None:
    """Prints rows under bold headings; on a terminal, cut to its width."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(*head, box=None, header_style="bold")
    for row in rows:
        table.add_row(*(Text(str(cell)) for cell in row))  # plain text: a name may hold [brackets]
    Console().print(table)


def print_rows(head: tuple[str, ...], rows: list[tuple]) -> None:
    """Prints rows whole, however wide the terminal is, so that paths can be copied."""
    cells = [tuple(map(str, row)) for row in (head, *rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    for row in cells:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


SCORES = ("AP", "AP50", "AP75", "mIoU", "pixel_accuracy")


def print_scores(scores: dict, output: Path | None) -> None:
    """Prints a detector's scores by every metric, a table of its classes, best first, and the output folder."""
    print(_score_line(scores))
    for name, other in scores.items():
        if isinstance(other, dict) and "AP" in other:
            print(f"{name}: {_score_line(other)}")
    from dupr_tf.detection.curves import class_rows

    head, *rows = class_rows(scores)
    print_table(head, rows)
    if output is not None:
        print(f"wrote {output}")


def _score_line(scores: dict) -> str:
    values = {name: scores[name] for name in SCORES if name in scores}
    return "  ".join(f"{name} " + ("none" if value is None else f"{value:.3f}") for name, value in values.items())


def print_export(written: Path) -> None:
    """Prints the files of an export and, from its manifest, the comparisons made and the largest differences."""
    from dupr_tf.weights.manifest import read_manifest

    print(f"wrote {written}")
    for path in sorted(p for p in written.rglob("*") if p.is_file()):
        print(f"  {path.relative_to(written)}  {path.stat().st_size:,} bytes")
    manifest = read_manifest(written)
    largest: dict[tuple[str, str], float] = {}
    for check in manifest["checks"]:
        key = check["against"], check["level"]
        largest[key] = max(largest.get(key, 0.0), check["difference"])
    for against in dict.fromkeys(against for against, _ in largest):
        levels = ", ".join(f"{level} {largest[a, level]:.1e}" for a, level in largest if a == against)
        print(f"compared with {against}: {levels}")
    for reason in manifest["not_compared"]:
        print(f"not compared with {reason}")
    relative = manifest["relative_difference"]
    print(f"largest difference {manifest['difference']:.1e} ({relative:.1e} of the largest feature)")


def print_verified(root: Path) -> None:
    """Compares shards with their checksums. Raises a `UserError` for each that is damaged."""
    from dupr_tf.data.shards.manifest import find_damage

    errors = list(find_damage(root))
    raise_all(list(filter(None, errors)))
    print(f"{len(errors)} shards are what was packed: {root}")


def print_names(root: Path) -> None:
    """Prints the name of each packed image on a line, special characters escaped."""
    from dupr_tf.data.shards.manifest import list_names

    for name in list_names(root):
        print(escape(name))


def with_progress(items, total: int, doing: str = "scanning"):
    """Yields the items; on a terminal, a bar counts them."""
    from rich.console import Console
    from rich.progress import track

    console = Console(stderr=True)
    yield from track(items, doing, total, console=console, disable=not console.is_terminal)


def problems_of(check: Callable, *arguments, field: str | None = None) -> list[UserError]:
    """Returns the errors that a check of the user's input raises, so that several checks are reported together.

    Args:
        check: called with the arguments.
        field: the user's name of the checked value. Default: the errors' own fields.
    """
    try:
        check(*arguments)
    except UserError as error:
        return [UserError(field or one.field, one.problem, one.fix) for one in error.errors]
    return []


def output_problems(output: Path | None) -> list[UserError]:
    """Returns an error if the output folder's name is taken by a file."""
    if output is None or not output.is_file():
        return []
    return [UserError("--output", f"{output} is a file.", "Pass a folder.")]
