"""Detects losses that look like guessing, keys that are all alike, accuracies that fall, and views that do not overlap.

The rules apply to running and finished runs. This module imports no TensorFlow.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from dupr_tf.config import Config

PINNED = 0.98  # share of ln(K + 1) above which a loss looks like guessing
CHANCE = 10  # a window counts as guessing if its accuracy is below this multiple of guessing's
SAME = 0.02  # the keys count as the same if their spread, of at most 1, is below this
WINDOW = 50  # steps in a window
LOW_OVERLAP = 0.9  # share of pairs that overlap enough for a patch loss, below which it is reported
USUAL_MOMENTUM = 0.99  # at least; a lower one may make accuracies fall
FALLEN = 0.5  # share of its peak below which an accuracy counts as fallen
LONG, LONG_SHARE = 4, 0.1  # windows, and share of all windows, during which it must stay fallen


def signs_of_collapse(mean: dict[str, float], keys: dict[str, int]) -> list[str]:
    """Lists the signs of collapse in the means of a window, one clause each; empty if healthy.

    Guessing gives a loss of ln(K + 1) and an accuracy of 1 / (K + 1).

    Args:
        mean: means of the logged scalars `loss/TERM`, `accuracy/TERM`, `std/TERM`. A term that lacks one is skipped.
        keys: {term: K of its memory bank}. A term without a bank is skipped.
    """
    signs = []
    for name, size in keys.items():
        if not all(f"{what}/{name}" in mean for what in ("loss", "accuracy", "std")):
            continue
        loss, accuracy, spread = (mean[f"{what}/{name}"] for what in ("loss", "accuracy", "std"))
        if loss > PINNED * math.log(size + 1) and accuracy < CHANCE / (size + 1):
            signs.append(f"{name} guesses: loss {loss:.3f}, ln(K + 1) is {math.log(size + 1):.3f}")
        if spread < SAME:
            signs.append(f"all keys of {name} are the same: std {spread:.4f} of 1")
    return signs


def little_overlap(share: float) -> str:
    """Describes a share of pairs with a patch loss that is below `LOW_OVERLAP`; empty for a higher one."""
    if share >= LOW_OVERLAP:
        return ""
    return (
        f"Only {share:.1%} of the pairs overlapped enough for a patch loss. What to do: more --views.draws, a smaller "
        "--views.min_overlap or a larger least --views.crop_area (long, narrow images overlap less)."
    )


def peak_of_fallen(accuracies: Sequence[float], keys: int) -> int | None:
    """Finds the peak of an accuracy that has stayed far below it for long.

    Args:
        accuracies: means of successive windows, from `patience` on.
        keys: K of the term's bank. A peak below `CHANCE` times the accuracy of guessing is none.

    Returns:
        Index of the peak, or None if the accuracy has not fallen for long.
    """
    long = max(LONG, math.ceil(LONG_SHARE * len(accuracies)))
    if len(accuracies) <= long:
        return None
    peak = max(range(len(accuracies)), key=accuracies.__getitem__)
    if accuracies[peak] < CHANCE / (keys + 1) or max(accuracies[-long:]) >= FALLEN * accuracies[peak]:
        return None
    return peak


def watched_for_decline(config: Config) -> dict[str, int]:
    """Returns {term: K} of the terms whose accuracy should not fall; none with a momentum that rises to 1.

    Its keys grow older and older, and the accuracy falls in healthy runs too.
    """
    return {} if config.model.momentum_schedule == "cosine" else config.model.bank_sizes


def patience(config: Config) -> int:
    """Returns the steps after which a healthy run no longer guesses.

    They are the warm-up, four turns of the banks and two of the average.
    """
    model, batch = config.model, config.train.batch_size
    turns = [
        math.ceil(term.bank_size / term.keys_per_step(batch)) for term in model.term_list if hasattr(term, "bank_size")
    ]
    return config.optimizer.warmup_steps + 4 * max(turns, default=0) + round(2 / (1 - model.momentum))
