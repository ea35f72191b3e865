"""Ends a run that diverges or reads too many bad images. Warns of collapse, falling accuracies and little overlap."""

from __future__ import annotations

import json
import logging
import math
from collections import deque
from collections.abc import Callable
from pathlib import Path

from dupr_tf.config import Config
from dupr_tf.errors import Diverged
from dupr_tf.files import write_whole
from dupr_tf.records import MISTAKES, listing, whole
from dupr_tf.text import one_line
from dupr_tf.training.callbacks import StepCallback
from dupr_tf.training.collapse import (
    USUAL_MOMENTUM,
    WINDOW,
    little_overlap,
    patience,
    peak_of_fallen,
    signs_of_collapse,
    watched_for_decline,
)

log = logging.getLogger(__name__)
DIVERGED_FILE = "diverged.json"
DECLINE = "decline"  # name of the state of `WarnOfDecline` in a checkpoint
DIGITS = 5  # of a mean accuracy


class StopOnDivergence(StepCallback):
    """Ends the run at a step whose loss or new weights are not finite, and records the images of its batch.

    `DUPR.train_step` logs a loss of NaN for both. This callback comes before those that log and save, so that the
    newest checkpoint is from before the step.

    Args:
        run: the run's folder; receives diverged.json.
        batch_images: step, from 0 -> paths of the images of its batch.
        first_step: step from which the run starts.
    """

    def __init__(self, run: Path, batch_images: Callable[[int], list[str]], first_step: int = 0):
        super().__init__(first_step)
        self.path, self.batch_images = Path(run) / DIVERGED_FILE, batch_images

    def on_step(self, step, logs):
        if math.isfinite(logs["loss"]):
            return
        scalars = {name: float(value) if math.isfinite(value) else str(float(value)) for name, value in logs.items()}
        terms = {name: value for name, value in scalars.items() if name.startswith("loss/")}
        entry = {"step": step, "learning_rate": scalars["learning_rate"], "loss_terms": terms}
        entry["images"] = self.batch_images(step - 1)
        write_whole(self.path, json.dumps(entry, indent=2, ensure_ascii=False) + "\n")
        which = [name for name, value in terms.items() if isinstance(value, str)]
        raise Diverged(
            f"The run diverged at step {step}: {', '.join(which) or 'gradients or weights'} became NaN or infinite. "
            f"Nothing was saved after it; its images are listed in {self.path}. Look at them, or run again with "
            "--allow-change and a lower --optimizer.learning_rate, more --optimizer.warmup_steps, or --train.precision "
            "float32."
        )


class WarnOfCollapse(StepCallback):
    """Warns once if a loss stays at the value of guessing, or the keys of a level all become the same.

    Every young run looks like that (`signs_of_collapse`) while its banks fill. The check therefore starts after
    `patience` steps and a window of steps.

    Args:
        config: config of the run.
        first_step: step from which the run starts.
    """

    def __init__(self, config: Config, first_step: int = 0):
        super().__init__(first_step)
        self.keys, self.patience = config.model.bank_sizes, patience(config)
        self.window: deque[dict] = deque(maxlen=WINDOW)
        self._warned = False

    def on_step(self, step, logs):
        if self._warned or step <= self.patience:
            return
        self.window.append(logs)
        if len(self.window) == WINDOW and step % WINDOW == 0:
            self._look(step)

    def _look(self, step):
        mean = {name: sum(logs[name] for logs in self.window) / WINDOW for name in self.window[0]}
        signs = signs_of_collapse(mean, self.keys)
        if signs:
            self._warned = True
            log.warning(
                "the run may have collapsed by step %d (%s). Likely causes: a learning rate too high (or 0), too few "
                "--optimizer.warmup_steps, images that are all alike, --model.temperature far from 0.2, a "
                "--model.momentum too low for the bank",
                step, "; ".join(signs),
            )  # fmt: skip


class WarnOfLittleOverlap(StepCallback):
    """Warns once if too few pairs of a window of steps overlap enough for a patch loss (`little_overlap`).

    Args:
        config: config of the run. Without a patch term, nothing is watched.
        first_step: step from which the run starts.
    """

    def __init__(self, config: Config, first_step: int = 0):
        super().__init__(first_step)
        self._shares: list[float] | None = [] if config.model.patch_sizes else None

    def on_step(self, step, logs):
        if self._shares is None or "valid_share" not in logs:
            return
        self._shares.append(float(logs["valid_share"]))
        if len(self._shares) == WINDOW:
            text = little_overlap(sum(self._shares) / WINDOW)
            self._shares = None if text else []
            if text:
                log.warning("%s", text)


class WarnOfDecline(StepCallback):
    """Warns once for each term whose accuracy stays far below its peak for long (`peak_of_fallen`).

    A momentum that rises to 1 makes accuracies fall, so that such runs are not watched. The steps before `patience` do
    not count. After a resume from a checkpoint without `saved`, only later steps do.

    Args:
        config: config of the run.
        first_step: step from which the run starts.
        saved: contents of the restored checkpoint, with the result of `state`.
    """

    def __init__(self, config: Config, first_step: int = 0, saved: dict | None = None):
        super().__init__(first_step)
        self.keys, self.momentum = watched_for_decline(config), config.model.momentum
        self.first = max(first_step, patience(config))
        self.windows: dict[str, list[float]] = {name: [] for name in self.keys}
        self._sums = dict.fromkeys(self.keys, 0.0)
        if saved and DECLINE in saved:
            self._restore(saved[DECLINE])

    def state(self):
        return {DECLINE: {"first": self.first, "windows": self.windows, "sums": self._sums}} if self.keys else {}

    def _restore(self, saved) -> None:
        """Continues with the means and sums of a checkpoint."""
        try:
            windows = {name: _numbers(saved["windows"][name]) for name in self.keys if name in saved["windows"]}
            sums = {name: _numbers([saved["sums"][name]])[0] for name in windows}
            self.first, self.windows, self._sums = whole(saved["first"]), windows, sums
        except MISTAKES as error:
            log.warning("earlier accuracies in the checkpoint cannot be used: %s", one_line(error, 100))

    def on_step(self, step, logs):
        if step <= self.first:
            return
        for name in [name for name in self.windows if f"accuracy/{name}" in logs]:
            self._sums[name] += float(logs[f"accuracy/{name}"])
            if (step - self.first) % WINDOW == 0:
                self.windows[name].append(round(self._sums[name] / WINDOW, DIGITS))
                self._sums[name] = 0.0
                self._look(name, step)

    def _look(self, name, step):
        means = self.windows[name]
        peak = peak_of_fallen(means, self.keys[name])
        if peak is None:
            return
        del self.windows[name]
        low = f"a --model.momentum of {self.momentum:g}, where {USUAL_MOMENTUM} or more is usual, or "
        log.warning(
            "the accuracy of %s has fallen from %.1f %% at step %d to %.1f %% at step %d. Likely cause: %sa learning "
            "rate too high",
            name, 100 * means[peak], self.first + WINDOW * (peak + 1), 100 * means[-1], step,
            low if self.momentum < USUAL_MOMENTUM else "",
        )  # fmt: skip


def _numbers(values) -> list[float]:
    """Returns a list of finite numbers. Raises ValueError for other values."""
    if not all(type(value) in (int, float) and math.isfinite(value) for value in listing(values)):
        raise ValueError("expected numbers")
    return values


class CheckBadImages(StepCallback):
    """Ends the run once more images are unreadable than allowed."""

    def __init__(self, bad, first_step: int = 0):
        super().__init__(first_step)
        self.bad = bad

    def on_step(self, step, logs):
        self.bad.check(running=True)
