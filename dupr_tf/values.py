"""Reads the flags, ids and names that people and tools write in labels and configs.

Equivalent values become the same: `"0"` and `0` are one id, and `"false"` is a false flag. Other values raise a
`ValueError` that shows the value with its type.
"""

from __future__ import annotations

import codecs
import math
from typing import Any

FLAGS = {"": False, "0": False, "false": False, "no": False, "off": False, "none": False}
FLAGS |= {"1": True, "true": True, "yes": True, "on": True}


def exceeds(count: int, share: float, total: int) -> bool:
    """Returns True if a count is more than a share of a total. 29 of 100 are not more than 0.29 of them.

    The quotient is rounded as 0.29 is, while 0.29 * 100 is less than 29 in floating point.
    """
    return count > 0 and count / total > share


def read_flag(value: Any) -> bool:
    """Returns a flag. None is false. Numbers are 0 or 1. Text is one of `FLAGS`, in any case.

    Raises:
        ValueError: the value is no flag.
    """
    if value is None:
        return False
    if isinstance(value, str) and value.strip().lower() in FLAGS:
        return FLAGS[value.strip().lower()]
    if isinstance(value, bool | int | float) and value in (0, 1):
        return bool(value)
    raise ValueError(f"expected a flag such as 0 or 1, received {value!r:.80}")


def read_id(value: Any) -> int | str:
    """Returns an id. A whole number in its usual form is an integer: `"7"` and `7.0` are 7, `"07"` stays text.

    Raises:
        ValueError: the value is neither a number nor text, or is empty.
    """
    if isinstance(value, str) and (text := read_text(value)):
        return int(text) if len(text) < 20 and text.isdecimal() and str(int(text)) == text else text
    if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value) and value == int(value):
        return int(value)
    raise ValueError(f"expected an id, a whole number or text, received {value!r:.80}")


def read_name(value: Any) -> str:
    """Returns a name without white space around it. A whole number becomes its digits.

    Raises:
        ValueError: the value is empty, a truth value, or neither text nor a whole number.
    """
    if isinstance(value, str) and (text := read_text(value)):
        return text
    if type(value) is int:
        return str(value)
    raise ValueError(f"expected a name, received {value!r:.80}")


def read_text(content: str | bytes) -> str:
    """Returns text without a byte order mark and without white space around it. Bytes are UTF-8, or UTF-16 with a mark.

    Raises:
        ValueError: the bytes are not such text.
    """
    if isinstance(content, bytes):
        wide = content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
        content = content.decode("utf-16" if wide else "utf-8")
    return content.strip().removeprefix("\ufeff").strip()
