"""What the values of a folder of masks mean: its `classes.txt`, names that are given, or the values themselves."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from dupr_tf.data.entries import bounded
from dupr_tf.errors import UserError

log = logging.getLogger(__name__)
IGNORED = 255  # the class of pixels that are none: not trained on, not counted
IGNORED_NAMES = ("ignore", "ignored", "void", "unlabelled", "unlabeled")
MAX_BYTES = 1 << 20


def class_table(
    root: Path,
    split: str,
    met: dict[Path, set[int]],
    class_names: Sequence[str] | None,
    ignore_value: int | None,
    values_of_split: Callable[[Path, str], set[int]],
) -> tuple[tuple[str, ...], np.ndarray]:
    """The classes and the class of every value.

    Args:
        root: of the data set; its `classes.txt` counts first. A line is a name (of the value 0, 1, …) or a value and
            a name; the names `ignore`, `void`, `unlabelled` make a value none. Empty lines and `#` are passed over.
        split: that `met` was seen in.
        met: the values in each mask.
        class_names: with `classes.txt` the order of the classes; without, the names of the values 0, 1, …, or, where
            all of them are numbers, these values; none: every value met in `split`, "train" and "val" is a class.
        ignore_value: a value that is none, beside 255.
        values_of_split: (root, split) -> values.

    Returns:
        Names, and (256,) uint8.

    Raises:
        UserError: `classes.txt` or a mask is wrong.
    """
    file = root / "classes.txt"
    if file.is_file():
        values, ignored = _read(file)
    elif class_names is not None:
        numbers = all(name.isdecimal() for name in class_names)
        values = {int(name) if numbers else i: name for i, name in enumerate(class_names)}
        ignored = set()
    else:
        found = set().union(*met.values(), *(values_of_split(root, s) for s in ("train", "val") if s != split))
        ignored = {IGNORED, ignore_value}
        values = {value: str(value) for value in sorted(found - ignored)}
        log.info("no classes.txt in %s: the classes are the values of its masks, %s", root, ", ".join(values.values()))
    ignored |= {IGNORED} - set(values) | ({ignore_value} - {None})
    values = {value: name for value, name in values.items() if value not in ignored}
    _refuse_unknown(met, set(values) | ignored)
    names = tuple(values.values()) if class_names is None else tuple(class_names)
    return names, _table(values, names, root)


def _table(values: dict[int, str], names: tuple[str, ...], root: Path) -> np.ndarray:
    unknown = sorted(set(values.values()) - set(names))
    if unknown or not names or len(set(names)) < len(names) or len(names) > IGNORED:
        raise UserError(
            "data.class_names",
            f"Expected up to {IGNORED} classes with different names, among {', '.join(names) or 'none'}, received "
            f"{', '.join(unknown or values.values()) or 'none'} in the masks of {root}.",
            "Correct classes.txt or data.class_names.",
        )
    table = np.full(256, IGNORED, np.uint8)
    for value, name in values.items():
        table[value] = names.index(name)
    return table


def _read(file: Path) -> tuple[dict[int, str], set[int]]:
    """{value: name} of the classes, and the values that are none."""
    try:
        lines = [line.strip() for line in bounded(file, MAX_BYTES).decode().splitlines()]
    except UnicodeDecodeError:
        raise UserError(None, f"{file} is no text in UTF-8.", "Save it as UTF-8.") from None
    lines = [line for line in lines if line and not line.startswith("#")]
    numbered = [line.split(maxsplit=1)[0].isdecimal() and len(line.split()) > 1 for line in lines]
    if any(numbered) and not all(numbered):
        raise UserError(None, f"Only some lines of {file} have a value.", "Put a value and a name on every line.")
    rows = [line.split(maxsplit=1) if any(numbered) else (str(i), line) for i, line in enumerate(lines)]
    pairs = [(int(value), name) for value, name in rows]
    if not pairs or len(dict(pairs)) < len(pairs) or max(pairs)[0] > 255:
        raise UserError(None, f"{file} has no values of 0 to 255, each once.", "Correct the file.")
    ignored = {value for value, name in pairs if name.lower() in IGNORED_NAMES}
    return {value: name for value, name in pairs if value not in ignored}, ignored


def _refuse_unknown(met: dict[Path, set[int]], known: set[int]) -> None:
    odd = {path: values - known for path, values in met.items() if values - known}
    if odd:
        path, values = next(iter(odd.items()))
        raise UserError(
            "data.ignore_value",
            f"Expected mask values {', '.join(map(str, sorted(known)))}, received {min(values)} in {path} "
            f"({len(odd)} of {len(met)} masks have such).",
            f"Add it to classes.txt, or set data.ignore_value to {min(values)}.",
        )
