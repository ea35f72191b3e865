"""Imports dupr_tf before TensorFlow in every test run, so that this process and its child processes compute alike."""

import gc
from pathlib import Path

import pytest

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


@pytest.hookimpl(wrapper=True)
def pytest_report_to_serializable(report):
    """Escapes file names that are not UTF-8 in the output of a test, since pytest-xdist cannot send them."""
    return _sendable((yield))


def _sendable(value):
    if isinstance(value, str):
        return value.encode("utf-8", "backslashreplace").decode()
    if isinstance(value, dict):
        return {_sendable(name): _sendable(one) for name, one in value.items()}
    return type(value)(map(_sendable, value)) if type(value) in (list, tuple) else value
