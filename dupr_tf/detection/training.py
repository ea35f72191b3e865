"""Trains and measures detectors on labels that `finetune` has checked."""

from __future__ import annotations

import contextlib
import functools
import json
from pathlib import Path

import keras
from rich.console import Console

from dupr_tf.config import Config, DataConfig
from dupr_tf.config.detectors import DETECTORS
from dupr_tf.data.detection import TrainingExamples
from dupr_tf.data.inspection import count_boxes
from dupr_tf.data.labels.annotations import AnnotatedImages
from dupr_tf.detection.continuing import copy_weights, load_start
from dupr_tf.detection.curves import class_rows, score_lines, threshold_lines
from dupr_tf.detection.finetune import DETECTOR_FILE, LAST_FILE, METRICS_FILE, Checked
from dupr_tf.detection.precise_bn import measure_norms
from dupr_tf.detection.precision import set_precision
from dupr_tf.detection.registry import TASKS, build_detector, task_of
from dupr_tf.detection.saving import export_detector, load_detector, save_detector
from dupr_tf.detection.task_labels import LABELS, layout_of, read_evaluated
from dupr_tf.detection.validation import ValidateDetector, logged_scores, patience_is_over
from dupr_tf.errors import UserError, raise_all
from dupr_tf.files import draw_pictures, write_whole
from dupr_tf.locks import locked
from dupr_tf.models.resnet import build_backbone
from dupr_tf.records import mapping, read_record
from dupr_tf.text import visible
from dupr_tf.training.callbacks import StepCallback, StopOnNonFinite
from dupr_tf.training.checkpoints import RunCheckpoints
from dupr_tf.training.distribution import choose_strategy, replicas, scope
from dupr_tf.training.loop import chief_callbacks
from dupr_tf.training.loop import train as run_steps
from dupr_tf.training.metrics_log import MetricsLog, training_speed, validation_seconds
from dupr_tf.training.optimizers import AdamW, CoupledSGD, planned_schedule, scale_loss
from dupr_tf.training.run import record, refuse_late_changes, require_checkpoint, run_id, starting_weights
from dupr_tf.training.schedule import Schedule, next_schedule, write_schedule
from dupr_tf.training.signals import noted_signals
from dupr_tf.weights.paths import RANDOM

NEW_LAYERS = 2**31  # added to train.seed, which is below it


def train_detector(
    config: Config, weights, checked: Checked, output: Path, console: Console, after_change: str | None = None
) -> dict:
    """Runs `finetune` after its checks.

    Args:
        config, output, console, after_change: as in `finetune`.
        weights: what to load: as in `finetune`, or the file of a detector if `checked.continues`. None if a checkpoint
            has everything.
        checked: what the checks have read.
    """
    strategy, task = choose_strategy(config.train.strategy), DETECTORS[config.detector.kind].facts["task"]
    raise_all(config.finetune_problems(replicas(strategy)))
    train, val, _ = checked.splits
    keras.utils.set_random_seed(config.train.seed)
    with scope(strategy):
        backbone, earlier, start = _starting_point(config, weights, output, checked.continues)
    if (output / METRICS_FILE).exists() and not checked.changes:
        return _earlier_metrics(output, console)
    images = LABELS[task].learnable(train)
    # New layers do not depend on where the backbone comes from, and do not repeat the draws of a random one.
    keras.utils.set_random_seed(config.train.seed + NEW_LAYERS)
    with scope(strategy):
        detector = build_detector(backbone, train.class_names, config)
        if earlier is not None:
            console.print(copy_weights(detector, earlier))
        detector.compile(detector_optimizer(config, images, detector.backbone))
    with locked(output):
        checkpoints = RunCheckpoints(detector, output / "checkpoints", config.train.keep_checkpoints, run_id(output))
        first = checkpoints.restore()
        require_checkpoint(first, weights is not None, start)
        ended = patience_is_over(config.detector.patience, checkpoints.extra)
        refuse_late_changes(checked.changes, first, first if ended else config.total_steps(images))
        schedule = next_schedule(output, config, images, first, bool(checked.changes), after_change)
        detector.optimizer.learning_rate = schedule.rates(config)
        _record_start(config, output, checked, start, schedule)
        checkpoints.run = run_id(output)
        console.print(_plan(config, train, val, images, replicas(strategy)), soft_wrap=True)
        if first:
            console.print(f"resuming at step {first}")
        layout = layout_of(checked.data, "val", config.data.kind, task)
        measure = functools.partial(TASKS[task].measure, detector, val, layout, config.data)
        validation = _train(detector, checkpoints, output, config, task, train, first, console, schedule, measure)
        steps = int(checkpoints.step.numpy())
        scores, pictures, entry = _finish(detector, validation, measure, train, config, task, output, steps, console)
        facts = _circumstances(config, output, start, train, val)
        metrics = {**scores, **entry, **facts, "steps": steps}
        _write_json(output / METRICS_FILE, metrics)
        draw_pictures(pictures, output)
    return metrics


def _earlier_metrics(output: Path, console: Console) -> dict:
    """Returns the metrics of a run that has ended before. Raises UserError if its detector is missing."""
    if not (output / DETECTOR_FILE).is_file():
        problem = f"{output} has ended, but its {DETECTOR_FILE} is missing."
        fix = f"Restore it, or remove {METRICS_FILE} to write it again from the newest checkpoint."
        raise UserError("--output", problem, fix)
    console.print(visible(f"{output} has ended before; its metrics are in {METRICS_FILE}"))
    return read_record(output / METRICS_FILE, _printable, "Remove it to evaluate the detector again.")


def _printable(value) -> dict:
    """Returns the metrics of a run that has ended. Raises an error if they lack what is printed of them."""
    for lines in (score_lines, class_rows, threshold_lines):
        lines(mapping(value))
    return value


def _starting_point(config: Config, weights, output: Path, continues: bool) -> tuple:
    """Returns the backbone to train, the detector to continue from (or None), and the record of the weights."""
    load = functools.partial(load_start, config) if continues else None
    loaded, start = starting_weights(output, config, weights, include_normalization=True, load=load)
    if loaded is None:
        return build_backbone(config.model.backbone, config.model.width, include_normalization=True), None, start
    return (loaded.backbone, loaded, start) if continues else (loaded, None, start)


def _record_start(config: Config, output: Path, checked: Checked, start: dict | None, schedule: Schedule) -> None:
    (output / METRICS_FILE).unlink(missing_ok=True)  # the metrics of the run before a change
    write_schedule(output, schedule)
    record(output, config, checked.entries, start)
    checked.results.save()
    _write_ids(output, checked.splits[2])


def _finish(detector, validation, measure, train, config: Config, task, output: Path, steps: int, console) -> tuple:
    """Writes the trained detector, with validation the best one and the last, and evaluates it.

    Returns:
        Scores, pictures, and the entries of `metrics.json` about the norms and the selection.
    """
    if config.train.policy != "float32":
        set_precision(detector, "float32")
    entry = {"precise_bn_batches": _measure_norms(detector, train, config, task, console, steps)}
    if validation is not None:
        entry |= _keep_last(detector, validation, steps, output, measure)
        if validation.best["step"] != steps:
            validation.load_best()
            _measure_norms(detector, train, config, task, console, validation.best["step"])
    save_detector(detector, output / DETECTOR_FILE)
    export_detector(detector, output / "saved_model")
    console.print("evaluating on the split val")
    scores, pictures = measure()
    if validation is not None:
        _complete(entry, scores, console)
    return scores, pictures, entry


def _keep_last(detector, validation: ValidateDetector, steps: int, output: Path, measure) -> dict:
    """Saves the detector of the last step. Returns the entries of `metrics.json` about it and the best one."""
    save_detector(detector, output / LAST_FILE)
    best, last = {"file": DETECTOR_FILE, "step": validation.best["step"]}, {"file": LAST_FILE, "step": steps}
    if best["step"] != steps:
        last |= logged_scores(measure()[0])
    return {"selected_on": "val", "best": best, "last": last}


def _complete(marks: dict, scores: dict, console: Console) -> None:
    """Adds the scores of the best detector to the result of `_keep_last`, and prints how it was selected."""
    marks["best"] |= logged_scores(scores)
    marks["last"] = {**marks["best"], **marks["last"]}
    console.print(
        f"{DETECTOR_FILE} is from step {marks['best']['step']}, which scored best on val, so its scores are "
        f"optimistic; {LAST_FILE} is from step {marks['last']['step']}"
    )


def _train(
    detector,
    checkpoints: RunCheckpoints,
    output: Path,
    config: Config,
    task,
    train,
    first: int,
    console,
    schedule,
    measure,
) -> ValidateDetector | None:
    """Trains from a step to the last, and saves a checkpoint of the last. Returns the validation, if there is one."""
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
            guards.append(LogLostBoxes(first, train, config))
        every, validation = config.detector.validation_steps(per_epoch), None
        if every:
            folder, patience, saved = checkpoints.folder, config.detector.patience, state.get("validation")
            validation = ValidateDetector(
                detector, lambda: measure()[0], folder, every, (first, total), patience, saved
            )
            if validation.is_over:
                return validation
        callbacks = chief_callbacks(metrics, checkpoints, settings.checkpoint_interval, signals, guards, validation)
        run_steps(
            detector,
            lambda begin, end: TASKS[task].batches(train, config, end, start=begin),
            (first, total),
            per_epoch,
            callbacks,
        )
        if total > first:
            checkpoints.save()
        return validation if every and validation.best is not None else None


class LogLostBoxes(StepCallback):
    """Adds `boxes_lost` to each step: the share of an image's boxes that train nothing (`BoxCounts`).

    A line of the metrics has the mean, as for other numbers. One image of each batch is counted, because it takes about
    2 ms.

    Args:
        first: step at the start.
        train: the training split.
        config: as for the batches.
    """

    def __init__(self, first: int, train: AnnotatedImages, config: Config):
        super().__init__(first)
        self.annotated, self.config = train, config
        self.examples = TrainingExamples(train, config)

    def on_step(self, step, logs):
        batch = self.config.train.batch_size
        counts = count_boxes(self.annotated, self.config, (step - 1) * batch + step % batch, 1, self.examples)
        if counts.boxes > counts.cropped:
            logs["boxes_lost"] = counts.lost_share


def measure_detector(file: Path, data, output: Path | None, facts: dict, section: DataConfig, images=None) -> dict:
    """Runs `evaluate` after its checks.

    Args:
        file: file of the detector.
        data, output: as in `evaluate`.
        facts: description of the evaluation for its record: the detector, and settings with `split` and `image_size`.
        section: settings for reading the data.
        images: images of the split. Default: they are read, with the classes of the detector.
    """
    detector, split, image_size = load_detector(file), facts["settings"]["split"], facts["settings"]["image_size"]
    if image_size is not None:
        detector.resize_input(image_size)
    task = task_of(detector)
    if images is None:
        images = read_evaluated(data, split, section, task, detector.class_names)
    if output is not None:
        output.mkdir(parents=True, exist_ok=True)
    scores, pictures = TASKS[task].measure(detector, images, layout_of(data, split, section.kind, task), section)
    metrics = {**scores, "split": split, "images": len(images), "evaluation": facts}
    if output is not None:
        _write_json(output / METRICS_FILE, metrics)
        draw_pictures(pictures, output)
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


def _measure_norms(detector, train, config: Config, task, console: Console, step: int) -> int:
    """Runs precise batch norm over the batches that come after a step in training. Returns their number."""
    wanted = config.detector.precise_bn_images
    if not wanted:
        return 0
    count = -(-wanted // config.train.batch_size)
    console.print(f"measuring batch norms on {count} batches")
    with TASKS[task].batches(train, config, step + count, start=step) as batches:
        return measure_norms(detector, batches)


def detector_optimizer(config: Config, images: int, backbone) -> keras.optimizers.Optimizer:
    """Creates SGD as in the paper's protocols, or AdamW, which learns more in a few hundred steps."""
    settings, detector, schedule = config.optimizer, config.detector, planned_schedule(config, images)
    slowed = backbone.trainable_variables if detector.backbone_rate != 1 else ()
    factors = {variable.path: detector.backbone_rate for variable in slowed}
    shared = {"rate_factors": factors, "global_clipnorm": detector.gradient_clip}
    if detector.optimizer == "adamw":
        optimizer = AdamW(schedule, settings.weight_decay, **shared)
    else:
        optimizer = CoupledSGD(schedule, settings.momentum, settings.weight_decay, **shared)
    return scale_loss(optimizer, config.train.precision)


def _circumstances(config: Config, output: Path, start: dict | None, train, val) -> dict:
    seconds, rate = training_speed(output, config.train.batch_size)
    return {
        "detector": config.detector.kind,
        "batch_size": config.train.batch_size,
        "images_per_second": round(rate, 2),
        "training_seconds": round(seconds, 1),
        "validation_seconds": round(validation_seconds(output), 1),
        "seed": config.train.seed,
        "weights": start["weights"] if start else RANDOM,
        "train_images": len(train),
        "val_images": len(val),
    }


def _write_json(path: Path, content: dict) -> None:
    write_whole(path, json.dumps(content, indent=2) + "\n")
