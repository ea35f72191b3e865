"""Fine-tuning: a backbone and a labelled data set in, a detector and its average precision out."""

from __future__ import annotations

import contextlib
import json
import time
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from dupr_tf.config import Config, ConfigError, dump_config
from dupr_tf.data.annotations import AnnotatedImages, read_annotations
from dupr_tf.data.bad_images import one_line
from dupr_tf.data.decoding import MAX_PIXELS
from dupr_tf.data.detection import eval_batches, to_original, train_batches, unreadable_images
from dupr_tf.detection.coco_eval import coco_ap
from dupr_tf.detection.pictures import contact_sheet
from dupr_tf.detection.retinanet import build_retinanet, export_detector, load_detector, save_detector
from dupr_tf.models.resnet import build_backbone
from dupr_tf.training.optimizers import CoupledSGD, build_schedule, with_slow_variables
from dupr_tf.weights.loading import load_weights_for


def finetune(
    config: Config,
    weights: str | Path,
    data: str | Path,
    output: str | Path,
    console: Console | None = None,
) -> dict:
    """Trains a RetinaNet, evaluates it, and writes both.

    Args:
        config: with a `detector` section and `optimizer.learning_rate`.
        weights: "random", or what `load_backbone` reads: a run, an export, `.keras`, another tool's checkpoint.
        data: root of a COCO or VOC data set with the splits train and val.
        output: a folder to make. It gets `config.yaml`, `metrics.jsonl` (the loss as it went),
            `detector.keras`, `saved_model/`, `detections.png` and `metrics.json`.
        console: where progress goes; none: the terminal.

    Returns:
        What `metrics.json` holds: `AP`, `AP50`, …, `per_class`, steps, speed, seed, source of the weights.

    Raises:
        ValueError: config, weights, data or output do not fit together; one line, before any long work.
    """
    console = console or Console()
    if problems := config.finetune_problems():
        raise ConfigError(problems)
    output = _new_folder(output)
    keras.utils.set_random_seed(config.train.seed)
    backbone = _backbone(config, weights)
    train, val = _read_splits(config, data)
    images = len(train.with_boxes())
    steps = config.total_steps(images)
    batches = train_batches(train, config, steps)
    detector = build_retinanet(backbone, train.class_names, config)
    detector.compile(_optimizer(config, images, detector.backbone))

    output.mkdir(parents=True, exist_ok=True)
    (output / "config.yaml").write_text(dump_config(config), encoding="utf-8")
    console.print(
        f"{len(train)} images to train on ({images} with boxes), {len(val)} to evaluate on, "
        f"{len(train.class_names)} classes, {steps} steps of {config.train.batch_size}"
    )
    log = TrainingLog(output / "metrics.jsonl", steps, config.train.batch_size, config.train.log_every, console)
    with naming_bad_images(train, config.data.max_pixels):
        detector.fit(batches, callbacks=[log], verbose=0, shuffle=False)  # the batches come shuffled
    save_detector(detector, output / "detector.keras")
    export_detector(detector, output / "saved_model")

    console.print(f"evaluating on {len(val)} images")
    metrics = {
        **_evaluated(detector, val, output, config.data.max_pixels),
        "steps": steps,
        "batch_size": config.train.batch_size,
        "images_per_second": round(log.images_per_second, 2),
        "training_seconds": round(log.seconds, 1),
        "seed": config.train.seed,
        "weights": str(weights),
        "train_images": len(train),
        "val_images": len(val),
    }
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
        data: root of a COCO or VOC data set with the detector's classes.
        output: a folder for `metrics.json` and `detections.png`; made if absent, none: nothing is written.
        split: of the data set.
        kind: "auto", "coco" or "voc".

    Returns:
        `AP`, `AP50`, …, `per_class`, as `coco_ap`, and the number of images.

    Raises:
        ValueError: no such detector, or data it cannot be evaluated on.
    """
    detector = load_detector(detector_path)
    annotated = _with_something_to_find(read_annotations(data, split, kind, detector.class_names), data)
    if output is not None:
        output = Path(output)
        output.mkdir(parents=True, exist_ok=True)
    metrics = {**_evaluated(detector, annotated, output), "split": split, "images": len(annotated)}
    if output is not None:
        _write_json(output / "metrics.json", metrics)
    return metrics


def detect(
    detector, annotated: AnnotatedImages, batch_size: int = 16, max_pixels: int = MAX_PIXELS
) -> list[dict[str, np.ndarray]]:
    """For every image, in its own pixels: `boxes` (k, 4) xyxy, `classes` (k,) and `scores` (k,), best first."""
    found = []
    for batch in eval_batches(annotated, detector.image_size, batch_size, max_pixels):
        result = detector.predict_on_batch(batch["images"])
        for i, scale in enumerate(batch["scale"].numpy()):
            count = int(result["num_detections"][i])
            found.append(
                {
                    "boxes": to_original(result["boxes"][i, :count], scale, annotated.sizes[len(found)]),
                    "classes": result["classes"][i, :count].astype(np.int32),
                    "scores": result["confidence"][i, :count],
                }
            )
    return found


class TrainingLog(keras.callbacks.Callback):
    """Writes the mean loss of every `log_every` steps to a file and shows progress.

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

    def _write(self, logs: dict[str, float]) -> None:
        now = time.perf_counter()
        self.seconds = now - self.started
        timed = (self.step - 1) / (now - self.first_done) if self.step > 1 else self.step / self.seconds
        self.images_per_second = timed * self.batch_size
        losses = {name: logs[name] for name in ("loss", "classification_loss", "box_loss")}
        entry = {
            "step": self.step,
            **losses,
            "learning_rate": float(self.model.optimizer.learning_rate),
            "images_per_second": round(self.images_per_second, 2),
            "seconds": round(self.seconds, 1),
        }
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(entry) + "\n")
        state = f"loss {losses['loss']:.3f}, {self.images_per_second:.1f} images/s"
        self.bar.update(self.task, state=state)
        if not self.console.is_terminal:
            left = (self.steps - self.step) / timed
            self.console.print(f"step {self.step}/{self.steps}, {state}, {left / 60:.1f} min left")
        if not np.isfinite(losses["loss"]):
            self.bar.stop()
            raise ValueError(
                f"Expected a finite loss, received {losses['loss']} at step {self.step}. "
                "Fix: a lower optimizer.learning_rate, or more optimizer.warmup_steps"
            )


@contextlib.contextmanager
def naming_bad_images(annotated: AnnotatedImages, max_pixels: int = MAX_PIXELS):
    """Turns TensorFlow's error about some bytes it cannot decode into one that names the files."""
    try:
        yield
    except tf.errors.OpError:
        bad = unreadable_images(annotated, max_pixels)
        if not bad:
            raise
        path, reason = next(iter(bad.items()))
        raise ValueError(
            f"Expected images that decode, received {len(bad)} that do not, such as {one_line(path)} ({reason}). "
            "Fix: replace the files, or take them out of the annotations"
        ) from None


def _evaluated(detector, annotated: AnnotatedImages, output: Path | None, max_pixels: int = MAX_PIXELS) -> dict:
    """AP of a split; with an output folder also the contact sheet."""
    with naming_bad_images(annotated, max_pixels):
        found = detect(detector, annotated, max_pixels=max_pixels)
    if output is not None:
        contact_sheet(annotated, found, output / "detections.png")
    return coco_ap(annotated, found)


def _new_folder(output: str | Path) -> Path:
    output = Path(output)
    if output.is_file() or (output / "detector.keras").exists():
        raise ValueError(f"Expected a folder without a detector, received {output}. Fix: another output, or remove it")
    return output


def _backbone(config: Config, weights: str | Path):
    """The backbone to start from; it takes 0–255 images."""
    wanted = (config.model.backbone, config.model.width)
    if str(weights) == "random":
        return build_backbone(*wanted, include_normalization=True)
    return load_weights_for(*wanted, weights, include_normalization=True)


def _read_splits(config: Config, data: str | Path) -> tuple[AnnotatedImages, AnnotatedImages]:
    kind, share = config.data.kind, config.data.max_bad_share
    train = read_annotations(data, "train", kind, max_missing_share=share)
    val = read_annotations(data, "val", kind, train.class_names, max_missing_share=share)
    return train, _with_something_to_find(val, data)


def _with_something_to_find(annotated: AnnotatedImages, data: str | Path) -> AnnotatedImages:
    if not annotated.with_boxes():
        raise ValueError(f"Expected boxes to evaluate on, received none in {data}. Fix: annotated images")
    return annotated


def _optimizer(config: Config, images: int, backbone) -> keras.optimizers.Optimizer:
    """SGD as in the paper's protocols, or AdamW, which gets further in a few hundred steps."""
    settings, detector, schedule = config.optimizer, config.detector, build_schedule(config, images)
    if detector.optimizer == "adamw":
        optimizer = keras.optimizers.AdamW(
            schedule, weight_decay=settings.weight_decay, global_clipnorm=detector.gradient_clip
        )
    else:
        optimizer = CoupledSGD(
            schedule, settings.momentum, settings.weight_decay, global_clipnorm=detector.gradient_clip
        )
    return with_slow_variables(optimizer, backbone.trainable_variables, detector.backbone_rate)


def _write_json(path: Path, content: dict) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
