"""Configs from YAML files and the command line: every mistake named, a line each."""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from dupr_tf.config.detector import DetectorConfig
from dupr_tf.config.experiment import Config
from dupr_tf.config.probing import LinearConfig
from dupr_tf.config.sections import Section
from dupr_tf.remote_path import RemotePath, as_path
from dupr_tf.safe_yaml import safe_value
from dupr_tf.text import one_line

OPTIONAL = {"detector": DetectorConfig, "linear": LinearConfig}  # sections that only some experiments have


class ConfigError(ValueError):
    """One or more mistakes in a config; `problems` holds one line for each."""

    def __init__(self, problems: list[str]):
        super().__init__("\n".join(problems))
        self.problems = problems


def load_config(path: str | Path | None, overrides: dict[str, str] | None = None) -> Config:
    """Reads a YAML file over the defaults, then sets the overrides.

    Args:
        path: a YAML file of sections (`configs/*.yaml`); None: the defaults alone.
        overrides: dotted field name -> YAML text of its value, as given on the command line.

    Raises:
        ConfigError: every mistake in file and overrides, one line each.
    """
    values, problems = {} if path is None else _read_yaml(as_path(path)), []
    for name, text in (overrides or {}).items():
        section, _, field = name.partition(".")
        try:
            value = safe_value(text)
        except ValueError as error:
            problems.append(f"{name}: expected a YAML value, received {text!r:.80}: {error}")
            continue
        target = values.setdefault(section, {})
        if not isinstance(target, dict):
            target = values[section] = {}
        target[field] = value
    try:
        config = parse_config(values)
    except ConfigError as error:
        problems += error.problems
    if problems:
        raise ConfigError(problems)
    return config


def parse_config(values: dict[str, Any]) -> Config:
    """Checks a mapping of sections. Raises ConfigError with every mistake, one line each."""
    try:
        return Config.model_validate(values)
    except ValidationError as error:
        raise ConfigError([_problem_line(e) for e in error.errors()]) from None


def dump_config(config: Config) -> str:
    """YAML text that `load_config` reads back to the same config."""
    values = config.model_dump(mode="json", exclude_none=True)
    for name, section in config:  # a none that is not the default must be said
        for field in type(section).model_fields if section is not None else ():
            if getattr(section, field) is None and type(section).model_fields[field].default is not None:
                values[name][field] = None
    return yaml.safe_dump(values, sort_keys=False, default_flow_style=None)


def field_rows() -> list[tuple[str, str, str]]:
    """(dotted name, default, description) of every field, for `--help` and the README."""
    rows = []
    for section in Config.model_fields:
        schema = _schema(section)
        rows += [
            (f"{section}.{name}", str(field.default), field.description or "")
            for name, field in schema.model_fields.items()
        ]
    return rows


def _schema(section: str) -> type[Section]:
    return OPTIONAL.get(section) or type(Config.model_fields[section].default)


MAX_CONFIG_BYTES = 1 << 20


def _read_yaml(path: Path | RemotePath) -> dict[str, Any]:
    if not path.is_file():
        near = difflib.get_close_matches(path.name, [p.name for p in path.parent.glob("*.yaml")], 1)
        hint = f"did you mean {path.parent / near[0]}?" if near else "give the path of a YAML file, see configs/"
        raise ConfigError([f"config: expected a file, received {path} (does not exist). Fix: {hint}"])
    if path.stat().st_size > MAX_CONFIG_BYTES:
        raise ConfigError(
            [f"config: expected at most {MAX_CONFIG_BYTES} bytes, received {path.stat().st_size}: {path}"]
        )
    try:
        values = safe_value(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ConfigError([f"config: expected YAML, received {path}: {one_line(error)}"]) from None
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise ConfigError(
            [f"config: expected sections ({', '.join(Config.model_fields)}), received {path}: {values!r:.60}"]
        )
    return {str(k): ({} if v is None and k not in OPTIONAL else v) for k, v in values.items()}


def _problem_line(error: dict[str, Any]) -> str:
    """One line for one pydantic error: dotted key, what was expected, what came, the nearest right spelling."""
    where = [str(part) for part in error["loc"]]
    name, received = ".".join(where) or "config", f"{error['input']!r:.80}"
    if error["type"] == "extra_forbidden":
        return _unknown_key_line(where, received)
    expected = error["msg"].removeprefix("Value error, ")
    line = f"{name}: {expected[:1].lower() + expected[1:]}"
    if ", received" not in expected:
        line += f", received {received}"
    if error["type"] == "literal_error":
        allowed = [part.strip("' ") for part in error["ctx"]["expected"].replace(" or ", ", ").split(",")]
        near = difflib.get_close_matches(str(error["input"]), allowed, 1)
        line += f". Did you mean {near[0]}?" if near else ""
    return line


def _unknown_key_line(where: list[str], received: str) -> str:
    sections = list(Config.model_fields)
    if len(where) == 1:
        allowed, known = sections, sections
    else:
        allowed = list(_schema(where[0]).model_fields)
        known = [row[0] for row in field_rows()]
    # The right name in the wrong section is a surer guess than a similar one in this section.
    suggestion = next((name for name in known if name.endswith("." + where[-1])), None)
    near = difflib.get_close_matches(where[-1], allowed, 1, 0.5)
    if suggestion is None and near:
        suggestion = ".".join([*where[:-1], near[0]])
    hint = f"Did you mean {suggestion}?" if suggestion else f"Allowed: {', '.join(allowed)}"
    return f"{'.'.join(where)}: unknown key, received {received}. {hint}"
