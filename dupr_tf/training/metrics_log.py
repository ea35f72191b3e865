"""The log of a run: metrics.jsonl, TensorBoard and a progress line. Each number is a mean since the previous line."""

from __future__ import annotations

import json
import logging
import math
import struct
import time
from collections.abc import Iterator
from pathlib import Path

import tensorflow as tf
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from dupr_tf.files import write_whole
from dupr_tf.text import duration
from dupr_tf.training.callbacks import StepCallback

log = logging.getLogger(__name__)
METRICS_FILE = "metrics.jsonl"
TENSORBOARD_FOLDER = "tensorboard"


class MetricsLog(StepCallback):
    """Writes a line of scalars every `every` steps: to metrics.jsonl, to TensorBoard, and to the screen.

    A scalar is the mean of the logged values of the steps since the previous line. The learning rate is that of these
    steps. `images_per_second` and `step_share` cover the time since the previous line. `step_share` is the share of
    that time spent in steps, including loading their images. The rest went to checkpoints and to these lines.

    Args:
        run: the run's folder.
        first_step, last_step: steps of this start. Later lines of an earlier, killed start are removed.
        steps_per_epoch: steps per epoch, for the epoch column.
        batch_size: images per step, for images/s.
        every: steps between two lines.
        state: result of `flush` at `first_step`, so that the next line equals that of an uninterrupted run.
        console: console for progress. Default: standard error.
    """

    def __init__(
        self,
        run: Path,
        first_step: int,
        last_step: int,
        steps_per_epoch: int,
        batch_size: int,
        every: int,
        state: dict | None = None,
        console: Console | None = None,
    ):
        super().__init__(first_step)
        self.path = Path(run) / METRICS_FILE
        self.last_step, self.steps_per_epoch = last_step, steps_per_epoch
        self.batch_size, self.every = batch_size, every
        self.progress, self.task = progress_line(last_step, first_step, console)
        drop_lines_after(self.path, first_step)
        drop_events_after(Path(run) / TENSORBOARD_FOLDER, first_step)
        self.writer = tf.summary.create_file_writer(str(Path(run) / TENSORBOARD_FOLDER))
        self._sums: dict[str, list] = (state or {}).get("sums", {})  # {name: [sum, count]} since the last line
        self._since, self._since_step = None, first_step
        self._step_start, self._in_steps = 0.0, 0.0  # start of this step, and seconds in steps since the last line
        self._noted, self._pictures = {}, {}
        self._rate, self._logs_rate = None, False

    def note(self, scalars: dict[str, float], pictures: dict, seconds: float) -> None:
        """Adds scalars to this step's line, and pictures (H, W, 3) uint8 to TensorBoard. The line is always written.

        The seconds they took do not count as training in `images_per_second`.
        """
        self._noted, self._pictures = scalars, pictures
        if self._since is not None:
            self._since += seconds
            self._step_start += seconds

    def on_train_batch_begin(self, batch, logs=None):
        if self.model is not None:
            self.model.reset_metrics()  # otherwise Keras logs means since the start of the epoch
            self._rate = None if self._logs_rate else float(self.model.optimizer.learning_rate)
        self._step_start = time.perf_counter()
        if self._since is None:
            self.progress.start()
            self._since = self._step_start

    def on_step(self, step, logs):
        self._in_steps += time.perf_counter() - self._step_start
        self._logs_rate = "learning_rate" in logs
        values = logs if self._logs_rate or self._rate is None else {**logs, "learning_rate": self._rate}
        for name, value in values.items():
            total, count = self._sums.get(name, (0.0, 0))
            self._sums[name] = [total + float(value), count + 1]
        if step % self.every == 0 or step == self.last_step or self._noted:
            self._write(step)
        else:
            self.progress.update(self.task, completed=step)

    def _write(self, step):
        now = time.perf_counter()
        seconds = max(now - self._since, 1e-9)
        rate, share = (step - self._since_step) * self.batch_size / seconds, self._in_steps / seconds
        self._since, self._since_step, self._in_steps = now, step, 0.0
        means = {name: total / count for name, (total, count) in self._sums.items()}
        line = {"step": step, "epoch": step / self.steps_per_epoch, **means}
        line |= {"images_per_second": rate, "step_share": share, **self._noted}
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({k: v if math.isfinite(v) else None for k, v in line.items()}) + "\n")
        with self.writer.as_default(step=step):
            for name, value in line.items():
                tf.summary.scalar(name, value)
            for name, picture in self._pictures.items():
                tf.summary.image(name, picture[None])
        text = f"loss {means['loss']:.4f}  {rate:.1f} images/s"
        text += _text_of(self._noted)
        self._noted, self._pictures, self._sums = {}, {}, {}
        self.progress.update(self.task, completed=step, text=text)
        if not self.progress.console.is_terminal:
            left = (self.last_step - step) * self.batch_size / max(rate, 1e-9)
            self.progress.console.print(f"step {step}/{self.last_step}  {text}  ETA {duration(left)}")

    def flush(self) -> dict:
        """Flushes all files. Returns what a checkpoint of this step must keep as `state`."""
        self.writer.flush()
        return {"sums": self._sums}

    def close(self) -> None:
        self.progress.stop()
        self.writer.close()


def _text_of(noted: dict[str, float]) -> str:
    """Returns the part of the progress line about a validation: its scores and its duration."""
    scores = [
        f"{name.partition('/')[2]} {value:.3f}" for name, value in noted.items() if name.startswith("validation/")
    ]
    scores += [f"(validated in {noted['seconds/validations']:.1f} s)"] if scores else []
    return "".join(f"  {score}" for score in scores)


def validation_seconds(run: Path) -> float:
    """Returns the seconds that the validations of a run took by its metrics."""
    return sum(line.get("seconds/validations", 0.0) for line in _lines(run))


def _lines(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / METRICS_FILE).read_text(encoding="utf-8").splitlines()]


def training_speed(run: Path, batch_size: int) -> tuple[float, float]:
    """Returns the seconds the steps of a run took by its metrics, and images/s without the first line (tracing)."""
    lines = _lines(run)
    steps = [line["step"] - before for line, before in zip(lines, [0, *(line["step"] for line in lines)], strict=False)]
    seconds = [count * batch_size / line["images_per_second"] for count, line in zip(steps, lines, strict=True)]
    timed = slice(1, None) if len(lines) > 1 else slice(None)
    return sum(seconds), sum(steps[timed]) * batch_size / sum(seconds[timed])


def progress_line(total: int, completed: int = 0, console: Console | None = None) -> tuple[Progress, int]:
    """Creates a progress bar over steps and its task. Default: on standard error, silent if that is no terminal."""
    console = console or Console(stderr=True, highlight=False)
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
    """Removes lines after `step` and unreadable lines from a metrics file. It warns of unreadable ones but the last."""
    if not path.exists():
        return
    kept, lines = [], path.read_text(encoding="utf-8", errors="replace").splitlines()
    for number, line in enumerate(lines, 1):
        try:
            if int(json.loads(line)["step"]) <= step:
                kept.append(line + "\n")
        except (ValueError, KeyError, TypeError):
            if number < len(lines):  # a kill cut the last line short
                log.warning("line %d of %s cannot be read and is left out", number, path)
    write_whole(path, "".join(kept))


def drop_events_after(folder: Path, step: int) -> None:
    """Removes TensorBoard's events after `step`, which a resumed run writes again, and truncated events."""
    if not folder.is_dir():
        return
    for path in [path for path in folder.iterdir() if ".tfevents." in path.name]:
        with path.open("rb") as file:
            content = file.read()
        kept = [(record, event) for record, event in read_events(content) if event.step <= step]
        if path.name.endswith(".tmp") or not any(event.HasField("summary") for _, event in kept):
            path.unlink()
        elif (whole := b"".join(record for record, _ in kept)) != content:
            write_whole(path, whole)


def read_events(content: bytes) -> Iterator[tuple[bytes, tf.compat.v1.Event]]:
    """Yields (record, event) of each whole record: length (8 bytes), its checksum (4), event, its checksum (4)."""
    at = 0
    while at + 12 <= len(content):
        end = at + 16 + struct.unpack_from("<Q", content, at)[0]
        if end > len(content):
            return
        try:
            yield content[at:end], tf.compat.v1.Event.FromString(content[at + 12 : end - 4])
        except ValueError:  # protobuf's DecodeError: the rest cannot be trusted
            return
        at = end
