"""Checks command lines for several commands, without loading TensorFlow."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path

from dupr_tf.config import Config, load_config
from dupr_tf.errors import UserError, raise_all
from dupr_tf.files import local_path
from dupr_tf.weights.catalogue import CATALOGUE, find_public, is_public, name_for

WEIGHTS = ("weights", "file", "run_or_file")  # fields of commands that name weights


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


def public_problems(weights: str | None, config: Config | None) -> list[UserError]:
    """Returns errors in the name or address of public weights, without downloading them; none for other weights."""
    if not is_public(weights):
        return []
    problems = problems_of(find_public, weights)
    return problems + (problems_of(name_for, weights, config.model.backbone, config.model.width) if config else [])


def output_problems(output: Path | None, data: Path | str | None = None) -> list[UserError]:
    """Returns an error if the output folder is a file, or lies in the folder of data, which it would change."""
    if output is None:
        return []
    if output.is_file():
        return [UserError("--output", f"{output} is a file.", "Pass a folder.")]
    return [] if data is None else problems_of(check_outside, output, data)


def refuse_kept_fields(overrides: dict[str, str]) -> None:
    """Raises UserError if an override changes a field of a saved detector's config outside the data section."""
    others = [name for name in overrides if not name.startswith("data.")]
    if others:
        raise UserError(f"--{others[0]}", "A detector keeps its config.", "Change only fields of data.")


def check_outside(output: Path, data: Path | str) -> None:
    """Raises UserError if the output is the folder of data or lies in it, also by a link."""
    if output.resolve().is_relative_to(Path(data).resolve()):
        problem = f"{output} is in the folder of data, {data}, and would become a part of it."
        raise UserError("--output", problem, "Pass an output outside of the data.")


def folder_problems(path: Path | str, fix: str) -> list[UserError]:
    """Returns an error if the path of --data is not a folder."""
    return [] if Path(path).is_dir() else [UserError("--data", f"{path} is not a folder.", fix)]


def config_or_problems(
    path: Path, overrides: dict[str, str], cross_field: Callable[[Config], list[UserError]] | None = None
) -> tuple[Config | None, list[UserError]]:
    """Returns the config with its cross-field mistakes, or None with the mistakes in its fields."""
    try:
        config = load_config(path, overrides)
    except UserError as error:
        return None, list(error.errors)
    return config, cross_field(config) if cross_field else []


def _expanded(path: Path | str) -> Path | str:
    """Expands `~`. A name or address of public weights does not change, and ./imagenet remains a path."""
    if is_public(path):
        return path
    expanded = local_path(path)
    if isinstance(path, str) and str(expanded) in CATALOGUE:
        expanded = expanded.absolute()
    return type(path)(expanded)


def has_gpu() -> bool:
    """Returns True if the system shows a GPU (NVIDIA's or AMD's driver), without loading TensorFlow."""
    return any(Path(device).exists() for device in ("/dev/nvidia0", "/dev/dxg", "/dev/kfd"))


def expand_paths(command) -> None:
    """Expands `~` in every path of a parsed command, a dataclass, in place.

    The fields in `WEIGHTS` are paths too, although they are text: they may be a word such as random or imagenet, or an
    address.

    Raises:
        UserError: a path is an address such as gs://bucket/photos; a UserErrors for several.
    """
    raise_all(list(_expand(command)))


def _expand(command) -> Iterator[UserError]:
    for name, value in vars(command).items():
        if dataclasses.is_dataclass(value):
            yield from _expand(value)
            continue
        values = value if isinstance(value, tuple) else (value,)
        if all(isinstance(one, Path) or (name in WEIGHTS and one is not None) for one in values):
            problems = [problem for one in values for problem in problems_of(_expanded, one)]
            yield from problems
            if not problems:
                paths = tuple(map(_expanded, values))
                setattr(command, name, paths if isinstance(value, tuple) else paths[0])
