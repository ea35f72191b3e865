"""Suggests names that a user may have meant: similar names, and names that an abbreviation stands for."""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection


def nearest(word: str, names: Collection[str], cutoff: float = 0.6) -> str | None:
    """Returns the name that a word probably means: a similar one, or one with these initials, such as `lr`.

    A name that differs only in digits (resnet20, resnet50) means another object, so it is not suggested.
    """
    initials = {"".join(part[0] for part in name.split("_")): name for name in names if "_" in name}
    if word in initials:
        return initials[word]
    near = difflib.get_close_matches(word, names, 1, cutoff)
    return near[0] if near and (near[0] == word or _letters(near[0]) != _letters(word)) else None


def _letters(name: str) -> str:
    return re.sub(r"\d", "", name)
