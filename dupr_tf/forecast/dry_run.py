"""Performs the dry run of `pretrain`: builds the run, takes a few real steps and reports the costs."""

from __future__ import annotations

import dataclasses
import resource
import sys
import time
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf

from dupr_tf.config import Config
from dupr_tf.data.pipeline import view_pairs
from dupr_tf.errors import RunFailed
from dupr_tf.forecast.machine import Forecast, forecast_here
from dupr_tf.text import duration, size_text
from dupr_tf.training.distribution import choose_strategy, replicas, scope
from dupr_tf.training.feed import feed
from dupr_tf.training.pool import Pool, open_pool
from dupr_tf.training.pretrain import check_images, compiled_model

STEPS = 2  # timed steps, after one step that traces and one that warms up
WARM_UP = 2


@dataclasses.dataclass(frozen=True)
class DryRun:
    """Holds the forecast of a run on this machine, and the measurements of a few real steps."""

    forecast: Forecast
    peak_memory: int  # most bytes this process has held, including TensorFlow and Python
    input_ms: float  # per image, input pipeline alone
    step_ms: float  # per image, step alone, with its batch in memory
    gpu: bool  # True if the step runs on a GPU, so that reading does not take its time
    first_step_seconds: float  # including tracing
    batch_size: int
    total_steps: int
    loss: float

    @property
    def images_per_second(self) -> float:
        """Returns the speed of input and step together. The steps timed here find their images read already."""
        together = max(self.input_ms, self.step_ms) if self.gpu else self.input_ms + self.step_ms
        return 1e3 / together

    @property
    def hours(self) -> float:
        """Returns the hours of the whole run at this speed."""
        return self.total_steps * self.batch_size / self.images_per_second / 3600

    @property
    def limit(self) -> str:
        """States in one sentence if reading images or the step limits the speed."""
        share = self.input_ms / (self.input_ms + self.step_ms)
        if self.input_ms > self.step_ms:
            return f"reading images decides ({share:.0%} of the work). Fix: more CPU cores, or smaller files"
        return f"the step decides; reading images is {share:.0%} of the work"

    def rows(self) -> list[tuple[str, str]]:
        """Returns (name, value) pairs to print: the forecast, then the measurements."""
        return [
            *self.forecast.rows(),
            ("memory, measured", f"{size_text(self.peak_memory)} (the whole process)"),
            ("first step", f"{self.first_step_seconds:.1f} s (tracing included), loss {self.loss:.3f}"),
            ("input alone", f"{self.input_ms:.2f} ms an image"),
            ("step alone", f"{self.step_ms:.2f} ms an image"),
            ("together", f"{self.images_per_second:.1f} images/s: {self.limit}"),
            ("the whole run", f"{self.total_steps:,} steps of {self.batch_size} in {duration(3600 * self.hours)}"),
        ]


def dry_run(config: Config, data: str | Path | None = None, pool: Pool | None = None) -> DryRun:
    """Takes a few steps of a run without writing anything.

    Args:
        config: the experiment.
        data: folder of images, COCO or VOC root, shards, or `tfds:NAME`. Default: `config.data.root`.
        pool: the images, if they are open already.

    Raises:
        UserError: any that `pretrain` would raise.
        RunFailed: the loss is not finite.
    """
    setting = config.train.strategy
    strategy = choose_strategy("auto" if setting == "multi_worker" else setting)  # for this machine alone
    pool = pool or open_pool(config, data)
    config, source, bad = pool.config, pool.source, check_images(pool, replicas(strategy))
    with scope(strategy):
        model = compiled_model(config, len(source), replicas=replicas(strategy))
    batch, steps = config.train.batch_size, WARM_UP + STEPS
    with view_pairs(source, config, 0, steps, bad) as batches:
        start = time.perf_counter()
        *_, last_batch = batches
        input_seconds = (time.perf_counter() - start) / steps
    with view_pairs(source, config, 0, steps, bad) as batches:
        both = _fit(model, feed(batches), steps)
    alone = _fit(model, tf.data.Dataset.from_tensors(last_batch).repeat(steps), steps)
    if not np.isfinite(both.loss):
        raise RunFailed(f"The loss is {both.loss} after {steps} steps. Use a lower --optimizer.learning_rate.")
    peak_memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return DryRun(
        forecast=forecast_here(config, len(source), replicas(strategy), model),
        peak_memory=peak_memory,
        input_ms=1e3 * input_seconds / batch,
        step_ms=1e3 * alone.seconds_each / batch,
        gpu=bool(tf.config.list_logical_devices("GPU")),
        first_step_seconds=both.first,
        batch_size=batch,
        total_steps=config.total_steps(len(source)),
        loss=both.loss,
    )


class _Clock(keras.callbacks.Callback):
    """Records when each step of a `fit` ended."""

    def __init__(self):
        super().__init__()
        self.ends, self.loss = [], float("nan")

    def on_train_begin(self, logs=None):
        self.ends.append(time.perf_counter())

    def on_train_batch_end(self, batch, logs=None):
        self.loss = float(logs["loss"])  # waits for the step
        self.ends.append(time.perf_counter())

    @property
    def first(self) -> float:
        return self.ends[1] - self.ends[0]

    @property
    def seconds_each(self) -> float:
        return (self.ends[-1] - self.ends[WARM_UP]) / STEPS


def _fit(model, batches, steps):
    clock = _Clock()
    model.fit(batches, steps_per_epoch=steps, epochs=1, shuffle=False, verbose=0, callbacks=[clock])
    return clock
