"""Reads the scores of finished cells, chooses learning rates, and computes the rows of the table."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from dupr_tf.comparing.grid import Cell
from dupr_tf.comparing.overlaps import overlap_sentences
from dupr_tf.comparing.record import Comparison
from dupr_tf.comparing.statistics import MOST_SEEDS, Estimate, LabelsNeeded, estimate, labels_needed, seeds_needed
from dupr_tf.config.probes import PROBE_METRICS
from dupr_tf.records import mapping, read_record

METRICS_FILE = "metrics.json"  # of a cell; a cell with this file is finished
METRICS = ("mIoU", "AP", *PROBE_METRICS.values())  # the score of a cell is the first that it has
LITTLE = 0.01  # a detector below this score finds next to nothing
DIVERGED = "diverged"  # in the metrics of a cell that tried a learning rate: its loss was not finite
REMOVE = "Remove the folder of this cell, and run the same command again."


def is_finished(folder: Path) -> bool:
    """Returns True if the cell in a folder is finished."""
    return (folder / METRICS_FILE).is_file()


def read_scores(folder: Path) -> dict[str, float]:
    """Returns the scores of a finished cell, and `DIVERGED`: 1 if its loss was not finite.

    Scores are AP and AP50, those of masks for a detector that has masks, or mIoU, or the score of a probe.

    Raises:
        UserError: its metrics are damaged.
    """
    return read_record(folder / METRICS_FILE, _parse_scores, REMOVE)


def _parse_scores(value) -> dict[str, float]:
    value = mapping(value)
    scored = value["masks"] if isinstance(value.get("masks"), dict) else value
    scores = {name: scored[name] for name in (*METRICS, "AP50") if scored.get(name) is not None}
    if not scores or any(type(x) not in (int, float) or not math.isfinite(x) for x in scores.values()):
        raise ValueError(f"it lacks a score, one of {', '.join(METRICS)}")
    return {name: float(score) for name, score in scores.items()} | ({DIVERGED: 1.0} if DIVERGED in value else {})


@dataclasses.dataclass(frozen=True)
class Rates:
    """Holds the learning rates tried with a backbone on held-out images.

    Args:
        scores: {rate: score} of the finished cells.
        chosen: rate with the highest score. None before all are finished, and if the loss was not finite with any.
    """

    scores: dict[float, float]
    chosen: float | None


def choose_rates(folder: Path, comparison: Comparison) -> dict[str, Rates]:
    """Returns the rates tried with each backbone; the chosen one has the highest score, the smaller one of equals."""
    if len(comparison.rates) < 2:
        return {one.label: Rates({}, next(iter(comparison.rates), None)) for one in comparison.backbones}
    read: dict[str, dict[float, dict]] = {one.label: {} for one in comparison.backbones}
    for cell in comparison.rate_cells():
        if is_finished(folder / cell.folder):
            read[cell.backbone][cell.rate] = read_scores(folder / cell.folder)
    rates = {}
    for label, of_rate in read.items():
        scores = {rate: _score(found) for rate, found in of_rate.items()}
        usable = [rate for rate, found in of_rate.items() if DIVERGED not in found]
        complete = len(of_rate) == len(comparison.rates)
        best = min(usable, key=lambda rate: (-scores[rate], rate)) if usable and complete else None
        rates[label] = Rates(scores, best)
    return rates


def _score(scores: dict[str, float]) -> float:
    return next(scores[name] for name in METRICS if name in scores)


@dataclasses.dataclass(frozen=True)
class Row:
    """Holds the result of a backbone at a share.

    Args:
        backbone: its label.
        share: the share of the labels.
        images: number of labelled images.
        scores: {seed: score} of the finished cells.
        score: their mean.
        ap50: mean AP50. None for a metric without it.
        difference: mean of the score minus the reference's, over the seeds that both have. None for the reference.
        seeds_needed: number of seeds that would decide the difference, if its spread stays; None if it is out of reach
            or unknown.
        labels_needed: labelled images with which the reference reaches the score. None for the reference, and with a
            single share.
    """

    backbone: str
    share: float
    images: int
    scores: dict[int, float]
    score: Estimate
    ap50: float | None
    difference: Estimate | None
    seeds_needed: int | None
    labels_needed: LabelsNeeded | None


@dataclasses.dataclass(frozen=True)
class Result:
    """Holds the results of the finished cells.

    Args:
        metric: one of `METRICS`. None before a cell is finished.
        rows: a row for each share and backbone with a finished cell, by share.
        finished, cells: number of finished cells, and of all, those that choose rates included.
    """

    metric: str | None
    rows: list[Row]
    finished: int
    cells: int


def read_result(folder: Path, comparison: Comparison) -> Result:
    """Reads the finished cells of a comparison, and compares each backbone with the reference."""
    every = [*comparison.rate_cells(), *comparison.scored_cells()]
    finished = [cell for cell in every if is_finished(folder / cell.folder)]
    read = {cell: read_scores(folder / cell.folder) for cell in finished if cell.rate is None}
    metric = next((name for scores in read.values() for name in METRICS if name in scores), None)
    table = {key: _of_seeds(read, *key) for key in {(cell.backbone, cell.share) for cell in read}}
    order = [(one.label, share) for share in comparison.shares for one in comparison.backbones]
    rows = [_row(comparison, key, table, read) for key in order if key in table]
    return Result(metric, rows, len(finished), len(every))


def _of_seeds(read: dict[Cell, dict], backbone: str, share: float) -> dict[int, float]:
    cells = sorted((cell for cell in read if (cell.backbone, cell.share) == (backbone, share)), key=lambda c: c.seed)
    return {cell.seed: _score(read[cell]) for cell in cells}


def _row(comparison: Comparison, key: tuple[str, float], table: dict, read: dict) -> Row:
    backbone, share = key
    scores, ap50 = table[key], [s["AP50"] for cell, s in read.items() if _key(cell) == key and "AP50" in s]
    difference = needed = labels = None
    reference = table.get((comparison.reference, share), {})
    common = sorted(scores.keys() & reference.keys())
    repeats = comparison.repeats(backbone, share)
    if repeats and comparison.repeats(comparison.reference, share):
        common = common[:1]  # the other seeds repeat it
    if backbone != comparison.reference and common:
        differences = [scores[seed] - reference[seed] for seed in common]
        difference = estimate(differences)
        needed = seeds_needed(differences) if len(differences) > 1 else None
        labels = _labels_needed(comparison, table, scores)
    counted = list(scores.values())[: 1 if repeats else None]
    return Row(
        backbone, share, comparison.images_of(share), scores, estimate(counted),
        float(np.mean(ap50)) if ap50 else None, difference, needed, labels,
    )  # fmt: skip


def _key(cell: Cell) -> tuple[str, float]:
    return cell.backbone, cell.share


def _labels_needed(comparison: Comparison, table: dict, scores: dict[int, float]) -> LabelsNeeded | None:
    """Computes the labels with which the reference reaches a row's scores, from the seeds of complete curves."""
    curves = [table.get((comparison.reference, share), {}) for share in comparison.shares]
    seeds = sorted(set(scores).intersection(*curves))
    if len(curves) < 2 or not seeds:
        return None
    counts = [comparison.images_of(share) for share in comparison.shares]
    return labels_needed(counts, np.array([[curve[s] for curve in curves] for s in seeds]), [scores[s] for s in seeds])


def sentences(result: Result, comparison: Comparison) -> list[str]:
    """States what the table shows: for each row whether it differs from the reference, and the labels it saves.

    The overlaps of the pre-trainings with val come last.
    """
    rows = [row for row in result.rows if row.difference is not None]
    texts = [f"{row.backbone} at {row.images:,} images: {_verdict(row, comparison)}" for row in rows]
    return [*texts, *_notes(result.rows, comparison), *overlap_sentences(comparison)]


def _verdict(row: Row, comparison: Comparison) -> str:
    difference, reference = row.difference, comparison.reference
    if all(comparison.repeats(label, row.share) for label in (row.backbone, reference)):
        return (
            f"{difference.mean:+.4f} against {reference}, the same with every seed, which cannot decide. Use a share "
            "below 1, or several pre-trainings."
        )
    if difference.half is None:
        return f"{difference.mean:+.4f} against {reference} with one seed, which cannot decide. Use --seeds 3 or more."
    change = f"{difference.mean:+.4f} ± {difference.half:.4f} against {reference}"
    if difference.decided:
        return f"{change}: {'better' if difference.mean > 0 else 'worse'}. {_saved(row, reference)}".rstrip()
    seeds = difference.runs
    if row.seeds_needed is None:
        return f"{change}: undecided, and {MOST_SEEDS} seeds would not change that."
    more = row.seeds_needed - seeds
    return f"{change}: undecided after {seeds} seeds. About {more} more would decide it, if the spread stays."


def _saved(row: Row, reference: str) -> str:
    """States the labels that a better backbone saves."""
    needed = row.labels_needed
    if needed is None or row.difference.mean < 0:
        return ""
    return f"{reference} needs {labels_text(needed)} images for that."


def labels_text(needed: LabelsNeeded) -> str:
    """Formats a number of labelled images and its interval; infinite ends are out of the compared range."""
    count = _count(needed.count)
    if needed.low is None or (np.isinf(needed.count) and needed.low == needed.count == needed.high):
        return count
    if np.isinf(needed.low) and np.isinf(needed.high):
        return f"{count} (the interval covers all numbers compared)"
    if np.isinf(needed.low):
        return f"{count} (at most {_count(needed.high)})"
    if np.isinf(needed.high):
        return f"{count} (at least {_count(needed.low)})"
    return f"{count} ({_count(needed.low)} to {_count(needed.high)})"


def _count(count: float) -> str:
    if np.isinf(count):
        return "more than compared" if count > 0 else "fewer than compared"
    return f"{round(count):,}"


def _notes(rows: Sequence[Row], comparison: Comparison) -> list[str]:
    """Says which spread the intervals do not cover, and warns if nothing was learnt."""
    notes = []
    if rows and comparison.probe is None and max(row.score.mean for row in rows) < LITTLE:
        notes.append(
            f"Every score is below {LITTLE}: these detectors find next to nothing, so their differences say little. "
            "Raise --steps, or use more labels."
        )
    single = [one.label for one in comparison.backbones if len(one.weights) == 1 and one.weights != ("random",)]
    if not rows or not single:
        return notes
    covered = "the fine-tuning" if comparison.probe is None else "the drawn images"
    notes.append(
        f"{', '.join(single)}: one pre-training each. The intervals cover the spread of {covered}, not that of "
        "the pre-training."
    )
    return notes
