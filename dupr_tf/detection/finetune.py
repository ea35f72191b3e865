"""Fine-tuning: a backbone and a labelled data set in, a detector and what it scores out."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path

import keras
from rich.console import Console

from dupr_tf.config import Config, DataConfig, load_config
from dupr_tf.config.detectors import DETECTORS
from dupr_tf.data.share import take_share
from dupr_tf.detection.build import build_detector, task_of
from dupr_tf.detection.precise_bn import measure_norms
from dupr_tf.detection.saving import detector_file, export_detector, load_detector, save_detector
from dupr_tf.detection.tasks import TASKS, labels_entry, layout_of, with_something_to_find
from dupr_tf.errors import UserError, raise_all, reporting_full_disk
from dupr_tf.models.resnet import build_backbone
from dupr_tf.training.callbacks import StopOnNonFinite
from dupr_tf.training.checkpoints import RunCheckpoints
from dupr_tf.training.distribution import choose_strategy, replicas, scope
from dupr_tf.training.loop import chief_callbacks
from dupr_tf.training.loop import train as run_steps
from dupr_tf.training.metrics_log import MetricsLog, training_speed
from dupr_tf.training.optimizers import AdamW, CoupledSGD, build_schedule
from dupr_tf.training.run import FORMAT_FILE, check, record, starting_weights
from dupr_tf.training.signals import noted_signals
from dupr_tf.whole_files import write_whole

METRICS_FILE = "metrics.json"  # written last: a run that has it is finished


def finetune(
    config: Config,
    weights: str | Path,
    data: str | Path,
    output: str | Path,
    console: Console | None = None,
    allow_change: bool = False,
) -> dict:
    """Trains the detector of `config.detector`, evaluates it, and writes both. On several GPUs it trains on all.

    Called again after it was killed or interrupted, it resumes and ends with the same bits; on a GPU only as far as
    TensorFlow's kernels are deterministic there.

    Args:
        config: with a `detector` section and `optimizer.learning_rate`.
        weights: "random", or what `load_backbone` reads: a run, an export, `.keras`, another tool's checkpoint.
        data: root of a labelled data set with the splits train and val (docs/detection.md).
        output: a folder to make. It gets `config.yaml`, `metrics.jsonl` (every loss as it went), `tensorboard/`,
            `checkpoints/`, `detector.keras`, `saved_model/`, pictures, `metrics.json`, and with `data.share` below 1
            `image_ids.txt`.
        console: where progress goes; none: the terminal.
        allow_change: resume with another config or other data, and name the differences.

    Returns:
        What `metrics.json` holds: by task `AP`, `AP50`, … or `mIoU`, `per_class`; steps, speed, seed, weights. Of a run
        that has ended before, what it holds already.

    Raises:
        UserError: config, weights, data or output do not fit together, or the run in `output` has others; before any
            long work.
        RunFailed: an image does not decode, the loss is not finite, or the disk is full.
        RunInterrupted: SIGTERM or SIGINT came while it trained; the step was finished and saved.
    """
    console, strategy = console or Console(), choose_strategy(config.train.strategy)
    raise_all(config.finetune_problems(replicas(strategy)))
    output, task = _run_folder(output), TASKS[DETECTORS[config.detector.kind].facts["task"]]
    train, val, ids = _read_splits(config, data, task)
    entries = {"train": labels_entry(data, train), "val": labels_entry(data, val)}
    changes = check(output, config, entries, allow_change)
    keras.utils.set_random_seed(config.train.seed)
    with scope(strategy):
        backbone, start = starting_weights(output, config, weights, include_normalization=True)
        if backbone is None:
            backbone = build_backbone(config.model.backbone, config.model.width, include_normalization=True)
    if (output / METRICS_FILE).exists() and not changes:
        console.print(f"{output} has ended before; its metrics are in {METRICS_FILE}")
        return json.loads((output / METRICS_FILE).read_text(encoding="utf-8"))
    images = task.learnable(train)
    with scope(strategy):
        detector = build_detector(backbone, train.class_names, config)
        detector.compile(detector_optimizer(config, images, detector.backbone))
    with reporting_full_disk(output):
        checkpoints = RunCheckpoints(detector, output / "checkpoints", config.train.keep_checkpoints)
        first = checkpoints.restore()
        (output / METRICS_FILE).unlink(missing_ok=True)  # of the run as it was before a change
        record(output, config, entries, start)
        _write_ids(output, ids)
        console.print(_plan(config, train, val, images, replicas(strategy)))
        if first:
            console.print(f"resuming at step {first}")
        _train(detector, checkpoints, output, config, task, train, first, console)
        measured = _measure_norms(detector, train, config, task, console)
        save_detector(detector, output / "detector.keras")
        export_detector(detector, output / "saved_model")

        console.print(f"evaluating on {len(val)} images")
        layout = layout_of(data, "val", config.data.kind)
        scores = task.measure(detector, val, output, layout, config.data)
        facts = _circumstances(config, output, images, weights, train, val)
        metrics = {**scores, **facts, "precise_bn_batches": measured}
        _write_json(output / METRICS_FILE, metrics)
    return metrics


def _train(detector, checkpoints: RunCheckpoints, output: Path, config: Config, task, train, first: int, console):
    """Trains from a step to the last, and leaves a checkpoint of that."""
    images, settings = task.learnable(train), config.train
    per_epoch, total = config.steps_per_epoch(images), config.total_steps(images)
    with contextlib.ExitStack() as stack:
        signals = stack.enter_context(noted_signals())
        state = checkpoints.extra
        metrics = MetricsLog(
            output, first, total, per_epoch, settings.batch_size, settings.log_every, state, console
        )  # fmt: skip
        stack.callback(metrics.close)
        guards = [StopOnNonFinite(first)]
        callbacks = chief_callbacks(metrics, checkpoints, settings.checkpoint_interval, signals, guards)
        run_steps(
            detector,
            lambda begin, end: task.batches(train, config, end, start=begin),
            (first, total),
            per_epoch,
            callbacks,
        )
        if total > first:
            checkpoints.save()


def evaluate(
    detector_path: str | Path,
    data: str | Path,
    output: str | Path | None = None,
    split: str = "val",
    kind: str = "auto",
) -> dict:
    """Evaluates a saved detector.

    Args:
        detector_path: `detector.keras`, or the folder `finetune` wrote.
        data: root of a labelled data set with the detector's classes.
        output: a folder for `metrics.json` and pictures; made if absent, none: nothing is written.
        split: of the data set.
        kind: layout of the data, as `data.kind`; "auto" looks.

    Returns:
        By task `AP`, `AP50`, … or `mIoU`, `per_class`, and the number of images.

    Raises:
        UserError: no such detector, or data it cannot be evaluated on.
        RunFailed: an image does not decode.
    """
    detector = load_detector(detector_path)
    task, section = TASKS[task_of(detector)], _data_section(detector_path, kind)
    images = with_something_to_find(task, task.read(data, split, section, detector.class_names), data)
    if output is not None:
        output = Path(output)
        output.mkdir(parents=True, exist_ok=True)
    scores = task.measure(detector, images, output, layout_of(data, split, section.kind), section)
    metrics = {**scores, "split": split, "images": len(images)}
    if output is not None:
        _write_json(output / METRICS_FILE, metrics)
    return metrics


def _data_section(detector_path: str | Path, kind: str) -> DataConfig:
    """How the data of a run were to be read, if the detector lies beside its config; its layout is asked for anew."""
    path = detector_file(detector_path).parent / "config.yaml"
    section = load_config(path).data if path.is_file() else DataConfig()
    return section.model_copy(update={"kind": kind})


def _run_folder(output: str | Path) -> Path:
    output = Path(output)
    if output.is_file():
        raise UserError("output", f"{output} is a file.", "Pass a folder.")
    holds_results = (output / "detector.keras").exists() or (output / METRICS_FILE).exists()
    if holds_results and not (output / FORMAT_FILE).exists():
        problem = f"{output} already holds a detector that cannot be resumed."
        raise UserError("output", problem, "Pass another folder, or remove this one.")
    return output


def _read_splits(config: Config, data: str | Path, task):
    """The training images or a share of them, the images to evaluate on, and the ids of the share or none."""
    train = task.read(data, "train", config.data)
    val = with_something_to_find(task, task.read(data, "val", config.data, train.class_names), data)
    if config.data.share == 1:
        return train, val, None
    train, ids = take_share(train, config.data.share, config.data.share_seed)
    return train, val, ids


def _write_ids(output: Path, ids) -> None:
    if ids is not None:
        write_whole(output / "image_ids.txt", "".join(f"{one}\n" for one in ids))


def _plan(config: Config, train, val, images: int, devices: int) -> str:
    """One line of what is about to be done."""
    kind, neck = config.detector.kind, config.detector.neck
    name = kind if "detector.neck" in DETECTORS[kind].facts["refuses"] else f"{kind} ({neck})"
    what = "" if images == len(train) else f" ({images} with boxes)"
    where = "" if devices == 1 else f" on {devices} devices"
    return (
        f"{name}: {len(train)} images to train on{what}, {len(val)} to evaluate on, {len(train.class_names)} classes, "
        f"{config.total_steps(images)} steps of {config.train.batch_size}{where}"
    )


def _measure_norms(detector, train, config: Config, task, console: Console) -> int:
    """Precise batch norm over the batches that training would have come to next. Returns how many."""
    wanted = config.detector.precise_bn_images
    if not wanted:
        return 0
    count = -(-wanted // config.train.batch_size)
    console.print(f"measuring batch norms on {count} batches")
    steps = config.total_steps(task.learnable(train))
    with task.batches(train, config, steps + count, start=steps) as batches:
        return measure_norms(detector, batches)


def detector_optimizer(config: Config, images: int, backbone) -> keras.optimizers.Optimizer:
    """SGD as in the paper's protocols, or AdamW, which gets further in a few hundred steps."""
    settings, detector, schedule = config.optimizer, config.detector, build_schedule(config, images)
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
