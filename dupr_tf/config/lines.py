"""Turns problems that are still lines of text into UserErrors; for as long as some functions return lines."""

from __future__ import annotations

import re
from collections.abc import Iterable

from dupr_tf.errors import UserError

LINE = re.compile(r"(?:(-{0,2}[\w-]+(?:\.\w+)*): )?(.*)", re.DOTALL)


def user_errors(problems: Iterable[str | UserError]) -> list[UserError]:
    """UserErrors as they are; `field: expected …, received …. Fix: …` taken apart."""
    errors: list[UserError] = []
    for problem in problems:
        if isinstance(problem, UserError):
            errors += problem.errors
            continue
        field, text = LINE.fullmatch(problem).groups()
        text, _, fix = text.partition(" Fix: ")
        errors.append(UserError(field, *(_sentence(part) for part in (text, fix))))
    return errors


def _sentence(text: str) -> str:
    return text and text[0].upper() + text[1:] + ("" if text.endswith((".", "?")) else ".")
