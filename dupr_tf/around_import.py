"""Runs code around the import of packages that are imported later, without importing them."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable, Collection
from contextlib import AbstractContextManager


def install(names: Collection[str], context_of: Callable[[str], AbstractContextManager]) -> None:
    """Lets packages load inside a context. A repeated call for the same packages changes nothing.

    Args:
        names: the packages.
        context_of: package -> its context, in which `sys.modules` has the package.
    """
    if not any(isinstance(finder, _Finder) and finder.names == names for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder(names, context_of))


class _Finder:
    """Finds packages as the other finders do."""

    def __init__(self, names, context_of):
        self.names, self.context_of, self.searching = names, context_of, False

    def find_spec(self, name, path=None, target=None):
        if self.searching or name not in self.names:
            return None
        self.searching = True
        try:
            spec = importlib.util.find_spec(name)
        finally:
            self.searching = False
        load = getattr(spec and spec.loader, "exec_module", None)
        if load is None:
            return None

        def load_in_context(module):
            with self.context_of(name):
                load(module)

        spec.loader.exec_module = load_in_context
        return spec
