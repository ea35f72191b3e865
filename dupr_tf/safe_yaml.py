"""Reads YAML as data. Refuses text that could run code, exhaust the memory or mislead."""

from __future__ import annotations

import math
import re
from typing import Any

import yaml

from dupr_tf.text import one_line

MAX_DEPTH = 16
# Plain words that are not text. As in YAML 1.2, `no` is text. PyYAML reads version 1.1, where `no` is false, 010 is 8
# and 1:30 is 90. Each of these patterns means the same in version 1.1, so that dumps of PyYAML are read correctly.
PLAIN = {
    "null": r"~|null|Null|NULL|",
    "bool": r"true|True|TRUE|false|False|FALSE",
    "int": r"[-+]?(?:0|[1-9][0-9]*)",
    "float": r"[-+]?(?:[0-9]+\.[0-9]*|\.[0-9]+)(?:[eE][-+][0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)",
}


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader with the plain words above."""

    yaml_implicit_resolvers = {}  # noqa: RUF012


for _kind, _pattern in PLAIN.items():
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_kind}", re.compile(rf"(?:{_pattern})\Z"), None)


def safe_value(text: str) -> Any:
    """Returns the value of a YAML text.

    Raises:
        ValueError: the text is no YAML, or has tags, aliases, deep nesting or a key twice. The message is a reason in
            one line, for the `UserError` of a caller that knows the field or the file.
    """
    try:
        depth = 0
        for event in yaml.parse(text, Loader=yaml.SafeLoader):
            if isinstance(event, yaml.AliasEvent):  # aliases have no use here, and YAML bombs consist of them
                raise ValueError("only YAML without aliases (*name) is read")
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            if depth > MAX_DEPTH:
                raise ValueError(f"nested more than {MAX_DEPTH} deep")
        loader = _Loader(text)
        node = loader.get_single_node()
        _refuse_double_keys(node)
        return None if node is None else loader.construct_document(node)
    except (
        yaml.YAMLError,
        ValueError,
    ) as error:  # also numbers and dates that Python cannot hold
        raise ValueError(one_line(error, 300)) from None


def _refuse_double_keys(node: yaml.Node | None) -> None:
    """Refuses repeated keys. YAML forbids them, but PyYAML silently takes the last."""
    for child in node.value if isinstance(node, yaml.CollectionNode) else ():
        _refuse_double_keys(child[1] if isinstance(child, tuple) else child)
    if isinstance(node, yaml.MappingNode):
        keys = [str(key.value) for key, _ in node.value]
        double = sorted({key for key in keys if keys.count(key) > 1})
        if double:
            raise ValueError(f"{', '.join(double)} given twice")


def quoted(value: str) -> str:
    """Returns a text as a quoted YAML value in one line. YAML reads JSON's surrogate pairs as two characters."""
    return yaml.safe_dump(value, default_style='"', width=math.inf, allow_unicode=True).strip()
