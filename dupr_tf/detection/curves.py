"""Makes precision-recall pictures and class tables of evaluations."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np

from dupr_tf.detection.coco_eval import Curves
from dupr_tf.text import plot_label

MOST_NAMED = 20  # classes in the legend; if there are more, the best and the worst ten
# Okabe and Ito's colours except yellow, which is invisible on white; each with four line styles.
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#000000")
SCORES = ("AP", "AP50", "AP75", "mIoU", "pixel_accuracy")
LINES = ("-", "--", ":", "-.")


def precision_recall_picture(curves: Curves, path: str | Path, title: str = "") -> None:
    """Draws precision against recall at IoU 0.5: a line for each class, and the mean over classes.

    Args:
        curves: class name -> recall and precision, (n,) each, with the same recalls, from
            `coco_scores`. If empty, the picture says so.
        path: PNG file to write, 900 × 600 px.
        title: title above the picture.
    """
    from matplotlib.figure import Figure  # takes a second, and an evaluation alone does not need it

    figure = Figure((9, 6), dpi=100, layout="constrained")
    axes = figure.add_subplot(xlim=(0, 1), ylim=(0, 1.02), xlabel="recall", ylabel="precision, IoU ≥ 0.5")
    axes.set_title(plot_label(title))
    axes.grid(color="0.9")
    means = {name: float(np.mean(precision)) for name, (_, precision) in curves.items()}
    ranked = sorted(means, key=means.get, reverse=True)
    named = ranked if len(ranked) <= MOST_NAMED else ranked[: MOST_NAMED // 2] + ranked[-MOST_NAMED // 2 :]
    for name in ranked:
        style = {"color": "0.8", "linewidth": 0.8, "zorder": 1}
        if name in named:
            at = named.index(name)
            style = {"color": COLOURS[at % len(COLOURS)], "linestyle": LINES[at // len(COLOURS) % len(LINES)]}
            style |= {"linewidth": 1.2, "label": f"{plot_label(name)} {means[name]:.2f}"}
        axes.plot(*curves[name], **style)
    if curves:
        recall = next(iter(curves.values()))[0]
        mean = np.mean([precision for _, precision in curves.values()], 0)
        if len(ranked) > len(named):
            axes.plot([], [], color="0.8", linewidth=0.8, label=f"the other {len(ranked) - len(named)}")
        label = f"mean of {len(curves)} {mean.mean():.2f}"
        axes.plot(recall, mean, color="black", linewidth=3.5, label=label, zorder=3)
        legend = figure.legend(loc="outside right upper", fontsize=9, frameon=False, title="AP50")
        for text in legend.get_texts():
            text.set_parse_math(False)  # a name may have a dollar sign
    else:
        axes.text(0.5, 0.5, "nothing to find", ha="center", fontsize=14)
    figure.savefig(path, metadata={"Software": None})


def score_lines(scores: dict) -> list[str]:
    """Returns the scores of an evaluation by every metric, a line each, as text."""
    others = {name: other for name, other in scores.items() if isinstance(other, dict) and set(SCORES) & set(other)}
    return [_score_line(scores), *(f"{name}: {_score_line(other)}" for name, other in others.items())]


def _score_line(scores: dict) -> str:
    values = {name: scores[name] for name in SCORES if name in scores}
    return "  ".join(f"{name} " + ("none" if value is None else f"{value:.3f}") for name, value in values.items())


def threshold_lines(scores: dict) -> list[str]:
    """Returns a line about the suggested threshold of an evaluation, if it has one."""
    line = "best --min-score {low:.3f}: precision {precision:.3f}, recall {recall:.3f} at IoU 0.5"
    suggested = scores.get("suggested_threshold")
    if not suggested:
        return []
    return [line.format(low=rounded_score(suggested), **suggested)]


def rounded_score(suggested: dict) -> float:
    """Returns the score of a `suggested_threshold`, rounded down to three digits so that it keeps that detection."""
    return math.floor(1000 * float(suggested["min_score"])) / 1000


def class_rows(metrics: dict) -> list[tuple[str, ...]]:
    """Returns the classes of an evaluation as rows of text: headings first, then the classes from the best on.

    Args:
        metrics: result of an evaluation: `per_class`, and `per_class_AP50` if it has one.
    """
    head, columns = ["class"], []
    of_pixels = "mIoU" in metrics
    for key, title in (("per_class", "IoU" if of_pixels else "AP"), ("per_class_AP50", "AP50")):
        if key in metrics:
            head.append(title)
            columns.append({name: "none" if v is None else f"{v:.3f}" for name, v in metrics[key].items()})
    ranked = sorted(metrics["per_class"].items(), key=lambda item: 1.0 if item[1] is None else -item[1])
    return [tuple(head), *((name, *(column[name] for column in columns)) for name, _ in ranked)]
