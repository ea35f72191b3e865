"""Rejects addresses such as gs://bucket/photos in the flags of a command."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path

from dupr_tf.commands.report import problems_of
from dupr_tf.errors import UserError, raise_all
from dupr_tf.files import local_path


def check_places(command) -> None:
    """Raises UserError for every path of a parsed command, a dataclass, that is an address.

    `weights` is checked too: it is text, because it may be the word random, but otherwise a path.
    """
    raise_all(list(_problems(command)))


def _problems(command) -> Iterator[UserError]:
    for name, value in vars(command).items():
        if dataclasses.is_dataclass(value):
            yield from _problems(value)
        for one in value if isinstance(value, tuple) else (value,):
            if isinstance(one, Path) or (name == "weights" and one is not None):
                yield from problems_of(local_path, one)
