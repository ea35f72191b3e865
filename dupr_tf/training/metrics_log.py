"""Writes the log of a run: metrics.jsonl, TensorBoard and progress. Each number is a mean since the previous line."""

from __future__ import annotations

import json
import logging
import math
import os
import struct
import time
from collections import defaultdict, deque
from collections.abc import Iterator, Sequence
from pathlib import Path

import tensorflow as tf
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from dupr_tf.errors import UserError
from dupr_tf.files import open_file, write_whole
from dupr_tf.records import read_lines, read_metrics_line
from dupr_tf.text import count_text, duration, one_line
from dupr_tf.training.callbacks import StepCallback
from dupr_tf.training.tensorboard import FAILURES, TensorBoardEvents

log = logging.getLogger(__name__)
METRICS_FILE = "metrics.jsonl"
TENSORBOARD_FOLDER = "tensorboard"
PURGE = ".purge"  # ending of an event file; TensorBoard reads files by name, so it comes after the newest one before
MOST_PARTS = 4  # parts of the loss that the progress shows
TREND_LINES = 5  # lines before the newest that a trend compares with
STEADY = 0.02  # relative change below which a value counts as steady


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
        shown: scalars that the progress shows besides the loss. Default: the parts of the loss, at most `MOST_PARTS`.
        guessing: loss of a model that guesses, shown beside the loss.
        epochs: (step, epoch) from which `steps_per_epoch` counts.
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
        shown: Sequence[str] | None = None,
        guessing: float | None = None,
        epochs: tuple[int, float] = (0, 0.0),
    ):
        super().__init__(first_step)
        self.path = Path(run) / METRICS_FILE
        self.last_step, self.steps_per_epoch = last_step, steps_per_epoch
        self.batch_size, self.every = batch_size, every
        self.progress, self.task = progress_line(last_step, first_step, console)
        drop_lines_after(self.path, first_step)
        try:
            drop_events_after(Path(run) / TENSORBOARD_FOLDER, first_step)
        except FAILURES as error:
            log.warning("TensorBoard may show some steps twice: %s", one_line(error, 200))
        self.shown, self.guessing, self.epochs = shown, guessing, epochs
        self._shown_before: dict[str, deque] = defaultdict(lambda: deque(maxlen=TREND_LINES))
        self.events = TensorBoardEvents(Path(run) / TENSORBOARD_FOLDER)
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
        epoch = self.epochs[1] + (step - self.epochs[0]) / self.steps_per_epoch
        line = {"step": step, "epoch": epoch, **means}
        line |= {"images_per_second": rate, "step_share": share, **self._noted}
        saved = {name: value if math.isfinite(value) else None for name, value in line.items()}
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({**saved, "batch_size": self.batch_size}) + "\n")
        self.events.write(step, line, self._pictures)
        text = f"{self._describe(means)}  {rate:.1f} images/s" + _text_of(self._noted)
        self._noted, self._pictures, self._sums = {}, {}, {}
        self.progress.update(self.task, completed=step, text=text)
        if not self.progress.console.is_terminal:
            left = (self.last_step - step) * self.batch_size / max(rate, 1e-9)
            self.progress.console.print(
                f"step {step}/{self.last_step}  {text}  ETA {duration(left)}", markup=False, soft_wrap=True
            )

    def _describe(self, means: dict[str, float]) -> str:
        """Returns the loss, the level of guessing, and the scalars to show, each with its trend."""
        parts = [name for name in means if name.endswith("_loss")][:MOST_PARTS] if self.shown is None else self.shown
        texts = []
        for name in ("loss", *(name for name in parts if name in means)):
            before = self._shown_before[name]
            value = f"{means[name]:.1%}" if name.startswith("accuracy/") else f"{means[name]:.4f}"
            texts.append(f"{name.removeprefix('accuracy/')} {value}{trend(means[name], before)}")
            before.append(means[name])
        if self.guessing is not None:
            texts[0] += f" (guessing {self.guessing:.2f})"
        return "  ".join(texts)

    def flush(self) -> dict:
        """Flushes all files. Returns what a checkpoint of this step must keep as `state`."""
        self.events.flush()
        return {"sums": self._sums}

    def close(self) -> None:
        self.progress.stop()
        self.events.close()


def trend(value: float, before: Sequence[float]) -> str:
    """Returns an arrow: how a value compares with the mean of those before it. Empty without any."""
    if not before:
        return ""
    mean = sum(before) / len(before)
    if abs(value - mean) <= STEADY * abs(mean):
        return " →"
    return " ↑" if value > mean else " ↓"


def _text_of(noted: dict[str, float]) -> str:
    """Returns the part of the progress line about a validation: its scores and its duration."""
    start = "validation/"
    scores = [f"{name.removeprefix(start)} {value:.3f}" for name, value in noted.items() if name.startswith(start)]
    scores += [f"(validated in {noted['seconds/validations']:.1f} s)"] if scores else []
    return "".join(f"  {score}" for score in scores)


def validation_seconds(run: Path) -> float:
    """Returns the seconds that the validations of a run took by its metrics."""
    return sum(line.get("seconds/validations") or 0.0 for line in _lines(run))


def _lines(run: Path) -> list[dict]:
    return [line for line in read_lines(run / METRICS_FILE, read_metrics_line) if line]


def training_speed(run: Path, batch_size: int) -> tuple[float, float]:
    """Returns the seconds the steps of a run took by its metrics, and images/s without the first line (tracing).

    Args:
        run: folder of the run.
        batch_size: images per step of lines that do not name their own, as earlier versions wrote them.
    """
    lines = [line for line in _lines(run) if (line.get("images_per_second") or 0) > 0]
    if not lines:
        return 0.0, 0.0
    starts = [0, *(line["step"] for line in lines)]
    pairs = list(zip(lines, starts, strict=False))
    images = [(line["step"] - start) * (line.get("batch_size") or batch_size) for line, start in pairs]
    seconds = [count / line["images_per_second"] for count, line in zip(images, lines, strict=True)]
    timed = slice(1, None) if len(lines) > 1 else slice(None)
    return sum(seconds), sum(images[timed]) / sum(seconds[timed])


def progress_line(total: int, completed: int = 0, console: Console | None = None) -> tuple[Progress, int]:
    """Creates a progress bar over steps and its task. Default: on standard error, silent if that is no terminal."""
    console = console or Console(stderr=True, highlight=False)
    progress = Progress(
        TextColumn("{task.completed}/{task.total}"),
        BarColumn(),
        TextColumn("{task.fields[text]}", markup=False),
        TimeElapsedColumn(),
        TextColumn("ETA"),
        TimeRemainingColumn(),
        console=console,
        disable=not console.is_terminal,
    )
    return progress, progress.add_task("steps", total=total, completed=completed, text="tracing the step …")


def drop_lines_after(path: Path, step: int) -> None:
    """Removes lines from a metrics file: those after `step`, unreadable ones, and those not after the line before.

    It warns of the last two, except of a last line that a kill cut short.
    """
    if not os.path.lexists(path):
        return
    if not path.is_file():
        raise UserError(None, f"{path} is no file.", "Remove it, or choose another --output.")
    lines = list(read_lines(path, read_metrics_line))
    unreadable = [number for number, line in enumerate(lines, 1) if line is None]
    if unreadable[-1:] == [len(lines)]:  # a kill cut the last line short
        unreadable.pop()
    if unreadable:
        count, first = count_text(len(unreadable), "line"), unreadable[0]
        log.warning("%s of %s cannot be read and will be left out, such as line %d", count, path, first)
    kept, disordered = [], 0
    for line in filter(None, lines):
        if kept and line["step"] <= kept[-1]["step"]:  # lines of another run, or of two starts at the same time
            disordered += 1
        else:
            kept.append(line)
    if disordered:
        log.warning("%s of %s will be left out: an earlier one has its step", count_text(disordered, "line"), path)
    if kept and not step:
        log.warning("there is no checkpoint, so the training starts again, and its %s are removed from %s",
                    count_text(len(kept), "line"), path)  # fmt: skip
    write_whole(path, "".join(json.dumps(line) + "\n" for line in kept if line["step"] <= step))


def drop_events_after(folder: Path, step: int) -> None:
    """Removes TensorBoard's events after `step`, which a resumed run writes again, and truncated events.

    If TensorBoard has already read them, a new event makes it purge these steps.
    """
    if not folder.is_dir():
        return
    paths = sorted(path for path in folder.iterdir() if ".tfevents." in path.name)
    for path in paths:
        with open_file(path) as file:
            content = file.read()
        kept = [(record, event) for record, event in read_events(content) if event.step <= step]
        if path.name.endswith(".tmp") or not any(event.HasField("summary") for _, event in kept):
            path.unlink()
        elif (whole := b"".join(record for record, _ in kept)) != content:
            write_whole(path, whole)
    if paths and step:
        _write_purge(paths[-1].with_name(f"{paths[-1].name.removesuffix(PURGE)}{PURGE}"), step + 1)


def _write_purge(path: Path, step: int) -> None:
    """Writes an event file that makes TensorBoard forget events from a step on, which it read from earlier files."""
    start = tf.compat.v1.SessionLog(status=tf.compat.v1.SessionLog.START)
    with tf.io.TFRecordWriter(os.fsencode(path)) as file:
        purge = {"step": step, "session_log": start}
        for event in ({"file_version": "brain.Event:2"}, purge, purge):  # TensorBoard treats the first event as a start
            file.write(tf.compat.v1.Event(**event).SerializeToString())


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
