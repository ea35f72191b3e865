"""Derives findings from a run's numbers: divergence, collapse, its end, and the use of its time."""

from __future__ import annotations

import dataclasses
import math
import statistics

from dupr_tf.reporting.folders import FINETUNING, PRETRAINING, RunFolder
from dupr_tf.reporting.metrics import number
from dupr_tf.text import count_text
from dupr_tf.training.collapse import (
    USUAL_MOMENTUM,
    WINDOW,
    little_overlap,
    patience,
    peak_of_fallen,
    signs_of_collapse,
    watched_for_decline,
)

SLOW = 1.25  # multiple of the median time per image: a stretch of lines counts as slow
LEAST_LINES = 5  # lines needed to judge collapse


@dataclasses.dataclass(frozen=True)
class Finding:
    """An observation to look at."""

    run: str
    text: str
    grave: bool = True


@dataclasses.dataclass(frozen=True)
class Spent:
    """The time of a run, in seconds, from its lines."""

    total: float
    images: int
    median_rate: float  # images/s
    at_median: float  # time of all images at that rate
    first: float  # time of the first line beyond that rate: tracing the step, filling the pipeline
    slow: float  # time of stretches slower than SLOW times the median, beyond that rate
    slow_lines: int

    @property
    def rest(self) -> float:
        """Returns the remaining time: many small differences, minus faster stretches."""
        return self.total - self.at_median - self.first - self.slow


def findings_of(run: RunFolder) -> list[Finding]:
    """Lists divergence, collapse, low overlap and damaged exports, which readers must not overlook."""
    texts = [(text, True) for text in (*_diverged(run), *_not_finite(run), *_collapsed(run), *_damaged_exports(run))]
    texts += [(text, True) for text in _fallen(run)]
    texts += [(text, False) for text in _little_overlap(run)]
    return [Finding(run.label, text, grave) for text, grave in texts]


def total_steps(run: RunFolder) -> int | None:
    """Returns the planned steps of the run, or None if its config or its number of images is unknown."""
    if run.config is None:
        return None
    if run.kind == FINETUNING:
        return run.config.train.max_steps
    count = number((run.images or {}).get("count"))
    if count is None or not 1 <= count < 1e12:
        return None
    return run.config.total_steps(int(count))


def state(run: RunFolder) -> str:
    """Describes the progress of the run in a few words."""
    step, total = run.metrics.last_step, total_steps(run)
    if run.kind == FINETUNING and run.scores is not None:
        return "finished and evaluated"
    if run.diverged is not None and (_diverged_step(run) or 0) >= step:
        return "stopped: it diverged"
    if not run.metrics.rows:
        return "not started, or its metrics are lost"
    if total is None:
        return f"at step {step:,}"
    if step < total:
        return f"at step {step:,} of {total:,}"
    return "finished" if run.kind == PRETRAINING else "trained, not evaluated"


def time_spent(run: RunFolder) -> Spent | None:
    """Computes the use of time, or None without two lines that have a speed. Restarts do not show in the lines."""
    if run.config is None or run.kind != PRETRAINING:
        return None
    stretches, before = [], 0.0
    for row in run.metrics.rows:
        rate = row.get("images_per_second")
        batch = row.get("batch_size") or run.config.train.batch_size  # earlier versions did not log it
        images, before = (row["step"] - before) * batch, row["step"]
        if rate and rate > 0:
            stretches.append((images, images / rate))
    if len(stretches) < 2:
        return None
    median = statistics.median(images / seconds for images, seconds in stretches[1:])
    excess = [seconds - images / median for images, seconds in stretches]
    slow = [
        more for more, (images, _) in zip(excess[1:], stretches[1:], strict=True) if more > (SLOW - 1) * images / median
    ]
    images = sum(images for images, _ in stretches)
    return Spent(
        sum(seconds for _, seconds in stretches), int(images), median, images / median, excess[0], sum(slow), len(slow)
    )


def guessing(run: RunFolder) -> float | None:
    """Returns ln(K + 1), the loss of a run that guesses."""
    return None if run.config is None else math.log(run.config.model.largest_bank + 1)


def _diverged_step(run: RunFolder) -> int | None:
    step = number((run.diverged or {}).get("step"))
    return None if step is None else int(step)


def _diverged(run: RunFolder) -> list[str]:
    if run.diverged is None:
        return []
    step, terms = _diverged_step(run), run.diverged.get("loss_terms")
    which = [str(name) for name, value in terms.items() if number(value) is None] if isinstance(terms, dict) else []
    where = f"at step {step:,}" if step is not None else "at an unknown step"
    text = f"It diverged {where} ({', '.join(which) or 'gradients or weights'} not finite); nothing was saved after it."
    if step is not None and run.metrics.last_step > step:
        return [f"{text} A later start continued to step {run.metrics.last_step:,}."]
    return [
        f"{text} Its images are listed in diverged.json. What to do: check them, or resume with --allow-change "
        "and a lower --optimizer.learning_rate, longer --optimizer.warmup_steps, or --train.precision float32."
    ]


def _not_finite(run: RunFolder) -> list[str]:
    not_finite = run.metrics.not_finite
    if not not_finite:
        return []
    where = "; ".join(f"{name} at step {', '.join(f'{s:,}' for s in steps)}" for name, steps in not_finite.items())
    return [f"Losses in metrics.jsonl that are no finite number (the first of each): {where}."]


def _collapsed(run: RunFolder) -> list[str]:
    """Reports the first window that looks like collapse, judged like `WarnOfCollapse`, from the logged lines alone."""
    if run.config is None or run.kind != PRETRAINING:
        return []
    rows = [row for row in run.metrics.rows if row["step"] > patience(run.config)]
    start = 0
    for end in range(len(rows)):
        if end - start + 1 < LEAST_LINES or rows[end]["step"] - rows[start]["step"] < WINDOW:
            continue
        signs = signs_of_collapse(_means(rows[start : end + 1]), run.config.model.bank_sizes)
        if signs:
            return [
                f"It may have collapsed by step {rows[end]['step']:,.0f}: {'; '.join(signs)}. What to do: a lower "
                "learning rate, more warm-up steps, a --model.momentum nearer 1, images that are not all alike."
            ]
        start = end + 1
    return []


def _fallen(run: RunFolder) -> list[str]:
    """Reports terms whose accuracy stays far below its peak, judged like `WarnOfDecline`, from the logged lines."""
    if run.config is None or run.kind != PRETRAINING:
        return []
    windows, rows, start = [], [], patience(run.config)
    for row in run.metrics.rows:
        if row["step"] <= start:
            continue
        rows.append(row)
        if row["step"] - start >= WINDOW:
            windows.append((row["step"], _means(rows)))
            rows, start = [], row["step"]
    texts, nearer = [], "a --model.momentum nearer 1, or " if run.config.model.momentum < USUAL_MOMENTUM else ""
    for name, keys in watched_for_decline(run.config).items():
        points = [(step, means[f"accuracy/{name}"]) for step, means in windows if f"accuracy/{name}" in means]
        peak = peak_of_fallen([accuracy for _, accuracy in points], keys)
        if peak is not None:
            (best_step, best), (last_step, last) = points[peak], points[-1]
            texts.append(
                f"The accuracy of {name} fell from {best:.1%} at step {best_step:,.0f} to {last:.1%} at step "
                f"{last_step:,.0f}. What to do: {nearer}a lower learning rate."
            )
    return texts


def _means(rows) -> dict[str, float]:
    names = {name for row in rows for name in row}
    values = {name: [row[name] for row in rows if row.get(name) is not None] for name in names}
    return {name: sum(series) / len(series) for name, series in values.items() if series}


def _little_overlap(run: RunFolder) -> list[str]:
    share = run.metrics.mean_of_last("valid_share", 1.0)
    text = "" if share is None else little_overlap(share)
    return [text] if text else []


def _damaged_exports(run: RunFolder) -> list[str]:
    return [
        f"In {export.path.name}, files are missing or differ from its manifest: {', '.join(export.wrong[:3])} "
        f"({count_text(len(export.wrong), 'file')}). What to do: export again."
        for export in run.exports
        if export.wrong
    ]
