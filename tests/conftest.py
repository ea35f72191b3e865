"""Loaded before any test: dupr_tf comes before TensorFlow, so that this process computes as the ones it starts do."""

import gc
from pathlib import Path

import dupr_tf  # noqa: F401  (it sets what TensorFlow reads when it is imported)

# What weighs the process comes while it is small, then what takes longest, so that two workers end together.
FIRST = ("benchmarks", "training", "models", "data", "detection")


def pytest_collection_modifyitems(items):
    def place(item):
        folder = Path(item.location[0]).parent.name
        return FIRST.index(folder) if folder in FIRST else len(FIRST)

    items.sort(key=place)


def pytest_collection_finish():
    gc.freeze()  # what was imported is not searched for garbage again, which costs more the longer tests run
