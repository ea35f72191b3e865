"""Lists which files of a folder pre-training will use or skip, and why. Training uses the same code."""

from __future__ import annotations

import collections
import dataclasses
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from dupr_tf.data.file_results import file_stamp
from dupr_tf.data.images.decode import Unusable, decode, describe, read_header
from dupr_tf.data.images.source import map_in_order, read_file
from dupr_tf.errors import UserError
from dupr_tf.files import write_whole
from dupr_tf.text import escape

USED, SKIPPED = "used", "skipped"
COLUMNS = "name\tbytes\tmtime_ns\toutcome\treason"


@dataclasses.dataclass(frozen=True)
class Look:
    """Records a file as it was when it was checked, and whether training uses it."""

    name: str  # in one line
    size: str  # bytes; -1: no file
    modified: str  # ns
    outcome: str  # USED or SKIPPED
    reason: str  # how it is used, or why it is not: `group: details`

    @property
    def group(self) -> tuple[str, str]:
        return self.outcome, self.reason.split(":")[0]


def scan_images(
    paths: Sequence[str],
    max_pixels: int,
    workers: int | None = None,
    output: str | Path | None = None,
    depth: str = "full",
) -> Iterator[Look]:
    """Checks every file and yields the results. Those read from the output come first, then the others in their order.

    Args:
        paths: files, as `list_images` returns them.
        max_pixels: `data.max_pixels` of the run to come.
        workers: threads; decoding does not hold Python's lock. Default: one for each usable CPU.
        output: file with a line for each check. Lines are added as they come. A file that is listed there is not
            checked again unless it has changed since.
        depth: `data.depth` of the run to come.

    Raises:
        UserError: the output is no scan, or one with another limit.
    """
    earlier = {} if output is None else _read(Path(output), max_pixels, depth)
    fresh = []
    for path in paths:
        look = earlier.get(escape(path))
        if look is not None and (look.size, look.modified) == file_stamp(path):
            yield look
        else:
            fresh.append(path)
    with open(os.devnull if output is None else output, "a", encoding="utf-8", buffering=1) as file:  # by line
        for look in map_in_order(lambda path: _look(path, max_pixels, depth), fresh, workers):
            file.write(f"{look.name}\t{look.size}\t{look.modified}\t{look.outcome}\t{look.reason}\n")
            yield look


def count_groups(looks: Sequence[Look]) -> list[tuple[str, str, int, str]]:
    """Returns (outcome, reason, files, an example) of each kind of reason: used ones first, the most frequent first."""
    counts = collections.Counter(look.group for look in looks)
    examples = {look.group: look.name for look in reversed(looks)}
    ordered = sorted(counts, key=lambda group: (group[0] == SKIPPED, -counts[group], group))
    return [(*group, counts[group], examples[group]) for group in ordered]


def _look(path: str, max_pixels: int, depth: str) -> Look:
    stamp = file_stamp(path)
    try:
        content = read_file(path)
        header = read_header(content, max_pixels)
        decode(content, max_pixels, header, depth=depth)
        return Look(escape(path), *stamp, USED, describe(content, header, depth))
    except Unusable as error:
        return Look(escape(path), *stamp, SKIPPED, str(error))


def _read(output: Path, max_pixels: int, depth: str) -> dict[str, Look]:
    """Returns the checks of an earlier scan by name, the last one of each. Creates the file if there is none.

    An incomplete line at the end, as a kill leaves it, is cut off.
    """
    limits = f"max_pixels {max_pixels}" + (f", depth {depth}" if depth != "full" else "")
    first = f"# dupr-tf scan, {limits}\n{COLUMNS}\n"
    try:
        text = output.read_text(encoding="utf-8") if output.is_file() else ""
        if text and not text.startswith(first):
            raise ValueError("it is another file or has another limit")
    except (OSError, ValueError) as error:
        problem = f"{output} is no scan with {limits}: {error}."
        raise UserError("--output", problem, "Choose another file.") from None
    whole = text[: text.rfind("\n") + 1] or first
    if whole != text:
        write_whole(output, whole)
    rows = (line.split("\t") for line in whole.splitlines()[2:])
    columns = len(dataclasses.fields(Look))
    return {row[0]: Look(*row) for row in rows if len(row) == columns}  # a file of another line is scanned again
