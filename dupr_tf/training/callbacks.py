"""Callbacks that act between steps: they validate, save and check. `loop.train` calls them in order."""

from __future__ import annotations

import functools
import logging
import math
import time
from collections.abc import Callable

import keras
import numpy as np

from dupr_tf.errors import Diverged, RunInterrupted

log = logging.getLogger(__name__)


class StepCallback(keras.callbacks.Callback):
    """Counts optimiser steps from `first_step`, across `fit` calls; subclasses get `on_step(step, logs)`."""

    def __init__(self, first_step: int = 0):
        super().__init__()
        self.step = first_step

    def on_train_batch_end(self, batch, logs=None):
        self.step += 1
        self.on_step(self.step, logs or {})

    def on_step(self, step: int, logs: dict) -> None:
        raise NotImplementedError

    def state(self) -> dict:
        """Returns what a checkpoint must keep, {name: JSON value}."""
        return {}


class StopOnNonFinite(StepCallback):
    """Ends the run at a step whose loss is not finite, before that step is logged or saved."""

    def on_step(self, step, logs):
        if not math.isfinite(logs["loss"]):
            raise Diverged(
                f"The loss is {float(logs['loss'])} at step {step}. "
                "Lower optimizer.learning_rate, or raise optimizer.warmup_steps."
            )


# () -> {name: number} and {name: picture (H, W, 3) uint8}. It must not change the model.
Validation = Callable[[], tuple[dict[str, float], dict[str, np.ndarray]]]


class Validate(StepCallback):
    """Validates every `every` steps and at the end; the results go into the step's line of the metrics.

    It comes before the callbacks that log and save. A run that is killed in between validates again.

    Args:
        validation: the function to call.
        every: steps between two validations.
        first_step, last_step: steps of this start of the run.
        name: results are logged as `name/…`, and their duration as `seconds/names`.

    Attributes:
        metrics: the `MetricsLog` that receives the results.
    """

    def __init__(self, validation: Validation, every: int, first_step: int, last_step: int, name: str = "validation"):
        super().__init__(first_step)
        self.validation, self.every, self.last_step, self.name = validation, every, last_step, name
        self.metrics = None

    def on_step(self, step, logs):
        if step % self.every and step != self.last_step:
            return
        start = time.perf_counter()
        numbers, pictures = self.validation()
        seconds = time.perf_counter() - start
        named = {f"{self.name}/{name}": float(value) for name, value in numbers.items()}
        pictures = {f"{self.name}/{name}": picture for name, picture in pictures.items()}
        self.metrics.note({**named, f"seconds/{self.name}s": seconds}, pictures, seconds)


# Maps a backbone that takes normalised images to {name: number} and {name: picture (H, W, 3) uint8}.
Probe = Callable[[object], tuple[dict[str, float], dict[str, np.ndarray]]]


class RunProbes(Validate):
    """Probes the backbone every `every` steps and at the end. The metrics get `probe/NAME` and `seconds/probes`.

    Args:
        probe: function that must not change the backbone.
        backbone: the query encoder's backbone.
        every: steps between two probes.
        first_step, last_step: steps of this start of the run.
    """

    def __init__(self, probe: Probe, backbone, every: int, first_step: int, last_step: int):
        super().__init__(functools.partial(probe, backbone), every, first_step, last_step, "probe")


class SaveCheckpoints(StepCallback):
    """Saves at an interval of steps or seconds, and warns once if saving takes more than a fiftieth of the time.

    Args:
        checkpoints: checkpoints of the run.
        first_step: step from which the run starts.
        every: steps (int) or seconds (float) between two saves.
    """

    SHARE = 0.02
    FAIR_TRIAL = 60.0  # seconds of running before the share is checked

    def __init__(self, checkpoints, first_step: int, every: int | float):
        super().__init__(first_step)
        self.checkpoints, self.every = checkpoints, every
        self.spent, self._since, self._saved = 0.0, None, None
        self._warned = False

    def on_train_batch_begin(self, batch, logs=None):
        if self._since is None:
            self._since = self._saved = time.monotonic()

    def on_step(self, step, logs):
        now = time.monotonic()
        due = step % self.every == 0 if isinstance(self.every, int) else now - self._saved >= self.every
        if not due:
            return
        self.checkpoints.save()
        self._saved = time.monotonic()
        self.spent += self._saved - now
        elapsed = self._saved - self._since
        if not self._warned and elapsed > self.FAIR_TRIAL and self.spent > self.SHARE * elapsed:
            self._warned = True
            log.warning(
                "saving checkpoints takes %.1f %% of the time; a longer --train.checkpoint_every saves less often",
                100 * self.spent / elapsed,
            )


class StopOnSignal(StepCallback):
    """Saves and raises `RunInterrupted` after the step in which a signal came.

    Args:
        received: list from `signals.noted_signals`.
        checkpoints: checkpoints of the run.
        first_step: step from which the run starts.
    """

    def __init__(self, received: list[int], checkpoints, first_step: int = 0):
        super().__init__(first_step)
        self.received, self.checkpoints = received, checkpoints

    def on_step(self, step, logs):
        if self.received:
            self.checkpoints.save()
            raise RunInterrupted(self.received[0], step)
