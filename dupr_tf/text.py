"""Formats names, messages, numbers and times for a screen or a list, and suggests names."""

from __future__ import annotations

import difflib
import logging
import re
from collections.abc import Collection, Sequence

NODE = re.compile(r"\{\{(?:function_)?node [^}]*\}\}")  # TensorFlow puts it before the reason, which may then be cut
MOST_LABEL = 40  # characters of a name in a plot
ASCII = str.maketrans(
    {"×": "x", "…": "...", "–": "-", "−": "-", "’": "'", "≥": ">=", "≤": "<=", "±": "+-", "→": "->"}
    | {"↑": "up", "↓": "down"}
)


def replace_unencodable(error: UnicodeEncodeError) -> tuple[str, int]:
    """Handles characters that a stream cannot encode: similar ASCII, or an escape such as `\\xe9`."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    text = error.object[error.start : error.end].translate(ASCII)
    return text.encode("ascii", "backslashreplace").decode(), error.end


def one_line(message: object, limit: int | None = None) -> str:
    """Returns a message, usually an exception's, in one line, with single blanks and without TensorFlow's node names.

    Args:
        message: any argument of `str`.
        limit: largest number of characters. A longer message is cut.
    """
    return " ".join(NODE.sub("", str(message)).split())[:limit]


def escape(name: str) -> str:
    """Returns a file or class name in one line, with backslashes, control characters and broken Unicode escaped."""
    escaped = name.replace("\\", "\\\\")
    escaped = "".join(c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode() for c in escaped)
    return escaped.encode("utf-8", "backslashreplace").decode()


def plot_label(name: str) -> str:
    """Returns a name as a label for Matplotlib, which reads `$` as a formula and hides a leading underscore.

    A long label would leave no place for the plot, so the middle of a long name is left out.
    """
    label = escape(name)
    if len(label) > MOST_LABEL:
        label = f"{label[: MOST_LABEL // 2]}…{label[1 - MOST_LABEL // 2 :]}"
    label = label.replace("$", r"\$")
    return f" {label}" if label.startswith("_") else label


def visible(text: str) -> str:
    """Escapes invisible characters, such as those that control a terminal. Line breaks stay."""
    if text.isprintable():
        return text
    return "".join(
        c if c.isprintable() or c == "\n" else c.encode("unicode_escape", "surrogatepass").decode() for c in text
    )


class VisibleFormatter(logging.Formatter):
    """Formats log records as `visible` text."""

    def format(self, record):
        return visible(super().format(record))


def listed(names: Sequence[str], most: int = 5) -> str:
    """Formats names as `a, b and 3 more`."""
    rest = f" and {len(names) - most:,} more" if len(names) > most else ""
    return ", ".join(names[:most]) + rest


def nearest(word: str, names: Collection[str], cutoff: float = 0.6) -> str | None:
    """Returns the name that a word probably means: a similar one, or one with these initials, such as `lr`.

    A name that differs only in digits (resnet20, resnet50) means another object, so it is not suggested.
    """
    initials = {"".join(part[:1] for part in name.split("_")): name for name in names if "_" in name}
    if word in initials:
        return initials[word]
    near = difflib.get_close_matches(word, names, 1, cutoff)
    return near[0] if near and (near[0] == word or _letters(near[0]) != _letters(word)) else None


def _letters(name: str) -> str:
    return re.sub(r"\d", "", name)


def suggestion(word: str, names: Collection[str], otherwise: str = "", cutoff: float = 0.6) -> str:
    """Returns what to do about an unknown name: take the nearest one. Without such a name: `otherwise`, or the list."""
    near = nearest(word, names, cutoff)
    return f"Did you mean {near}?" if near else otherwise or f"Choose from {', '.join(names)}."


def number_text(value: float) -> str:
    """Formats a number: four digits, `12,345` from a thousand on, an exponent if it is tiny or has over 15 digits."""
    if isinstance(value, int) and abs(value) >= 10**300:
        return "too large"
    if abs(value) >= 10**15:
        return f"{value:.4g}"
    return f"{value:,.0f}" if isinstance(value, int) or abs(value) >= 1000 else f"{value:.4g}"


def size_text(size: float) -> str:
    """Formats bytes as `3.2 GB`, in powers of 1,000."""
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if size < 999.5:
            return f"{size:.3g} {unit}"
        size /= 1000
    return f"{number_text(size)} PB"


def memory_text(size: float) -> str:
    """Formats bytes as `3.2 GiB`, or as `52 MiB` below a gibibyte."""
    return f"{size / 2**30:,.1f} GiB" if size >= 2**30 else f"{number_text(size / 2**20)} MiB"


def count_text(count: int, noun: str) -> str:
    """Formats a count with its noun: `1 line`, `2 lines`."""
    return f"{count:,} {noun}" + "s" * (count != 1)


def duration(seconds: float) -> str:
    """Formats seconds as `1:02:03`, or as `2:03` below an hour."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
