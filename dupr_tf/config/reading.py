"""Reads configs from YAML files and the command line. Every mistake is reported with the name of its field."""

from __future__ import annotations

import difflib
import typing
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from dupr_tf.config.detector import DetectorConfig
from dupr_tf.config.experiment import Config
from dupr_tf.config.probing import LinearConfig
from dupr_tf.config.sections import SHORT_FORM
from dupr_tf.config.terms import TERMS, Section
from dupr_tf.errors import UserError, raise_all
from dupr_tf.safe_yaml import safe_value
from dupr_tf.text import nearest, number_text, one_line, suggestion

OPTIONAL = {"detector": DetectorConfig, "linear": LinearConfig}  # sections that only some experiments have
MAX_CONFIG_BYTES = 1 << 20
EXPECTED = {  # pydantic's type of error -> description of the expected value
    "greater_than": "a number greater than {gt}",
    "greater_than_equal": "a number of at least {ge}",
    "less_than": "a number less than {lt}",
    "less_than_equal": "a number of at most {le}",
    "finite_number": "a finite number",
    "int_type": "an integer",
    "int_parsing": "an integer",
    "int_parsing_size": "an integer",
    "int_from_float": "an integer",
    "float_type": "a number",
    "float_parsing": "a number",
    "bool_type": "true or false",
    "bool_parsing": "true or false",
    "string_type": "text",
    "tuple_type": "a list, such as [1, 2]",
    "list_type": "a list, such as [1, 2]",
    "too_short": "at least {min_length} values",
    "too_long": "at most {max_length} values",
    "missing": "a value",
    "model_type": "fields with their values",
}


def load_config(path: str | Path | None, overrides: dict[str, str] | None = None) -> Config:
    """Reads a YAML file over the defaults, then sets the overrides.

    Args:
        path: a YAML file of sections (`configs/*.yaml`). Default: only the schema's defaults.
        overrides: dotted field name -> YAML text of its value, as on the command line.

    Raises:
        UserError: a mistake in the file or the overrides; a UserErrors if there are several.
    """
    values, problems = {} if path is None else _read_yaml(Path(path)), []
    for name, text in (overrides or {}).items():
        section, _, field = name.partition(".")
        try:
            value = safe_value(text)
        except ValueError as error:
            problems.append(UserError(name, f"Expected a YAML value, received {text!r:.80}: {error}."))
            continue
        if text.startswith("#") or (isinstance(value, str) and not text.startswith(("'", '"'))):
            value = text  # YAML would take the end of `/photos/set #2` for a comment
        if values.get(section) is None:
            values[section] = {}
        if isinstance(values[section], dict):  # otherwise it is reported below
            values[section][field] = value
    try:
        config = parse_config(values)
    except UserError as error:
        problems += error.errors
    raise_all(problems)
    return config


def parse_config(values: dict[str, Any]) -> Config:
    """Checks a mapping of sections.

    Raises:
        UserError: a mistake; a UserErrors if there are several.
    """
    try:
        return Config.model_validate(values)
    except ValidationError as error:
        mistakes = error.errors()
    # A list with a wrong value is also too short for pydantic, which counts the right ones.
    inside = {one["loc"][:depth] for one in mistakes for depth in range(len(one["loc"]))}
    raise_all([_user_error(one) for one in mistakes if one["type"] != "too_short" or one["loc"] not in inside])


def dump_config(config: Config) -> str:
    """Returns YAML text that `load_config` reads back to the same config."""
    values = config.model_dump(mode="json", exclude_none=True)
    if config.model.terms is not None:  # the short form together with them would be rejected
        values["model"] = {name: value for name, value in values["model"].items() if name not in SHORT_FORM}
    for name, section in config:  # a null that is not the default must be written
        for field in type(section).model_fields if section is not None else ():
            if getattr(section, field) is None and type(section).model_fields[field].default is not None:
                values[name][field] = None
    return yaml.safe_dump(values, sort_keys=False, default_flow_style=None)


def field_rows() -> list[tuple[str, str, str]]:
    """Returns (dotted name, default, description) of every field; a default of None is empty."""
    rows = []
    for section in Config.model_fields:
        schema = _schema(section)
        rows += [
            (f"{section}.{name}", "" if field.default is None else str(field.default), field.description)
            for name, field in schema.model_fields.items()
        ]
    return rows


def list_fields() -> set[str]:
    """Returns the dotted names of the fields that take a list."""
    return {
        f"{section}.{name}"
        for section in Config.model_fields
        for name, hint in typing.get_type_hints(_schema(section)).items()
        if tuple in map(typing.get_origin, (hint, *typing.get_args(hint)))
    }


def _schema(section: str) -> type[Section]:
    return OPTIONAL.get(section) or type(Config.model_fields[section].default)


def _read_yaml(path: Path) -> dict[str, Any]:
    if not path.is_file():
        near = difflib.get_close_matches(path.name, [p.name for p in path.parent.glob("*.yaml")], 1)
        fix = f"Did you mean {path.parent / near[0]}?" if near else "Pass the path of a YAML file, as in configs/."
        raise UserError("config", f"There is no file {path}.", fix)
    if path.stat().st_size > MAX_CONFIG_BYTES:
        problem = f"{path} has {path.stat().st_size} bytes; a config has at most {MAX_CONFIG_BYTES}."
        raise UserError("config", problem, "Pass an experiment file, as in configs/.")
    try:
        values = safe_value(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError("config", f"{path} is not YAML that can be read: {one_line(error)}.") from None
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise UserError(
            "config",
            f"Expected sections in {path}, received {values!r:.60}.",
            f"The sections are {', '.join(Config.model_fields)}.",
        )
    return {str(k): ({} if v is None and k not in OPTIONAL else v) for k, v in values.items()}


def _user_error(error: dict[str, Any]) -> UserError:
    """Converts a pydantic error to a UserError: dotted field, expected and received value, the nearest correct name."""
    where, kind, context = [str(part) for part in error["loc"]], error["type"], error.get("ctx", {})
    if where[:2] == ["model", "terms"] and len(where) > 3:  # pydantic names the kind of term between position and field
        where = [f"model.terms[{where[2]}]", *where[4:]]
        if kind == "extra_forbidden":
            return _unknown_term_field(where, error["loc"][3])
    received, fix = f"{error['input']!r:.80}", ""
    cause = context.get("error")
    if isinstance(cause, UserError):  # the error comes from a validator of a section
        return UserError(".".join([*where, *([cause.field] if cause.field else [])]), cause.problem, cause.fix)
    if kind == "extra_forbidden":
        return _unknown_field(where)
    if kind in ("union_tag_invalid", "union_tag_not_found"):  # the error comes from a term
        try:
            TERMS.check(context.get("tag"))
        except UserError as unknown:
            return UserError(f"model.terms[{where[2]}].kind", unknown.problem, unknown.fix)
    if kind == "literal_error":
        allowed = [part.strip("' ") for part in context["expected"].replace(" or ", ", ").split(",")]
        fix = suggestion(str(error["input"]), allowed, "Choose one of them.")
        expected = " or ".join([", ".join(allowed[:-1]), allowed[-1]] if len(allowed) > 1 else allowed)
    elif kind in EXPECTED:
        limits = {
            name: number_text(limit) if isinstance(limit, int | float) else limit for name, limit in context.items()
        }
        expected = EXPECTED[kind].format(**limits)
    else:
        expected = error["msg"].removeprefix("Input should be ")
    return UserError(".".join(where) or "config", f"Expected {expected}, received {received}.", fix)


def _unknown_term_field(where: list[str], kind: str) -> UserError:
    allowed = list(TERMS[kind].facts["schema"].model_fields)
    return UserError(".".join(where), f"{kind} has no such field.", suggestion(where[-1], allowed, cutoff=0.5))


def _unknown_field(where: list[str]) -> UserError:
    sections = list(Config.model_fields)
    if len(where) == 1:
        allowed, known = sections, sections
    else:
        allowed = list(_schema(where[0]).model_fields)
        known = [row[0] for row in field_rows()]
    # The right name in the wrong section is a better guess than a similar one in this section.
    meant = next((name for name in known if name.endswith("." + where[-1])), None)
    if meant is None and (near := nearest(where[-1], allowed, 0.5)):
        meant = ".".join([*where[:-1], near])
    fix = f"Did you mean {meant}?" if meant else f"Choose from {', '.join(allowed)}."
    kind = "section" if len(where) == 1 else "field"
    return UserError(".".join(where), f"A config has no such {kind}.", fix)
