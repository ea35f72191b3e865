"""Counts what was odd in a split, with an example of each kind."""

from __future__ import annotations

import collections
from collections.abc import Iterator, Mapping

from dupr_tf.text import escape


class Counts(collections.Counter):
    """Is a counter {what was odd: how often} that keeps an example of some kinds, such as a line of a file."""

    def __init__(self, *counts, **more):
        super().__init__(*counts, **more)
        self.examples: dict[str, str] = {}

    def note(self, what: str, example: object) -> None:
        """Counts one thing, and keeps the first example of its kind."""
        self[what] += 1
        if what not in self.examples:
            self.examples[what] = escape(str(example))

    def __reduce__(self):  # a Counter is pickled without its attributes
        return type(self), (dict(self),), {"examples": self.examples}


def count_lines(counts: Mapping[str, int]) -> Iterator[str]:
    """Yields `2 boxes without area, such as line 3 of a.txt` for each kind that occurred."""
    examples = getattr(counts, "examples", {})
    for what, count in counts.items():
        if count:
            yield f"{count} {what}" + (f", such as {examples[what]}" if what in examples else "")
