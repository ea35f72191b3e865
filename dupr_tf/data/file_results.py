"""Keeps results about files, such as why one cannot be decoded, so that a resumed run need not compute them again."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path

from dupr_tf.data.images.source import map_in_order
from dupr_tf.files import write_whole
from dupr_tf.text import escape

COLUMNS = ("what", "name", "bytes", "mtime_ns", "result")


class FileResults:
    """Remembers a line of text about each file until the file's size or modification time changes.

    Args:
        path: table that `save` writes. It is read here if it exists. None: nothing is read or written.
    """

    def __init__(self, path: str | Path | None = None):
        self.path, self._texts, self._changed = path and Path(path), {}, False
        if self.path is not None and self.path.is_file():
            lines = self.path.read_text(encoding="utf-8", errors="replace").splitlines()[1:]
            rows = [line.split("\t") for line in lines]
            self._texts = {tuple(row[:-1]): row[-1] for row in rows if len(row) == len(COLUMNS)}

    def of(self, what: str, paths: Sequence[str], compute: Callable[[int], str], workers: int | None) -> list[str]:
        """Returns the results of all paths. Unknown results are computed in threads.

        Args:
            what: kind of the result and the settings that it depends on, in one line.
            paths: files. The result of a path without a file is not kept.
            compute: position in `paths` -> one line of text without tabs.
            workers: number of threads. Default: one for each usable CPU.
        """
        keys = [(what, escape(path), *file_stamp(path)) for path in paths]
        unknown = [place for place, key in enumerate(keys) if key not in self._texts]
        computed = map_in_order(compute, unknown, workers)
        fresh = dict(zip(unknown, computed, strict=True))
        kept = {keys[place]: text for place, text in fresh.items() if keys[place][-1] != "-1"}
        self._texts, self._changed = self._texts | kept, self._changed or bool(kept)
        return [fresh[place] if place in fresh else self._texts[key] for place, key in enumerate(keys)]

    def save(self) -> None:
        """Writes the table atomically, if it has new results."""
        if self.path is not None and self._changed:
            rows = [COLUMNS, *((*key, text) for key, text in self._texts.items())]
            write_whole(self.path, "".join("\t".join(row) + "\n" for row in rows))
            self._changed = False


def file_stamp(path: str) -> tuple[str, str]:
    """Returns the size and the modification time of a file; "-1", "-1" if it does not exist."""
    try:
        status = os.stat(path)
    except OSError:
        return "-1", "-1"
    return str(status.st_size), str(status.st_mtime_ns)
