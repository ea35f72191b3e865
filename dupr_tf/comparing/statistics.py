"""Computes means with intervals, paired differences, the seeds that a decision needs, and the labels that are saved.

All intervals are of 95 % and follow Student's t, because there are few seeds.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import numpy as np
from scipy.special import stdtrit  # Student's quantile; importing scipy.stats takes ten times as long

LEVEL = 0.975  # upper quantile of a two-sided interval of 95 %
MOST_SEEDS = 100  # of a comparison
DRAWS = 20_000  # of the interval of the labels that are needed


@dataclasses.dataclass(frozen=True)
class Estimate:
    """Holds the mean of some runs and its interval.

    Args:
        mean: mean of the values.
        half: half the width of the 95 % interval of the mean. None for a single value, whose spread is unknown.
        runs: number of values.
    """

    mean: float
    half: float | None
    runs: int

    @property
    def decided(self) -> bool:
        """Returns True if the interval does not contain 0."""
        return self.half is not None and abs(self.mean) > self.half


def estimate(values: Sequence[float]) -> Estimate:
    """Returns the mean of values, with its 95 % interval if there are two or more."""
    values = np.asarray(values, float)
    if len(values) < 2:
        return Estimate(float(values.mean()), None, len(values))
    half = stdtrit(len(values) - 1, LEVEL) * values.std(ddof=1) / math.sqrt(len(values))
    return Estimate(float(values.mean()), float(half), len(values))


def seeds_needed(differences: Sequence[float]) -> int | None:
    """Computes how many seeds would decide a paired difference if its mean and spread did not change.

    Args:
        differences: a difference for each seed, at least two.

    Returns:
        The smallest number of seeds whose interval would not contain 0, at least the present number. None if more than
        `MOST_SEEDS` are needed.
    """
    mean, spread = abs(float(np.mean(differences))), float(np.std(differences, ddof=1))
    for seeds in range(len(differences), MOST_SEEDS + 1):
        if stdtrit(seeds - 1, LEVEL) * spread / math.sqrt(seeds) < mean:
            return seeds
    return None


@dataclasses.dataclass(frozen=True)
class LabelsNeeded:
    """Holds the number of labelled images with which the reference reaches a score of another backbone.

    Args:
        count: the number; -inf if it is below the compared numbers, inf if above.
        low, high: its 95 % interval, with the same meaning of infinity. None for a single seed.
    """

    count: float
    low: float | None = None
    high: float | None = None


def labels_needed(counts: Sequence[int], reference: np.ndarray, scores: Sequence[float]) -> LabelsNeeded:
    """Computes how many labelled images the reference needs to reach the score of another backbone.

    The reference's scores are interpolated linearly in the logarithm of the number of images. For the interval, the
    paired differences between the backbone and the reference are drawn from their multivariate t distribution, which
    keeps their correlation between the shares.

    Args:
        counts: numbers of labelled images, rising, at least two.
        reference: (seeds, counts) float, scores of the reference.
        scores: score of the other backbone for each seed, at one of the counts.
    """
    gaps = np.asarray(scores, float)[:, None] - np.asarray(reference, float)  # (seeds, counts)
    seeds, mean = len(gaps), gaps.mean(0)
    if seeds < 2:
        return LabelsNeeded(_crossing(counts, mean[None])[0])
    rng = np.random.default_rng(0)
    noise = rng.standard_normal((DRAWS, seeds)) @ (gaps - mean) / math.sqrt(seeds * (seeds - 1))
    noise /= np.sqrt(rng.chisquare(seeds - 1, (DRAWS, 1)) / (seeds - 1))
    drawn = np.sort(_crossing(counts, mean + noise))
    low, high = drawn[round((1 - LEVEL) * (DRAWS - 1))], drawn[round(LEVEL * (DRAWS - 1))]
    return LabelsNeeded(_crossing(counts, mean[None])[0], float(low), float(high))


def _crossing(counts: Sequence[int], gaps: np.ndarray) -> np.ndarray:
    """Returns the number of images at which each row of gaps, (rows, counts), first falls to 0.

    It is -inf for a row that starts at 0 or below, and inf for a row that stays above.
    """
    logs, result = np.log(counts), np.full(len(gaps), np.inf)
    for right in range(len(counts) - 1, 0, -1):  # the first crossing is written last
        before, after = gaps[:, right - 1], gaps[:, right]
        crosses = (before > 0) & (after <= 0)
        part = np.where(crosses, before, 0) / np.where(crosses, before - after, 1)
        at = np.exp(logs[right - 1] + part * (logs[right] - logs[right - 1]))
        result = np.where(crosses, at, result)
    return np.where(gaps[:, 0] <= 0, -np.inf, result)
