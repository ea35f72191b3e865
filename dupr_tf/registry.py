"""A table of things that share one job: a name, where its code is, one line on what it is. Loads nothing by itself."""

from __future__ import annotations

import dataclasses
import difflib
import importlib
import importlib.util
from collections.abc import Iterator, Mapping
from typing import Any

from dupr_tf.errors import UserError


@dataclasses.dataclass(frozen=True)
class Entry:
    """One line of a registry.

    Args:
        target: "package.module:attribute", imported when it is first needed.
        summary: what it is, one line.
        extra: the extra of this package that brings `modules`; None where nothing else is needed.
        modules: what must be installed for it.
        facts: anything else the program must know before the target is imported.
    """

    target: str
    summary: str
    extra: str | None = None
    modules: tuple[str, ...] = ()
    facts: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def missing(self) -> tuple[str, ...]:
        """Modules that are not installed; none of them is imported."""
        return tuple(module for module in self.modules if importlib.util.find_spec(module) is None)


class Registry(Mapping[str, Entry]):
    """Entries by name. A new kind of thing is a new file and a line here.

    Args:
        kind: what one entry is called in messages and lists, e.g. "detector".
        field: what the user chooses one by, e.g. "detector.kind" or "--to".
        entries: {name: Entry}.
    """

    def __init__(self, kind: str, field: str, entries: Mapping[str, Entry]):
        self.kind, self.field, self._entries = kind, field, dict(entries)

    def __getitem__(self, name: str) -> Entry:
        return self._entries[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def check(self, name: str) -> Entry:
        """The entry of a name, if what it needs is installed.

        Raises:
            UserError: no such name (the nearest is named), or something it needs is not installed.
        """
        if name not in self._entries:
            near = difflib.get_close_matches(str(name), self._entries, 1)
            fix = f"Did you mean {near[0]}?" if near else f"Choose from {', '.join(self)}."
            raise UserError(self.field, f"There is no {self.kind} called {name!r}.", fix)
        entry = self._entries[name]
        if entry.missing:
            raise UserError(
                self.field,
                f"{name} needs {', '.join(entry.missing)}, which is not installed.",
                f"Run: pip install 'dupr_tf[{entry.extra}]'.",
            )
        return entry

    def load(self, name: str) -> Any:
        """Imports what a name stands for.

        Raises:
            UserError: as `check`.
        """
        module, _, attribute = self.check(name).target.partition(":")
        return getattr(importlib.import_module(module), attribute)
