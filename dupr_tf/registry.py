"""Defines tables of interchangeable parts: a name, the location of the code, and a summary. Loads no part."""

from __future__ import annotations

import dataclasses
import importlib
import importlib.util
from collections.abc import Iterator, Mapping
from typing import Any

from dupr_tf.errors import UserError
from dupr_tf.text import suggestion


@dataclasses.dataclass(frozen=True)
class Entry:
    """Holds a line of a registry.

    Args:
        target: "package.module:attribute", imported when it is first needed.
        summary: description in one line.
        extra: the extra of this package that installs `modules`. None if no extra is needed.
        modules: modules that must be installed.
        facts: further values that the program needs before it imports the target.
    """

    target: str
    summary: str
    extra: str | None = None
    modules: tuple[str, ...] = ()
    facts: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def missing(self) -> tuple[str, ...]:
        """Returns the modules that are not installed, without importing any."""
        return tuple(module for module in self.modules if importlib.util.find_spec(module) is None)


class Registry(Mapping[str, Entry]):
    """Holds entries by name. A new part needs a new file and a line in its table.

    Args:
        kind: noun for an entry in messages and lists, e.g. "detector".
        field: field or flag that selects an entry, e.g. "detector.kind" or "--to".
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
        """Returns the entry of a name, if the modules it needs are installed.

        Raises:
            UserError: there is no such name (the error suggests the nearest), or a module is not installed.
        """
        if name not in self._entries:
            problem = f"There is no {self.kind} called {name!r}."
            raise UserError(self.field, problem, suggestion(str(name), self._entries))
        entry = self._entries[name]
        if entry.missing:
            raise UserError(
                self.field,
                f"{name} needs {', '.join(entry.missing)}, which is not installed.",
                f"Run: pip install 'dupr_tf[{entry.extra}]'.",
            )
        return entry

    def load(self, name: str) -> Any:
        """Imports the target of a name.

        Raises:
            UserError: as in `check`.
        """
        module, _, attribute = self.check(name).target.partition(":")
        return getattr(importlib.import_module(module), attribute)
