"""Finds files whose names are spelled in another case than in the labels, as Windows and cameras write them."""

from __future__ import annotations

import functools
import os
from pathlib import Path


def on_disk(path: Path) -> Path:
    """Returns a path as it is, or if it is missing, the only file beside it whose name differs in case alone."""
    if path.exists():
        return path
    try:
        names = _names_by_lower(os.fspath(path.parent), os.stat(path.parent).st_mtime_ns)
    except (OSError, ValueError):
        return path
    same = names.get(path.name.lower(), ())
    return path.with_name(same[0]) if len(same) == 1 else path


@functools.lru_cache(256)
def _names_by_lower(folder: str, modified: int) -> dict[str, list[str]]:
    """Returns {name in lower case: names} of a folder. `modified` is a key: a changed folder is listed again."""
    names: dict[str, list[str]] = {}
    for name in os.listdir(folder):
        names.setdefault(name.lower(), []).append(name)
    return names
