"""Slurm's short forms: `node[001-003,7]` is four hosts, `2(x3),1` is four counts."""

from __future__ import annotations

import itertools
import re

from dupr_tf.errors import UserError

MOST_HOSTS = 10_000  # a typing mistake such as [1-999999999] must not fill the memory
HOST = re.compile(r"[A-Za-z0-9]([A-Za-z0-9_.-]*[A-Za-z0-9])?")
RANGE = re.compile(r"(\d{1,9})(?:-(\d{1,9}))?", re.ASCII)
COUNT = re.compile(r"(\d{1,6})(?:\(x(\d{1,6})\))?", re.ASCII)


def expand_node_list(text: str) -> list[str]:
    """Returns the hosts of a node list, in its order.

    Args:
        text: names separated by commas. A name may hold ranges in brackets, `rack[0-1]-n[08-11]`. A first number with
            leading zeros sets the width of all numbers of its range, as in Slurm.

    Raises:
        UserError: brackets, a range or a name is malformed, a host occurs twice, or there are more than 10,000.
    """
    hosts: list[str] = []
    for part in _split_outside_brackets(text):
        hosts += _expand_name(part, text, MOST_HOSTS - len(hosts))
    wrong = next((host for host in hosts if not HOST.fullmatch(host)), None)
    if wrong is not None:
        raise _malformed(text, f"a host named {wrong!r:.60}")
    if len(set(hosts)) < len(hosts):
        twice = next(host for host in hosts if hosts.count(host) > 1)
        raise _malformed(text, f"{twice} twice")
    return hosts


def expand_counts(text: str) -> list[int]:
    """Returns the numbers of `2(x3),1`, Slurm's form of tasks by node: 2, 2, 2, 1.

    Raises:
        UserError: it is malformed, or a number is 0.
    """
    counts: list[int] = []
    for part in text.split(","):
        found = COUNT.fullmatch(part.strip())
        times = int(found[2] or 1) if found else 0
        if not times or not int(found[1]) or len(counts) + times > MOST_HOSTS:
            problem = f"Expected tasks by node such as 2(x3),1, received {text!r:.80}."
            raise UserError(None, problem, "Run within srun or sbatch.")
        counts += [int(found[1])] * times
    return counts


def _split_outside_brackets(text):
    parts, depth = [""], 0
    for letter in text.strip():
        depth += (letter == "[") - (letter == "]")
        if depth not in (0, 1):
            raise _malformed(text, "brackets that do not match")
        if letter == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += letter
    if depth:
        raise _malformed(text, "brackets that do not match")
    return parts


def _expand_name(part, text, room):
    """Returns every combination of the ranges of one name: `a[1-2]b[3-4]` is a1b3, a1b4, a2b3, a2b4."""
    pieces = re.split(r"\[([^\]]*)\]", part)  # the text between brackets is at the odd positions
    choices, count = [], 1
    for place, piece in enumerate(pieces):
        choices.append(_numbers(piece, text, room) if place % 2 else [piece])
        count *= len(choices[-1])
        if count > room:
            raise _malformed(text, f"more than {MOST_HOSTS:,} hosts")
    return ["".join(chosen) for chosen in itertools.product(*choices)]


def _numbers(ranges, text, room):
    numbers: list[str] = []
    for piece in ranges.split(","):
        found = RANGE.fullmatch(piece.strip())
        if not found:
            raise _malformed(text, f"[{ranges:.40}]")
        first, last = int(found[1]), int(found[2] or found[1])
        if last < first:
            raise _malformed(text, f"a range that falls, {piece.strip()}")
        if last - first >= room - len(numbers):
            raise _malformed(text, f"more than {MOST_HOSTS:,} hosts")
        numbers += [str(number).zfill(len(found[1])) for number in range(first, last + 1)]
    return numbers


def _malformed(text, what) -> UserError:
    return UserError(
        None,
        f"Expected a node list such as node[001-003,7],other, received {what} in {text!r:.80}.",
        "Write what `scontrol show hostnames` understands.",
    )
