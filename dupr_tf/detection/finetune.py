"""Fine-tuning: a backbone and a labelled data set in, a detector and what it scores out."""

from __future__ import annotations

import json
from pathlib import Path

import keras
from rich.console import Console

from dupr_tf.config import Config, DataConfig, dump_config, load_config
from dupr_tf.config.detectors import DETECTORS
from dupr_tf.data.share import take_share
from dupr_tf.detection.build import build_detector, task_of
from dupr_tf.detection.precise_bn import measure_norms
from dupr_tf.detection.saving import detector_file, export_detector, load_detector, save_detector
from dupr_tf.detection.tasks import TASKS, layout_of, naming_bad_images, with_something_to_find
from dupr_tf.detection.training_log import TrainingLog
from dupr_tf.errors import UserError, raise_all
from dupr_tf.models.resnet import build_backbone
from dupr_tf.remote_path import as_path
from dupr_tf.training.distribution import choose_strategy, replicas, scope
from dupr_tf.training.optimizers import AdamW, CoupledSGD, build_schedule
from dupr_tf.weights.environment import record_environment
from dupr_tf.weights.loading import load_weights_for


def finetune(
    config: Config,
    weights: str | Path,
    data: str | Path,
    output: str | Path,
    console: Console | None = None,
) -> dict:
    """Trains the detector of `config.detector`, evaluates it, and writes both. On several GPUs it trains on all.

    Args:
        config: with a `detector` section and `optimizer.learning_rate`.
        weights: "random", or what `load_backbone` reads: a run, an export, `.keras`, another tool's checkpoint.
        data: root of a labelled data set with the splits train and val (docs/detection.md).
        output: a folder to make. It gets `config.yaml`, `metrics.jsonl` (every loss as it went), `detector.keras`,
            `saved_model/`, `metrics.json`, pictures, and with `data.share` below 1 `image_ids.txt`.
        console: where progress goes; none: the terminal.

    Returns:
        What `metrics.json` holds: by task `AP`, `AP50`, … or `mIoU`, `per_class`; steps, speed, seed, weights.

    Raises:
        UserError: config, weights, data or output do not fit together; before any long work.
        RunFailed: an image does not decode, or the loss is not finite.
    """
    console, strategy = console or Console(), choose_strategy(config.train.strategy)
    raise_all(config.finetune_problems(replicas(strategy)))
    output, task = _new_folder(output), TASKS[DETECTORS[config.detector.kind].facts["task"]]
    keras.utils.set_random_seed(config.train.seed)
    with scope(strategy):
        backbone = _backbone(config, weights)
    train, val, ids = _read_splits(config, data, task)
    images = task.learnable(train)
    steps = config.total_steps(images)
    batches = task.batches(train, config, steps)
    with scope(strategy):
        detector = build_detector(backbone, train.class_names, config)
        detector.compile(detector_optimizer(config, images, detector.backbone))

    _begin(output, config, ids)
    console.print(_plan(config, train, val, images, steps, replicas(strategy)))
    log = TrainingLog(output / "metrics.jsonl", steps, config.train.batch_size, config.train.log_every, console)
    with naming_bad_images(train, config.data.max_pixels):
        # The batches come shuffled; told how many there are, Keras does not run into their end.
        detector.fit(batches, steps_per_epoch=steps, callbacks=[log], verbose=0, shuffle=False)
        measured = _measure_norms(detector, train, config, task, steps, console)
    save_detector(detector, output / "detector.keras")
    export_detector(detector, output / "saved_model")

    console.print(f"evaluating on {len(val)} images")
    layout = layout_of(data, "val", config.data.kind)
    with naming_bad_images(val, config.data.max_pixels):
        scores = task.measure(detector, val, output, layout, config.data.max_pixels)
    metrics = {**scores, **_circumstances(config, log, steps, weights, train, val), "precise_bn_batches": measured}
    _write_json(output / "metrics.json", metrics)
    return metrics


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
        output = as_path(output)
        output.mkdir(parents=True, exist_ok=True)
    with naming_bad_images(images, section.max_pixels):
        scores = task.measure(detector, images, output, layout_of(data, split, section.kind), section.max_pixels)
    metrics = {**scores, "split": split, "images": len(images)}
    if output is not None:
        _write_json(output / "metrics.json", metrics)
    return metrics


def _data_section(detector_path: str | Path, kind: str) -> DataConfig:
    """How the data of a run were to be read, if the detector lies beside its config; its layout is asked for anew."""
    path = detector_file(detector_path).parent / "config.yaml"
    section = load_config(path).data if path.is_file() else DataConfig()
    return section.model_copy(update={"kind": kind})


def _new_folder(output: str | Path) -> Path:
    output = as_path(output)
    if output.is_file():
        raise UserError("output", f"{output} is a file.", "Pass a folder.")
    if (output / "detector.keras").exists():
        raise UserError("output", f"{output} already holds a detector.", "Pass another folder, or remove this one.")
    return output


def _backbone(config: Config, weights: str | Path):
    """The backbone to start from; it takes 0–255 images."""
    wanted = (config.model.backbone, config.model.width)
    if str(weights) == "random":
        return build_backbone(*wanted, include_normalization=True)
    return load_weights_for(*wanted, weights, include_normalization=True)


def _read_splits(config: Config, data: str | Path, task):
    """The training images or a share of them, the images to evaluate on, and the ids of the share or none."""
    train = task.read(data, "train", config.data)
    val = with_something_to_find(task, task.read(data, "val", config.data, train.class_names), data)
    if config.data.share == 1:
        return train, val, None
    train, ids = take_share(train, config.data.share, config.data.share_seed)
    return train, val, ids


def _begin(output: Path, config: Config, ids) -> None:
    output.mkdir(parents=True, exist_ok=True)
    (output / "config.yaml").write_text(dump_config(config), encoding="utf-8")
    record_environment(output)
    if ids is not None:
        (output / "image_ids.txt").write_text("".join(f"{one}\n" for one in ids), encoding="utf-8")


def _plan(config: Config, train, val, images: int, steps: int, devices: int) -> str:
    """One line of what is about to be done."""
    kind, neck = config.detector.kind, config.detector.neck
    name = kind if "detector.neck" in DETECTORS[kind].facts["refuses"] else f"{kind} ({neck})"
    what = "" if images == len(train) else f" ({images} with boxes)"
    where = "" if devices == 1 else f" on {devices} devices"
    return (
        f"{name}: {len(train)} images to train on{what}, {len(val)} to evaluate on, {len(train.class_names)} classes, "
        f"{steps} steps of {config.train.batch_size}{where}"
    )


def _measure_norms(detector, train, config: Config, task, steps: int, console: Console) -> int:
    """Precise batch norm over the batches that training would have come to next. Returns how many."""
    wanted = config.detector.precise_bn_images
    if not wanted:
        return 0
    count = -(-wanted // config.train.batch_size)
    console.print(f"measuring batch norms on {count} batches")
    return measure_norms(detector, task.batches(train, config, steps + count, start=steps))


def detector_optimizer(config: Config, images: int, backbone) -> keras.optimizers.Optimizer:
    """SGD as in the paper's protocols, or AdamW, which gets further in a few hundred steps."""
    settings, detector, schedule = config.optimizer, config.detector, build_schedule(config, images)
    slowed = backbone.trainable_variables if detector.backbone_rate != 1 else ()
    factors = {variable.path: detector.backbone_rate for variable in slowed}
    shared = {"rate_factors": factors, "global_clipnorm": detector.gradient_clip}
    if detector.optimizer == "adamw":
        return AdamW(schedule, settings.weight_decay, **shared)
    return CoupledSGD(schedule, settings.momentum, settings.weight_decay, **shared)


def _circumstances(config: Config, log: TrainingLog, steps: int, weights, train, val) -> dict:
    return {
        "detector": config.detector.kind,
        "steps": steps,
        "batch_size": config.train.batch_size,
        "images_per_second": round(log.images_per_second, 2),
        "training_seconds": round(log.seconds, 1),
        "seed": config.train.seed,
        "weights": str(weights),
        "train_images": len(train),
        "val_images": len(val),
    }


def _write_json(path: Path, content: dict) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
