"""Reduces the memory and the start of a command's process. It does not change the results."""

from __future__ import annotations

import contextlib
import ctypes
import sys
from collections.abc import Iterator

from dupr_tf.around_import import install
from dupr_tf.resources import usable_cpus

# {package: what it imports where that is installed, and no command needs}. Keras and TensorFlow have wrappers and
# converters for these. KerasCV imports PyTorch (480 MiB) only to import it before TensorFlow.
UNUSED = dict.fromkeys(("keras", "tensorflow"), ("jax", "matplotlib", "pandas", "scipy", "sklearn"))
UNUSED["keras_cv"] = ("torch",)
M_ARENA_MAX = -8  # of glibc's malloc.h


def save_memory() -> None:
    """Lets Keras load without packages that no command needs from it, and limits glibc to one arena for each core.

    glibc's default of eight arenas for each core scatters small blocks over more memory. Call it before threads start.
    """
    install(UNUSED, lambda name: hidden(UNUSED[name]))
    if sys.platform == "linux":
        with contextlib.suppress(AttributeError):  # other C libraries have no mallopt
            ctypes.CDLL(None).mallopt(M_ARENA_MAX, usable_cpus())


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
