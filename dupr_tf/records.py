"""Reads the small JSON files that commands write. A record is data: its size and depth are bounded, its schema checked.

The error about an unusable file is one line with the file, the reason and the fix.
"""

from __future__ import annotations

import collections
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from dupr_tf.errors import UserError
from dupr_tf.files import open_file, read_bounded
from dupr_tf.text import escape, one_line

OWNERS = {  # record of a command -> contents of the folder that has it
    "format.json": "a run",
    "comparison.json": "a comparison",
    "predict.json": "predictions",
    "pack.json": "packed shards",
    "shards.json": "packed shards",
    "manifest.json": "an export",
}
MOST_BYTES = 16 << 20
MOST_LINE = 1 << 20  # bytes
MOST_NUMBER = 1e300  # largest value of a metric, so that sums stay finite
RESTORE = "Restore the file from a copy, or choose another --output."
# Errors that json and a schema raise for contents of the wrong kind.
MISTAKES = (ValueError, LookupError, TypeError, AttributeError, RecursionError, OverflowError)
T = TypeVar("T")


def read_record(path: str | Path, schema: Callable[[Any], T], fix: str = RESTORE) -> T:
    """Reads a JSON file.

    Args:
        path: the file.
        schema: function that converts the JSON value. It raises one of `MISTAKES` for a wrong value.
        fix: what the user should do if the file cannot be used.

    Raises:
        UserError: the file is missing, too large, too deep, no JSON, or does not follow the schema.
    """
    try:
        return schema(parse_json(read_bounded(path, MOST_BYTES)))
    except OSError as error:
        reason = error.strerror or str(error)
    except MISTAKES as error:
        reason = str(error)
    raise UserError(None, f"{escape(str(path))} cannot be used: {one_line(reason, 120).rstrip('.')}.", fix)


def refuse_other_outputs(folder: Path, own: str) -> None:
    """Raises UserError if a folder has the record of another command, whose files would be mixed or replaced.

    Args:
        folder: the output of a command. It need not exist.
        own: the command's own contents, a value of `OWNERS`.
    """
    for name, contents in OWNERS.items():
        if contents != own and os.path.lexists(folder / name):
            problem = f"{escape(str(folder))} holds {contents} ({name})."
            raise UserError("--output", problem, "Choose another --output.")


def read_lines(path: str | Path, schema: Callable[[Any], T]) -> Iterator[T | None]:
    """Yields the records in a file of JSON lines, one line at a time; None for each line that cannot be used.

    Args:
        path: the file. If it is missing or no file, nothing is yielded.
        schema: as in `read_record`.
    """
    try:
        file = open_file(path)
    except OSError:
        return
    with file:
        while line := file.readline(MOST_LINE):
            whole_line = len(line) < MOST_LINE
            while not line.endswith(b"\n") and len(line) == MOST_LINE:
                line = file.readline(MOST_LINE)  # skips the rest of a line that is too long
            try:
                yield schema(parse_json(line)) if whole_line else None
            except MISTAKES:
                yield None


def read_metrics_line(value: Any) -> dict:
    """Returns a line of metrics.jsonl: a step, and numbers that are finite or None. Raises ValueError for others."""
    whole(mapping(value)["step"])
    for name, number in value.items():
        if number is not None and (type(number) not in (int, float) or not abs(number) < MOST_NUMBER):
            raise ValueError(f"expected a number for {name[:40]}")
    return value


def parse_json(content: bytes | str) -> Any:
    """Parses JSON. Raises ValueError if it is damaged or nested too deeply, or if an object has a key twice."""
    try:
        return json.loads(content, object_pairs_hook=_unique)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def _unique(pairs: list[tuple[str, Any]]) -> dict:
    """Makes an object of its pairs. By default json keeps the last of several values without a word."""
    value = dict(pairs)
    if len(value) < len(pairs):
        twice, _ = collections.Counter(key for key, _ in pairs).most_common(1)[0]
        raise ValueError(f"an object has the key {twice[:40]!a} twice")
    return value


def whole(value: Any, most: int = 2**53) -> int:
    """Returns a whole number from 0 to `most`. Raises ValueError for any other value."""
    if type(value) is not int or not 0 <= value <= most:
        raise ValueError(f"expected a whole number from 0 to {most:,}, received {short(value)}")
    return value


def text(value: Any, most: int = 1 << 16) -> str:
    """Returns a string of at most `most` characters. Raises ValueError for any other value."""
    if not isinstance(value, str) or len(value) > most:
        raise ValueError(f"expected text, received {short(value)}")
    return value


def digest(value: Any) -> str:
    """Returns a sha256 in hexadecimal. Raises ValueError for any other value."""
    if not isinstance(value, str) or len(value) != 64 or not set(value) <= set("0123456789abcdef"):
        raise ValueError(f"expected a sha256, received {short(value)}")
    return value


def mapping(value: Any) -> dict:
    """Returns a JSON object. Raises ValueError for any other value."""
    if not isinstance(value, dict):
        raise ValueError(f"expected an object, received {short(value)}")
    return value


def listing(value: Any) -> list:
    """Returns a JSON list. Raises ValueError for any other value."""
    if not isinstance(value, list):
        raise ValueError(f"expected a list, received {short(value)}")
    return value


def short(value: Any) -> str:
    """Describes a wrong value in a few characters, however deep or large it is."""
    return f"a {type(value).__name__}" if isinstance(value, dict | list) else ascii(value)[:40]
