"""Writes a comparison: the table, compare.json, compare.md and compare.png."""

from __future__ import annotations

import dataclasses
import io
import json
import math
from pathlib import Path

from dupr_tf.comparing.overlaps import overlap_entries
from dupr_tf.comparing.record import Comparison
from dupr_tf.comparing.results import Rates, Result, Row, labels_text, sentences
from dupr_tf.comparing.statistics import Estimate, LabelsNeeded
from dupr_tf.files import write_all
from dupr_tf.text import escape, plot_label

JSON_FILE, PAGE_FILE, PICTURE_FILE = "compare.json", "compare.md", "compare.png"
# Okabe and Ito's colours, which colour-blind readers can distinguish.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
FORMAT = 1


def head(result: Result, comparison: Comparison) -> tuple[str, ...]:
    """Returns the headings of the table."""
    metric, reference = result.metric or "score", comparison.reference
    columns = (
        "images",
        "backbone",
        "runs",
        metric,
        f"{metric} - {reference}",
        f"labels {reference} needs",
    )
    return columns if comparison.probe else (*columns[:4], "AP50", *columns[4:], "rate")


def table(result: Result, comparison: Comparison, rates: dict[str, Rates]) -> list[tuple[str, ...]]:
    """Returns a row of texts for each backbone and share."""
    rows = []
    for row in result.rows:
        columns = (
            f"{row.images:,} ({row.share:g})",
            row.backbone,
            str(row.score.runs),
            _estimate(row.score),
            "reference" if row.difference is None else _difference(row),
            "" if row.labels_needed is None else labels_text(row.labels_needed),
        )
        ap50 = "" if row.ap50 is None else f"{row.ap50:.4f}"
        rows.append(columns if comparison.probe else (*columns[:4], ap50, *columns[4:], _rate(rates[row.backbone])))
    return rows


def _estimate(value: Estimate, sign: str = "") -> str:
    return f"{value.mean:{sign}.4f}" + ("" if value.half is None else f" ± {value.half:.4f}")


def _difference(row: Row) -> str:
    mark = "" if not row.difference.decided else ", better" if row.difference.mean > 0 else ", worse"
    return _estimate(row.difference, "+") + mark


def _rate(rates: Rates) -> str:
    return "" if rates.chosen is None else f"{rates.chosen:g}"


def write_outputs(folder: Path, comparison: Comparison, result: Result, rates: dict[str, Rates]) -> None:
    """Writes the three files of a comparison. Finished cells are all they contain."""
    contents = {
        folder / JSON_FILE: json.dumps(_as_json(comparison, result, rates), indent=2) + "\n",
        folder / PAGE_FILE: page(comparison, result, rates),
    }
    picture = draw(comparison, result)
    if picture is not None:
        contents[folder / PICTURE_FILE] = picture
    write_all(contents)


def page(comparison: Comparison, result: Result, rates: dict[str, Rates]) -> str:
    """Returns the table and its conclusions in Markdown."""
    rows = [head(result, comparison), *table(result, comparison, rates)]
    lines = [f"| {' | '.join(cell.replace('|', '/') for cell in row)} |" for row in map(_escaped, rows)]
    lines.insert(1, "|" + "---|" * len(rows[0]))
    about = (
        f"{_scorer(comparison)}, {comparison.counts['val']:,} images of val, {result.finished} of {result.cells} "
        "cells. Means with 95 % intervals (Student's t over seeds); differences are paired by seed."
    )
    conclusions = [f"* {escape(sentence)}" for sentence in sentences(result, comparison)]
    picture = [f"![{result.metric} against the number of labelled images]({PICTURE_FILE})"] if result.rows else []
    parts = [about, "\n".join(lines), *picture, "\n".join(conclusions)]
    if len(comparison.rates) > 1:
        parts.append(_rates_text(comparison, rates))
    return "\n\n".join(part for part in parts if part) + "\n"


def _scorer(comparison: Comparison) -> str:
    """Names the detector and its steps, or the probe and its level, with the architecture of the backbones."""
    config = comparison.config
    backbone = f"{config.model.backbone} (width {config.model.width:g})"
    if comparison.probe:
        return f"{comparison.probe} on {comparison.level}, {backbone}"
    steps = " or ".join(f"{count:,}" for count in sorted(set(comparison.steps)))
    return f"{config.detector.kind}, {backbone}, {steps} steps of {config.train.batch_size}"


def _escaped(row: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(escape(cell) for cell in row)


def _rates_text(comparison: Comparison, rates: dict[str, Rates]) -> str:
    """States the scores of the learning rates on held-out images."""
    lines = [
        "Learning rates, chosen with seed 0 on a fifth of the training images, which were held out, at share "
        f"{comparison.rate_share:g}:",
        "",
    ]
    for label, tried in rates.items():
        scores = ", ".join(f"{rate:g}: {score:.4f}" for rate, score in sorted(tried.scores.items()))
        chosen = "not chosen yet" if tried.chosen is None else f"chosen {tried.chosen:g}"
        lines.append(f"* {escape(label)}: {scores or 'none is finished'}; {chosen}")
    return "\n".join(lines)


def _as_json(comparison: Comparison, result: Result, rates: dict[str, Rates]) -> dict:
    rows = [
        {
            "backbone": row.backbone,
            "share": row.share,
            "images": row.images,
            "scores": {str(seed): score for seed, score in row.scores.items()},
            "score": dataclasses.asdict(row.score),
            "AP50": row.ap50,
            "difference": row.difference and dataclasses.asdict(row.difference),
            "seeds_needed": row.seeds_needed,
            "labels_needed": row.labels_needed and _finite(row.labels_needed),
        }
        for row in result.rows
    ]
    return {
        "format": FORMAT,
        "metric": result.metric,
        "reference": comparison.reference,
        "cells": {"finished": result.finished, "all": result.cells},
        "backbones": {one.label: list(one.weights) for one in comparison.backbones},
        "overlaps": overlap_entries(comparison),
        "rates": {
            label: {"chosen": tried.chosen, "scores": {f"{rate:g}": score for rate, score in tried.scores.items()}}
            for label, tried in rates.items()
        },
        "rows": rows,
    }


def _finite(needed: LabelsNeeded) -> dict:
    """Returns the numbers as JSON, which has no infinity: "below" and "above" the compared range instead."""
    infinite = {math.inf: "above", -math.inf: "below"}
    return {name: infinite.get(value, value) for name, value in dataclasses.asdict(needed).items()}


def draw(comparison: Comparison, result: Result) -> bytes | None:
    """Draws the score against the number of labelled images, a line with a band for each backbone, as a PNG.

    Returns:
        The bytes of the file. None without a finished cell.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    if not result.rows:
        return None
    figure = Figure((6.4, 4.2), dpi=110, layout="constrained")
    axes = figure.add_subplot()
    counts = sorted({row.images for row in result.rows})
    apart = 1.0 if len(counts) > 1 else 1.02  # factor between backbones, whose intervals would cover each other
    for number, backbone in enumerate(comparison.backbones):
        rows = [row for row in result.rows if row.backbone == backbone.label]
        colour, marker = COLOURS[number % len(COLOURS)], "os^Dvph"[number % 7]
        images, means = [row.images * apart**number for row in rows], [row.score.mean for row in rows]
        axes.plot(images, means, marker=marker, ms=5, color=colour, label=plot_label(backbone.label))
        wide = [row for row in rows if row.score.half is not None]
        low, high = ([row.score.mean + sign * row.score.half for row in wide] for sign in (-1, 1))
        axes.fill_between([row.images for row in wide], low, high, color=colour, alpha=0.15, lw=0)
        if len(wide) == 1:  # a band has no width there
            (one,) = wide
            axes.errorbar(one.images * apart**number, one.score.mean, one.score.half, color=colour, capsize=4)
    axes.set_xscale("log")
    middle = apart ** ((len(comparison.backbones) - 1) / 2)
    axes.set_xticks([count * middle for count in counts], [f"{count:,}" for count in counts])
    axes.minorticks_off()
    axes.set(xlabel="labelled training images", ylabel=f"{result.metric}, mean and 95 % interval")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    file = io.BytesIO()
    FigureCanvasAgg(figure).print_png(file)
    return file.getvalue()
