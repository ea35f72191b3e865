"""Checks of a command line that several commands share; none loads TensorFlow."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path

from dupr_tf.config import Config, load_config
from dupr_tf.errors import UserError, raise_all
from dupr_tf.files import local_path


def problems_of(check: Callable, *arguments, field: str | None = None) -> list[UserError]:
    """Returns the errors that a check of the user's input raises, so that several checks are reported together.

    Args:
        check: called with the arguments.
        field: the user's name of the checked value. Default: the errors' own fields.
    """
    try:
        check(*arguments)
    except UserError as error:
        return [UserError(field or one.field, one.problem, one.fix) for one in error.errors]
    return []


def output_problems(output: Path | None) -> list[UserError]:
    """Returns an error if the output folder's name is taken by a file."""
    if output is None or not output.is_file():
        return []
    return [UserError("--output", f"{output} is a file.", "Pass a folder.")]


def config_or_problems(path: Path, overrides: dict[str, str], cross_field) -> tuple[Config | None, list[UserError]]:
    """Returns the config with its cross-field mistakes, or None with the mistakes in its fields."""
    try:
        config = load_config(path, overrides)
    except UserError as error:
        return None, list(error.errors)
    return config, cross_field(config)


def has_gpu() -> bool:
    """Returns True if the system shows a GPU (NVIDIA's or AMD's driver), without loading TensorFlow."""
    return any(Path(device).exists() for device in ("/dev/nvidia0", "/dev/dxg", "/dev/kfd"))


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
