"""Finds classes that are probably one class under two names, and chooses the classes that a table shows."""

from __future__ import annotations

import collections
import itertools
import re
from collections.abc import Mapping

from dupr_tf.data.labels.split import log
from dupr_tf.text import escape, listed

MOST_CLASSES = 20  # classes that get a row each, besides those that may be mistakes
MOST_COMPARED = 2_000  # a second of work
MUCH_COMMONER = 5  # times as many boxes
SHORTEST = 3  # letters of a word; further or other letters of shorter words are other words
NO_LETTER = re.compile(r"[\W_]+")


def similar_classes(counts: Mapping[str, int]) -> list[tuple[str, str]]:
    """Returns pairs of classes with nearly the same name, the rarer one first.

    Their names differ in case, blanks and signs alone, or in one letter if the other class is much commoner. Letters
    are compared up to `MOST_COMPARED` classes.

    Args:
        counts: {class: number of boxes}. Classes without boxes are left out.
    """
    names = sorted((name for name, count in counts.items() if count), key=lambda name: -counts[name])
    same = collections.defaultdict(list)
    for name in names:
        same[NO_LETTER.sub("", name.casefold())].append(name)
    pairs = [pair for letters, group in same.items() if letters for pair in itertools.combinations(group, 2)]
    rows = [(name, name.casefold(), counts[name]) for name in names] if len(names) <= MOST_COMPARED else []
    pairs += [
        (commoner, rarer)
        for (commoner, one, count), (rarer, other, few) in itertools.combinations(rows, 2)
        if count >= MUCH_COMMONER * few and _one_letter_apart(one, other)
    ]
    return [(rarer, commoner) for commoner, rarer in dict.fromkeys(pairs)]


def _one_letter_apart(one: str, other: str) -> bool:
    """Returns True if one letter is missing, other or swapped in one word of a name. Digits do not count."""
    if abs(len(one) - len(other)) > 1 or (one[0] != other[0] and one[-1] != other[-1]):  # most pairs end here
        return False
    words = [NO_LETTER.split(name) for name in (one, other)]
    different = [pair for pair in zip(*words, strict=False) if pair[0] != pair[1]]
    if len(words[0]) != len(words[1]) or len(different) != 1:
        return False
    one, other = different[0]
    start = sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], zip(one, other, strict=False)))
    one, other = one[start:], other[start:]
    end = sum(1 for _ in itertools.takewhile(lambda p: p[0] == p[1], zip(one[::-1], other[::-1], strict=False)))
    rests = one[: len(one) - end], other[: len(other) - end]
    kept = start + end
    if any(letter.isdigit() for rest in rests for letter in rest):
        return False
    swapped = len(rests[0]) == 2 and rests[0] == rests[1][::-1]
    return (kept >= SHORTEST and max(map(len, rests)) == 1) or (swapped and kept + 2 >= SHORTEST)


def similar_text(counts: Mapping[str, int]) -> str:
    """Returns a sentence about classes with nearly the same name, and what to do; "" if there are none."""
    pairs = [
        f"{escape(rarer)!r} ({counts[rarer]:,} boxes) and {escape(commoner)!r} ({counts[commoner]:,})"
        for rarer, commoner in similar_classes(counts)
    ]
    if not pairs:
        return ""
    return f"Classes of nearly the same name: {listed(pairs)}. If they are one class, give it one name in the labels."


def warn_of_similar_classes(split: str, counts: Mapping[str, int]) -> None:
    """Warns of classes of a split with nearly the same name."""
    if text := similar_text(counts):
        log.warning("%s: %s", split, text[0].lower() + text[1:])


def shown_classes(counts: Mapping[str, Mapping[str, int]], most: int = MOST_CLASSES) -> tuple[list[str], list[str]]:
    """Returns the classes that a table shows in a row each, and the rest, each by the boxes in the first split.

    Beside the commonest ones, a row shows each class that is in one of several splits alone, or that has nearly the
    same name as another.

    Args:
        counts: {split: {class: number of boxes}}, each with all classes.
        most: number of the commonest classes.
    """
    first, *others = counts.values()
    order = sorted(first, key=lambda name: (-first[name], -sum(of_split[name] for of_split in others)))
    total = {name: sum(of_split[name] for of_split in counts.values()) for name in first}
    odd = {name for pair in similar_classes(total) for name in pair}
    if others:
        odd |= {name for name in order if sum(of_split[name] > 0 for of_split in counts.values()) == 1}
    shown = [name for place, name in enumerate(order) if place < most or name in odd]
    return shown, [name for name in order if name not in set(shown)]


def grouped_counts(counts: Mapping[str, Mapping[str, int]], prefix: str = "") -> list[tuple[str, dict[str, int]]]:
    """Returns a title and {split: number} for each class that a table shows, and for the rest together.

    Args:
        counts: as in `shown_classes`.
        prefix: text before the name of a class in its title.
    """
    shown, rest = shown_classes(counts)
    groups = [(f"{prefix}{escape(name)}", [name]) for name in shown]
    groups += [(f"{len(rest):,} more classes", rest)] if rest else []
    return [
        (title, {split: sum(of_split[name] for name in names) for split, of_split in counts.items()})
        for title, names in groups
    ]
