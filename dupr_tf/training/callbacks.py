"""What happens between the steps: the progress line, metrics.jsonl, TensorBoard, checkpoints, the end of a run."""

from __future__ import annotations

import json
import logging
import math
import time
from pathlib import Path

import keras
import tensorflow as tf
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from dupr_tf.remote_path import as_path
from dupr_tf.text import duration
from dupr_tf.whole_files import GrowingFile, write_whole

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


class MetricsLog(StepCallback):
    """Writes a line of scalars every `every` steps: to metrics.jsonl, to TensorBoard, and to the screen.

    `images_per_second` and `step_share`, the share of the time that steps took, their images included, are of the time
    since the line before; the rest went to checkpoints and to these lines.

    Args:
        run: the run's folder.
        first_step, last_step: of this start of the run; later lines of an earlier, killed start are removed.
        steps_per_epoch: for the epoch column.
        batch_size: for images/s.
        every: steps between two lines.
    """

    def __init__(self, run: Path, first_step: int, last_step: int, steps_per_epoch: int, batch_size: int, every: int):
        super().__init__(first_step)
        self.path = as_path(run) / "metrics.jsonl"
        self.last_step, self.steps_per_epoch = last_step, steps_per_epoch
        self.batch_size, self.every = batch_size, every
        self.writer = tf.summary.create_file_writer(str(as_path(run) / "tensorboard"))
        self.progress, self.task = progress_line(last_step, first_step)
        drop_lines_after(self.path, first_step)
        self.lines = GrowingFile(self.path)
        self._since, self._since_step = None, first_step
        self._begun, self._in_steps = 0.0, 0.0  # when this step began, and seconds in steps since the last line
        self._noted, self._pictures = {}, {}

    def note(self, scalars: dict[str, float], pictures: dict, seconds: float) -> None:
        """Has this step's line written, with these scalars in it, and pictures (H, W, 3) uint8 in TensorBoard.

        The seconds they took do not count as training in `images_per_second`.
        """
        self._noted, self._pictures = scalars, pictures
        if self._since is not None:
            self._since += seconds
            self._begun += seconds

    def on_train_batch_begin(self, batch, logs=None):
        self._begun = time.perf_counter()
        if self._since is None:
            self.progress.start()
            self._since = self._begun

    def on_step(self, step, logs):
        self._in_steps += time.perf_counter() - self._begun
        if step % self.every == 0 or step == self.last_step or self._noted:
            self._write(step, {name: float(value) for name, value in logs.items()})
        else:
            self.progress.update(self.task, completed=step)

    def _write(self, step, scalars):
        now = time.perf_counter()
        seconds = max(now - self._since, 1e-9)
        rate, share = (step - self._since_step) * self.batch_size / seconds, self._in_steps / seconds
        self._since, self._since_step, self._in_steps = now, step, 0.0
        line = {"step": step, "epoch": step / self.steps_per_epoch, **scalars}
        line |= {"images_per_second": rate, "step_share": share, **self._noted}
        self.lines.add(json.dumps({k: v if math.isfinite(v) else None for k, v in line.items()}) + "\n")
        with self.writer.as_default(step=step):
            for name, value in line.items():
                tf.summary.scalar(name, value)
            for name, picture in self._pictures.items():
                tf.summary.image(name, picture[None])
        self._noted, self._pictures = {}, {}
        text = f"loss {scalars['loss']:.4f}  {rate:.1f} images/s"
        self.progress.update(self.task, completed=step, text=text)
        if not self.progress.console.is_terminal:
            left = (self.last_step - step) * self.batch_size / max(rate, 1e-9)
            self.progress.console.print(f"step {step}/{self.last_step}  {text}  ETA {duration(left)}")

    def flush(self) -> dict:
        """Has every line where the file is; returns {}: a checkpoint holds nothing of this."""
        self.lines.flush()
        return {}

    def close(self) -> None:
        self.progress.stop()
        self.writer.close()
        self.lines.flush()


class SaveCheckpoints(StepCallback):
    """Saves every so many steps or seconds, and says so once if that takes more than a fiftieth of the time.

    Args:
        checkpoints: of the run.
        first_step: the run starts from.
        every: steps (int) or seconds (float) between two saves.
    """

    SHARE = 0.02
    FAIR_TRIAL = 60.0  # seconds of running before the share is looked at

    def __init__(self, checkpoints, first_step: int, every: int | float):
        super().__init__(first_step)
        self.checkpoints, self.every = checkpoints, every
        self.spent, self._since, self._saved = 0.0, None, None
        self._told = False

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
        if not self._told and elapsed > self.FAIR_TRIAL and self.spent > self.SHARE * elapsed:
            self._told = True
            log.warning(
                "saving checkpoints takes %.1f %% of the time; a longer --train.checkpoint_every saves less often",
                100 * self.spent / elapsed,
            )


class CheckBadImages(StepCallback):
    """Ends the run once more images are unreadable than allowed."""

    def __init__(self, bad, first_step: int = 0):
        super().__init__(first_step)
        self.bad = bad

    def on_step(self, step, logs):
        self.bad.check(running=True)


def progress_line(total: int, completed: int = 0) -> tuple[Progress, int]:
    """A progress bar over steps on standard error, and its task; silent where that is no terminal."""
    console = Console(stderr=True, highlight=False)
    progress = Progress(
        TextColumn("{task.completed}/{task.total}"),
        BarColumn(),
        TextColumn("{task.fields[text]}"),
        TimeElapsedColumn(),
        TextColumn("ETA"),
        TimeRemainingColumn(),
        console=console,
        disable=not console.is_terminal,
    )
    return progress, progress.add_task("steps", total=total, completed=completed, text="tracing the step …")


def drop_lines_after(path: Path, step: int) -> None:
    """Removes the lines of a metrics file after `step`, and unreadable ones, which is said but of the last."""
    if not path.exists():
        return
    kept, lines = [], path.read_text(encoding="utf-8", errors="replace").splitlines()
    for number, line in enumerate(lines, 1):
        try:
            if int(json.loads(line)["step"]) <= step:
                kept.append(line + "\n")
        except (ValueError, KeyError, TypeError):
            if number < len(lines):  # the last was cut short by a kill
                log.warning("line %d of %s cannot be read and is left out", number, path)
    write_whole(path, "".join(kept))
