"""Parses a command line into a command, and writes the help: an overview, and the flags of each command."""

from __future__ import annotations

import dataclasses
import itertools
import json
import textwrap
import typing
from typing import Annotated

import tyro

from dupr_tf.commands import COMMANDS, CONFIGURED, GROUPS
from dupr_tf.commands.checks import expand_paths
from dupr_tf.commands.probe import FLAGS
from dupr_tf.config import field_rows, list_fields
from dupr_tf.errors import UserError, raise_all
from dupr_tf.safe_yaml import safe_value
from dupr_tf.text import nearest, suggestion

DESCRIPTION = "Pre-train object-detection backbones on unlabelled images (DUPR), fine-tune detectors, export weights."
POSITIONAL = tyro.conf.Positional[int].__metadata__[0]
GLOBAL_FLAGS = {
    "--help": "Print this list, or the flags of a command.",
    "--version": "Print the version.",
    "--verbose": "Show all messages of the libraries. Default: only their errors.",
}


def parse(arguments: list[str]):
    """Returns the command of a command line, and its overrides of config fields.

    Raises:
        UserError: an unknown command, a field that the command does not take, or an address as a path.
        SystemExit: after --help (0), or a wrong flag (2), which tyro has reported.
    """
    arguments, overrides = split_overrides(arguments)
    raise_all(_empty_words(arguments))
    name, *rest = arguments or [""]
    if name not in COMMANDS:
        fix = suggestion(name, COMMANDS, "`dupr-tf --help` lists the commands.")
        raise UserError(None, f"There is no command {name!r}.", fix)
    if overrides and name not in CONFIGURED:
        problem, fix = "This command takes no fields of a config.", f"Only {', '.join(CONFIGURED)} do."
        raise UserError(f"--{next(iter(overrides))}", problem, fix)
    raise_all([problem for word in rest if (problem := _missing_section(word, name, rest)) is not None])
    try:
        command = tyro.cli(with_defaults(COMMANDS[name]), args=rest, prog=f"dupr-tf {name}")
    except SystemExit as end:
        if not end.code:  # after --help
            chosen = FLAGS.get(rest[0]) if name == "probe" else None
            print(f"Example:\n  {(chosen or COMMANDS[name]).EXAMPLE}")
        raise
    expand_paths(command)
    return command, overrides


def split_overrides(arguments: list[str]) -> tuple[list[str], dict[str, str]]:
    """Takes `--section.field value` and `--section.field=value` out of a command line.

    A field that takes a list is followed by one list of YAML, by numbers, or by texts up to the next flag.

    Returns:
        The other arguments, and {dotted field: text of its value}.
    """
    rest, overrides, lists, i = [], {}, list_fields(), 0
    while i < len(arguments):
        word = arguments[i]
        i += 1
        name, equals, value = word.removeprefix("--").partition("=")
        if not word.startswith("--") or "." not in name or "/" in name:
            rest.append(word)
            continue
        if not equals:
            if i == len(arguments):
                raise UserError(word, "A value is missing after it.", f"Write {word} VALUE.")
            if arguments[i].startswith("--"):
                raise UserError(word, f"A value is missing after it, before {arguments[i]}.", f"Write {word} VALUE.")
            value, taken = _list_of_words(arguments[i:]) if name in lists else (arguments[i], 1)
            i += taken
        if not value:
            raise _empty(f"--{name}")
        overrides[name] = value
    return rest, overrides


def _list_of_words(words: list[str]) -> tuple[str, int]:
    """Returns the YAML text of the list at the start of some words, and the number of its words."""
    first = _number(words[0])
    if first is None or isinstance(first, list):
        return words[0], 1
    if isinstance(first, int | float):
        values = list(itertools.takewhile(lambda value: isinstance(value, int | float), map(_number, words)))
    else:
        values = list(itertools.takewhile(lambda word: not word.startswith("--"), words))
    return json.dumps(values, ensure_ascii=False), len(values)


def _number(word: str):
    """Returns the YAML value of a word, or the number that it stands for. YAML takes 1e-3 for text."""
    value = _yaml_value(word)
    try:
        return float(value) if isinstance(value, str) and "e" in value.lower() else value
    except ValueError:
        return value


def _yaml_value(word: str):
    try:
        return safe_value(word)
    except ValueError:
        return word


def _empty_words(arguments: list[str]) -> list[UserError]:
    """Returns an error for each empty argument, such as "$DATA" without DATA. As a path, it would be this folder."""
    flags = [None, *(word if word.startswith("--") else None for word in arguments)]
    empty = [flag for flag, word in zip(flags, arguments, strict=False) if not word]
    empty += [word.removesuffix("=") for word in arguments if word.startswith("--") and word.endswith("=")]
    return [_empty(flag) for flag in empty]


def _empty(flag: str | None) -> UserError:
    fix = "Pass a value, or check the variable that it comes from."
    return UserError(flag, "Expected a value, received an empty text.", fix)


def _missing_section(word: str, command: str, arguments: list[str]) -> UserError | None:
    """Returns an error for a flag that is the field of a config without its section, such as --epochs."""
    flag = word.partition("=")[0]
    field = flag.removeprefix("--").replace("-", "_")
    chosen = FLAGS.get(arguments[0]) if command == "probe" else COMMANDS[command]
    flags = {one.name for kind in (chosen, COMMANDS[command]) if kind for one in dataclasses.fields(kind)}
    if command not in CONFIGURED or not flag.startswith("--") or field in {*flags, "help"}:
        return None
    named = [row[0] for row in field_rows() if row[0].startswith("linear.") == (command == "probe")]
    fields = [name for name in named if name.partition(".")[2] == field]
    if not fields and (near := nearest(field, {name.partition(".")[2] for name in named} | flags, 0.75)) not in flags:
        fields = [name for name in named if name.partition(".")[2] == near]
    if not fields:
        return None
    fix = f"Did you mean {' or '.join(f'--{name}' for name in fields)}?"
    return UserError(flag, f"{command} has no such flag.", fix)


def overview() -> str:
    """Returns the help of `dupr-tf`: a line for each command, by group."""
    lines = ["Usage: dupr-tf COMMAND [FLAGS]", "", *textwrap.wrap(DESCRIPTION, 79)]
    for group, names in GROUPS.items():
        lines += ["", f"{group}:", *(f"  {name:<12} {summary(name)}" for name in names)]
    lines += ["", "flags:", *(f"  {flag:<12} {text}" for flag, text in GLOBAL_FLAGS.items())]
    lines += ["", "`dupr-tf COMMAND --help` prints the flags of a command and an example.", "", "Example:"]
    return "\n".join([*lines, f"  {COMMANDS['sample'].EXAMPLE}", f"  {COMMANDS['pretrain'].EXAMPLE}"])


def summary(name: str) -> str:
    """Returns what a command does: the first line of its docstring."""
    return COMMANDS[name].__doc__.splitlines()[0]


def with_defaults(command: type) -> type:
    """Makes tyro print the default of each flag as a sentence. A flag whose default is None states it in its own help.

    Args:
        command: changed in place, and the flags of each probe with `Probe`.

    Returns:
        The command.
    """
    for one in (command, *FLAGS.values()) if command is COMMANDS["probe"] else (command,):
        one.__annotations__ = {
            name: Annotated[hint, tyro.conf.arg(help_behavior_hint=_default_text, metavar=_metavar(hint))]
            for name, hint in typing.get_type_hints(one, include_extras=True).items()
        }
    return command


def _metavar(hint) -> str | None:
    """Returns the placeholder of `X | None`, which tyro would show as {None}|X; None keeps tyro's own."""
    positional = POSITIONAL in getattr(hint, "__metadata__", ())
    arms = typing.get_args(hint.__origin__ if positional else hint)
    kinds = [kind for kind in arms if kind is not type(None)]
    if type(None) not in arms or len(kinds) != 1:
        return None
    choices = typing.get_args(kinds[0])
    name = "{" + ",".join(choices) + "}" if choices else kinds[0].__name__.upper()
    return f"[{name}]" if positional else name


def _default_text(label: str) -> str:
    named = {"True": "yes", "False": "no", "None": "", "": ""}.get(label, label)
    return f"Default: {named}." if named else ""
