"""Reduces the memory and the start of a command's process. It does not change the results."""

from __future__ import annotations

import contextlib
import ctypes
import importlib.util
import sys
from collections.abc import Iterator

from dupr_tf.environment import usable_cpus

# Keras and TensorFlow import these where they are installed, for wrappers and pictures that no command uses.
UNUSED = ("matplotlib", "pandas", "scipy", "sklearn")
M_ARENA_MAX = -8  # of glibc's malloc.h


def save_memory() -> None:
    """Lets Keras load without packages that no command needs from it, and limits glibc to one arena for each core.

    glibc's default of eight arenas for each core scatters small blocks over more memory. Call it before threads start.
    """
    if not {"keras", "tensorflow"} & set(sys.modules):
        sys.meta_path.insert(0, _Finder())
    if sys.platform == "linux":
        with contextlib.suppress(AttributeError):  # other C libraries have no mallopt
            ctypes.CDLL(None).mallopt(M_ARENA_MAX, usable_cpus())


class _Finder:
    """Finds Keras and TensorFlow as the other finders do, and hides `UNUSED` while they load."""

    searching = False

    def find_spec(self, name, path=None, target=None):
        if self.searching or name not in ("keras", "tensorflow"):
            return None
        self.searching = True
        try:
            spec = importlib.util.find_spec(name)
        finally:
            self.searching = False
        if spec is None or spec.loader is None:
            return None
        load = spec.loader.exec_module

        def load_lightly(module):
            with hidden(UNUSED):
                load(module)

        spec.loader.exec_module = load_lightly
        return spec


@contextlib.contextmanager
def hidden(packages: tuple[str, ...]) -> Iterator[None]:
    """Makes imports of packages fail inside this context, as if they were not installed. Loaded ones stay."""
    absent = [name for name in packages if name not in sys.modules]
    sys.modules.update(dict.fromkeys(absent))
    try:
        yield
    finally:
        for name in absent:
            del sys.modules[name]
