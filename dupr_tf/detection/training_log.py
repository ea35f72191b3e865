"""What a fine-tuning run says while it trains."""

from __future__ import annotations

import json
import time
from pathlib import Path

import keras
import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from dupr_tf.errors import RunFailed
from dupr_tf.whole_files import GrowingFile


class TrainingLog(keras.callbacks.Callback):
    """Writes the mean of every loss over `log_every` steps to a file and shows progress.

    Args:
        path: a file of JSON lines.
        steps: of the run.
        batch_size: images a step.
        log_every: steps.
        console: a bar where it is a terminal, else a line for each entry.
    """

    def __init__(self, path: Path, steps: int, batch_size: int, log_every: int, console: Console):
        super().__init__()
        self.path, self.steps, self.batch_size, self.log_every = path, steps, batch_size, log_every
        self.console, self.step, self.started = console, 0, 0.0
        self.seconds, self.images_per_second = 0.0, 0.0
        self.bar = Progress(
            TextColumn("fine-tuning"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[state]}"),
            TimeRemainingColumn(),
            console=console,
            disable=not console.is_terminal,
        )
        self.task = self.bar.add_task("", total=steps, state="")

    def on_train_begin(self, logs=None):
        self.path.write_text("", encoding="utf-8")
        self.lines = GrowingFile(self.path)
        self.started = self.first_done = time.perf_counter()
        self.bar.start()

    def on_train_batch_end(self, batch, logs=None):
        self.step += 1
        if self.step == 1:
            self.first_done = time.perf_counter()  # the first step is mostly tracing
        self.bar.update(self.task, completed=self.step)
        if self.step % self.log_every == 0 or self.step == self.steps:
            self._write({name: float(value) for name, value in logs.items()})
            self.model.reset_metrics()  # Keras' own running mean would be over the whole epoch

    def on_train_end(self, logs=None):
        self.bar.stop()
        self.lines.flush()

    def _write(self, logs: dict[str, float]) -> None:
        now = time.perf_counter()
        self.seconds = now - self.started
        timed = (self.step - 1) / (now - self.first_done) if self.step > 1 else self.step / self.seconds
        self.images_per_second = timed * self.batch_size
        losses = {"loss": logs["loss"], **{name: value for name, value in logs.items() if name.endswith("_loss")}}
        entry = {
            "step": self.step,
            **losses,
            "learning_rate": float(self.model.optimizer.learning_rate),
            "images_per_second": round(self.images_per_second, 2),
            "seconds": round(self.seconds, 1),
        }
        self.lines.add(json.dumps(entry) + "\n")
        state = f"loss {losses['loss']:.3f}, {self.images_per_second:.1f} images/s"
        self.bar.update(self.task, state=state)
        if not self.console.is_terminal:
            left = (self.steps - self.step) / timed
            self.console.print(f"step {self.step}/{self.steps}, {state}, {left / 60:.1f} min left")
        if not np.isfinite(losses["loss"]):
            self.bar.stop()
            raise RunFailed(
                f"The loss is {losses['loss']} at step {self.step}. "
                "Lower optimizer.learning_rate, or raise optimizer.warmup_steps."
            )
