"""Compares the detectors of a report: the score of each group of seeds, and which group is better."""

from __future__ import annotations

import dataclasses
import itertools
import math
import os
import statistics
from collections.abc import Sequence

import numpy as np

from dupr_tf.config import Config
from dupr_tf.reporting.folders import RunFolder
from dupr_tf.reporting.metrics import number
from dupr_tf.reporting.tables import ABSENT, Table, flat_config

METRICS = ("mIoU", "AP")  # the score of a detector is the first that it has
NOT_COMPARED = ("train.seed", "data.root")
CLEAR = 0.05  # a difference counts as clear if equal groups would show it with at most this probability
MOST_SPLITS = 20_000  # splits of the seeds that are counted; of more, so many are drawn


@dataclasses.dataclass(frozen=True)
class RunGroup:
    """Holds detectors that differ only in their seeds and in the seeds of their pre-training."""

    label: str
    metric: str
    scores: list[float]
    runs: list[RunFolder]
    settings: dict[str, str]  # settings of the detector, and of its start under names with "start: "

    @property
    def mean(self) -> float:
        return statistics.fmean(self.scores)

    @property
    def text(self) -> str:
        """Returns the mean and the deviation of its seeds."""
        if len(self.scores) == 1:
            return f"{self.mean:.4f}"
        return f"{self.mean:.4f} ± {statistics.stdev(self.scores):.4f}"


def groups_of(runs: Sequence[RunFolder]) -> list[RunGroup]:
    """Groups the evaluated detectors of a report, the best group of each metric first.

    A detector belongs to the group of its config, without the seed, and of the weights it started from. Two runs of
    pre-training count as the same weights if they are in the report and differ in their seeds alone.
    """
    members: dict[tuple, list[tuple[RunFolder, float]]] = {}
    settings_of: dict[tuple, dict[str, str]] = {}
    for run in runs:
        metric = next((name for name in METRICS if number((run.scores or {}).get(name)) is not None), None)
        if metric is not None:
            settings = {**_settings(run), **_start(run, runs)}
            key = metric, tuple(sorted(settings.items()))
            settings_of[key] = settings
            members.setdefault(key, []).append((run, number(run.scores[metric])))
    groups = [
        RunGroup(_label(group), key[0], [score for _, score in group], [run for run, _ in group], settings_of[key])
        for key, group in members.items()
    ]
    return sorted(groups, key=lambda group: (METRICS.index(group.metric), -group.mean))


def group_table(groups: Sequence[RunGroup]) -> Table:
    """Makes a row for each group: score, lowest and highest seed, and the fields in which the groups differ."""
    differing = _differing(groups)
    head = ["rank", "runs", "metric", "mean ± deviation", "lowest", "highest", "seeds", *differing]
    rows = [
        [
            str(1 + [one for one in groups if one.metric == group.metric].index(group)),
            group.label,
            group.metric,
            group.text,
            f"{min(group.scores):.4f}",
            f"{max(group.scores):.4f}",
            str(len(group.scores)),
            *(group.settings.get(name, ABSENT) for name in differing),
        ]
        for group in groups
    ]
    return Table(head, rows)


def verdicts(groups: Sequence[RunGroup]) -> list[str]:
    """States for each metric how the best group compares with each other one."""
    sentences = []
    for _, of_metric in itertools.groupby(groups, key=lambda group: group.metric):
        best, *others = of_metric
        sentences += [_compare(best, other) for other in others]
        if not others:
            sentences.append(f"{best.label}: {best.metric} {best.text}. There is no other group to compare with.")
    return sentences


def chance_of(high: Sequence[float], low: Sequence[float]) -> float:
    """Computes the share of splits of all scores whose parts differ by as much (a two-sided permutation test).

    Two-sided, because the better of two groups is named first.
    More than `MOST_SPLITS` splits are drawn at random, always the same ones. The split of the runs itself counts too.
    """
    scores, size = np.array([*high, *low]), len(high)
    if math.comb(len(scores), size) <= MOST_SPLITS:
        parts = np.array([*itertools.combinations(scores, size)])
    else:
        random = np.random.default_rng(0)
        drawn = random.permuted(np.tile(scores, (MOST_SPLITS, 1)), axis=1)[:, :size]
        parts = np.concatenate([np.array([high]), drawn])
    leads = parts.mean(1) - (scores.sum() - parts.sum(1)) / len(low)
    return float(np.mean(np.abs(leads) >= np.mean(high) - np.mean(low) - 1e-12))


def _compare(best: RunGroup, other: RunGroup) -> str:
    what = ", ".join(name.removeprefix("start: ") for name in _differing([best, other])) or "nothing that is recorded"
    text = (
        f"{best.label} has {best.metric} {best.text}, {other.label} {other.text}: {best.mean - other.mean:.4f} less. "
        f"They differ in {what}. "
    )
    seeds = len(best.scores), len(other.scores)
    chance = chance_of(best.scores, other.scores)
    equal = 2 if seeds[0] == seeds[1] else 1  # splits whose parts differ by the most that these scores can
    if min(seeds) == 1 or equal / math.comb(sum(seeds), seeds[0]) > CLEAR:
        return f"{text}{seeds[0]} and {seeds[1]} seeds cannot tell: a verdict needs about four of each."
    if chance <= CLEAR:
        return f"{text}The first is better: equal groups would differ like this in {chance:.1%} of the cases."
    return f"{text}They do not differ clearly: equal groups would differ like this in {chance:.0%} of the cases."


def _label(members) -> str:
    return ", ".join(run.label for run, _ in members)


def _differing(groups: Sequence[RunGroup]) -> list[str]:
    names = dict.fromkeys(name for group in groups for name in group.settings)
    return [name for name in names if len({group.settings.get(name) for group in groups}) > 1]


def _settings(run: RunFolder) -> dict[str, str]:
    return {} if run.config is None else _without_seed(run.config)


def _without_seed(config: Config) -> dict[str, str]:
    return {name: str(value) for name, value in flat_config(config).items() if name not in NOT_COMPARED}


def _start(run: RunFolder, runs: Sequence[RunFolder]) -> dict[str, str]:
    """Returns the weights that a detector started from: the settings of a run in the report, or else their path."""
    weights = str((run.scores or {}).get("weights", "unknown"))
    place = os.path.realpath(weights)
    for other in runs:
        if other.config is not None and os.path.realpath(other.path) in (place, os.path.dirname(place)):
            return {
                "start: weights": "pre-trained",
                **{f"start: {k}": v for k, v in _without_seed(other.config).items()},
            }
    return {"start: weights": place if os.path.exists(place) else weights}
