"""Trains and measures detectors on labels that `finetune` has checked."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path

import keras
from rich.console import Console

from dupr_tf.config import Config, DataConfig
from dupr_tf.config.detectors import DETECTORS
from dupr_tf.data.detection import TrainingExamples
from dupr_tf.data.inspection import count_boxes
from dupr_tf.data.labels.annotations import AnnotatedImages
from dupr_tf.detection.finetune import DETECTOR_FILE, METRICS_FILE
from dupr_tf.detection.labels import LABELS, layout_of, read_evaluated
from dupr_tf.detection.precise_bn import measure_norms
from dupr_tf.detection.registry import TASKS, build_detector, task_of
from dupr_tf.detection.saving import export_detector, load_detector, save_detector
from dupr_tf.errors import raise_all
from dupr_tf.files import write_whole
from dupr_tf.locks import locked
from dupr_tf.models.resnet import build_backbone
from dupr_tf.records import mapping, read_record
from dupr_tf.text import visible
from dupr_tf.training.callbacks import StepCallback, StopOnNonFinite
from dupr_tf.training.checkpoints import RunCheckpoints
from dupr_tf.training.distribution import choose_strategy, replicas, scope
from dupr_tf.training.loop import chief_callbacks
from dupr_tf.training.loop import train as run_steps
from dupr_tf.training.metrics_log import MetricsLog, training_speed
from dupr_tf.training.optimizers import AdamW, CoupledSGD, planned_schedule
from dupr_tf.training.run import record, run_id, starting_weights
from dupr_tf.training.schedule import next_schedule, write_schedule
from dupr_tf.training.signals import noted_signals


def train_detector(
    config: Config,
    weights,
    data,
    output: Path,
    console: Console,
    splits: tuple,
    entries: dict,
    changed: bool,
    after_change: str | None = None,
) -> dict:
    """Runs `finetune` after its checks.

    Args:
        config, weights, data, output, console: as in `finetune`.
        splits: result of `labels.read_splits`.
        entries: entries of the record, {split: `labels_entry`}.
        changed: True if the run is resumed with another config or other data.
        after_change: as in `finetune`.
    """
    strategy, task = choose_strategy(config.train.strategy), DETECTORS[config.detector.kind].facts["task"]
    raise_all(config.finetune_problems(replicas(strategy)))
    train, val, ids = splits
    keras.utils.set_random_seed(config.train.seed)
    with scope(strategy):
        backbone, start = starting_weights(output, config, weights, include_normalization=True)
        if backbone is None:
            backbone = build_backbone(config.model.backbone, config.model.width, include_normalization=True)
    if (output / METRICS_FILE).exists() and not changed:
        console.print(visible(f"{output} has ended before; its metrics are in {METRICS_FILE}"))
        return read_record(output / METRICS_FILE, mapping, "Remove it to evaluate the detector again.")
    images = LABELS[task].learnable(train)
    with scope(strategy):
        detector = build_detector(backbone, train.class_names, config)
        detector.compile(detector_optimizer(config, images, detector.backbone))
    with locked(output):
        checkpoints = RunCheckpoints(detector, output / "checkpoints", config.train.keep_checkpoints, run_id(output))
        first = checkpoints.restore()
        schedule = next_schedule(output, config, images, first, changed, after_change)
        detector.optimizer.learning_rate = schedule.rates(config)
        (output / METRICS_FILE).unlink(missing_ok=True)  # that of the run before a change
        write_schedule(output, schedule)
        record(output, config, entries, start)
        checkpoints.run = run_id(output)
        _write_ids(output, ids)
        console.print(_plan(config, train, val, images, replicas(strategy)))
        if first:
            console.print(f"resuming at step {first}")
        _train(detector, checkpoints, output, config, task, train, first, console, schedule)
        measured = _measure_norms(detector, train, config, task, console)
        save_detector(detector, output / DETECTOR_FILE)
        export_detector(detector, output / "saved_model")

        console.print(f"evaluating on {len(val)} images")
        layout = layout_of(data, "val", config.data.kind)
        scores = TASKS[task].measure(detector, val, output, layout, config.data)
        facts = _circumstances(config, output, images, weights, train, val)
        metrics = {**scores, **facts, "precise_bn_batches": measured}
        _write_json(output / METRICS_FILE, metrics)
    return metrics


def _train(
    detector, checkpoints: RunCheckpoints, output: Path, config: Config, task, train, first: int, console, schedule
):
    """Trains from a step to the last, and saves a checkpoint of the last."""
    images, settings = LABELS[task].learnable(train), config.train
    per_epoch, total = config.steps_per_epoch(images), config.total_steps(images)
    with contextlib.ExitStack() as stack:
        signals = stack.enter_context(noted_signals())
        state = checkpoints.extra
        metrics = MetricsLog(
            output, first, total, per_epoch, settings.batch_size, settings.log_every, state, console,
            epochs=(schedule.since_step, schedule.since_epoch),
        )  # fmt: skip
        stack.callback(metrics.close)
        guards = [StopOnNonFinite(first)]
        if isinstance(train, AnnotatedImages):
            guards.append(LogLostBoxes(first, total, train, config))
        callbacks = chief_callbacks(metrics, checkpoints, settings.checkpoint_interval, signals, guards)
        run_steps(
            detector,
            lambda begin, end: TASKS[task].batches(train, config, end, start=begin),
            (first, total),
            per_epoch,
            callbacks,
        )
        if total > first:
            checkpoints.save()


class LogLostBoxes(StepCallback):
    """Adds `boxes_lost` to a step that is logged: the share of its boxes that train nothing, as in `BoxCounts`.

    Args:
        first: step at the start.
        last: last step of the run.
        train: the training split.
        config: as for the batches.
    """

    def __init__(self, first: int, last: int, train: AnnotatedImages, config: Config):
        super().__init__(first)
        self.last, self.annotated, self.config = last, train, config
        self.examples = TrainingExamples(train, config)

    def on_step(self, step, logs):
        batch, every = self.config.train.batch_size, self.config.train.log_every
        if step % every == 0 or step == self.last:
            counts = count_boxes(self.annotated, self.config, (step - 1) * batch, batch, self.examples)
            if counts.boxes > counts.cropped:
                logs["boxes_lost"] = counts.lost_share


def measure_detector(file: Path, data, output: Path | None, split: str, section: DataConfig, images=None) -> dict:
    """Runs `evaluate` after its checks.

    Args:
        file: file of the detector.
        data, output, split: as in `evaluate`.
        section: settings for reading the data.
        images: images of the split. Default: they are read, with the classes of the detector.
    """
    detector = load_detector(file)
    task = task_of(detector)
    if images is None:
        images = read_evaluated(data, split, section, task, detector.class_names)
    if output is not None:
        output.mkdir(parents=True, exist_ok=True)
    scores = TASKS[task].measure(detector, images, output, layout_of(data, split, section.kind), section)
    metrics = {**scores, "split": split, "images": len(images)}
    if output is not None:
        _write_json(output / METRICS_FILE, metrics)
    return metrics


def _write_ids(output: Path, ids) -> None:
    if ids is not None:
        write_whole(output / "image_ids.txt", "".join(f"{one}\n" for one in ids))


def _plan(config: Config, train, val, images: int, devices: int) -> str:
    """Returns one line that describes the run."""
    kind, neck = config.detector.kind, config.detector.neck
    name = kind if "detector.neck" in DETECTORS[kind].facts["refuses"] else f"{kind} ({neck})"
    what = "" if images == len(train) else f" ({images} with boxes)"
    where = "" if devices == 1 else f" on {devices} devices"
    return (
        f"{name}: {len(train)} images to train on{what}, {len(val)} to evaluate on, {len(train.class_names)} classes, "
        f"{config.total_steps(images)} steps of {config.train.batch_size}{where}"
    )


def _measure_norms(detector, train, config: Config, task, console: Console) -> int:
    """Runs precise batch norm over the batches that would come next in training. Returns their number."""
    wanted = config.detector.precise_bn_images
    if not wanted:
        return 0
    count = -(-wanted // config.train.batch_size)
    console.print(f"measuring batch norms on {count} batches")
    steps = config.total_steps(LABELS[task].learnable(train))
    with TASKS[task].batches(train, config, steps + count, start=steps) as batches:
        return measure_norms(detector, batches)


def detector_optimizer(config: Config, images: int, backbone) -> keras.optimizers.Optimizer:
    """Creates SGD as in the paper's protocols, or AdamW, which learns more in a few hundred steps."""
    settings, detector, schedule = config.optimizer, config.detector, planned_schedule(config, images)
    slowed = backbone.trainable_variables if detector.backbone_rate != 1 else ()
    factors = {variable.path: detector.backbone_rate for variable in slowed}
    shared = {"rate_factors": factors, "global_clipnorm": detector.gradient_clip}
    if detector.optimizer == "adamw":
        return AdamW(schedule, settings.weight_decay, **shared)
    return CoupledSGD(schedule, settings.momentum, settings.weight_decay, **shared)


def _circumstances(config: Config, output: Path, images: int, weights, train, val) -> dict:
    seconds, rate = training_speed(output, config.train.batch_size)
    return {
        "detector": config.detector.kind,
        "steps": config.total_steps(images),
        "batch_size": config.train.batch_size,
        "images_per_second": round(rate, 2),
        "training_seconds": round(seconds, 1),
        "seed": config.train.seed,
        "weights": str(weights),
        "train_images": len(train),
        "val_images": len(val),
    }


def _write_json(path: Path, content: dict) -> None:
    write_whole(path, json.dumps(content, indent=2) + "\n")
