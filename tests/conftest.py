"""Imports dupr_tf before TensorFlow in every test run, so that this process and its child processes compute alike."""

import gc
from pathlib import Path

import dupr_tf  # noqa: F401  (sets environment variables that TensorFlow reads at import)

# Tests that grow the process run first, while it is small; then the slowest, so that two workers end together.
FIRST = ("benchmarks", "training", "models", "data", "detection")


def pytest_collection_modifyitems(items):
    def place(item):
        folder = Path(item.location[0]).parent.name
        return FIRST.index(folder) if folder in FIRST else len(FIRST)

    items.sort(key=place)


def pytest_collection_finish():
    gc.freeze()  # exempts imported objects from garbage collection, whose cost grows with the length of the run
