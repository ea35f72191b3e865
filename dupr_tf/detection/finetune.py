"""Fine-tuning and evaluation: checks the inputs without TensorFlow, then loads it and starts."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console

from dupr_tf.config import Config, DataConfig, load_config
from dupr_tf.config.detectors import DETECTORS
from dupr_tf.detection.labels import labels_entry, read_evaluated, read_splits
from dupr_tf.errors import UserError, raise_all
from dupr_tf.files import local_path
from dupr_tf.training.run import FORMAT_FILE, check, check_weights
from dupr_tf.weights.paths import DETECTOR_FILE, kind_and_classes

METRICS_FILE = "metrics.json"  # written last: a run that has it is finished


def finetune(
    config: Config,
    weights: str | Path,
    data: str | Path,
    output: str | Path,
    console: Console | None = None,
    allow_change: bool = False,
) -> dict:
    """Trains the detector of `config.detector`, evaluates it, and writes both. It trains on all GPUs of the machine.

    Called again after a kill or an interrupt, it resumes and ends bit-identically; on a GPU only as far as TensorFlow's
    kernels are deterministic there.

    Args:
        config: config with a `detector` section and `optimizer.learning_rate`.
        weights: "random", or a run, an export, a `.keras` file or another tool's checkpoint, as for `load_backbone`.
        data: root of a labelled data set with the splits train and val (docs/detection.md).
        output: a folder to create. It gets `config.yaml`, `metrics.jsonl` (every loss), `tensorboard/`,
            `checkpoints/`, `detector.keras`, `saved_model/`, pictures, `metrics.json`, and with `data.share` below 1
            `image_ids.txt`.
        console: console for progress. Default: the terminal.
        allow_change: resume with another config or other data, and log the differences.

    Returns:
        The contents of `metrics.json`: by task `AP`, `AP50`, … or `mIoU`, `per_class`; steps, speed, seed, weights. If
        the run has already finished, its existing `metrics.json`.

    Raises:
        UserError: config, weights, data or output do not fit together, or the run in `output` has others. It is raised
            before any long work.
        RunFailed: an image does not decode, the loss is not finite, or the disk is full.
        RunInterrupted: SIGTERM or SIGINT came during training; the step was finished and saved.
    """
    raise_all(config.finetune_problems())
    output = _run_folder(output)
    splits = read_splits(config, data, DETECTORS.check(config.detector.kind).facts["task"])
    entries = {split: labels_entry(data, images) for split, images in zip(("train", "val"), splits, strict=False)}
    changes = check(output, config, entries, allow_change)
    check_weights(output, weights)
    from dupr_tf.detection.training import train_detector  # loads TensorFlow

    return train_detector(config, weights, data, output, console or Console(), splits, entries, bool(changes))


def evaluate(
    detector_path: str | Path,
    data: str | Path,
    output: str | Path | None = None,
    split: str = "val",
    kind: str = "auto",
) -> dict:
    """Evaluates a saved detector.

    Args:
        detector_path: `detector.keras`, or the output folder of `finetune`.
        data: root of a labelled data set with the detector's classes.
        output: a folder for `metrics.json` and pictures; created if absent. Default: nothing is written.
        split: split of the data set.
        kind: layout of the data, as `data.kind`; "auto" detects it.

    Returns:
        By task `AP`, `AP50`, … or `mIoU`, `per_class`, and the number of images.

    Raises:
        UserError: the detector does not exist, or cannot be evaluated on the data.
        RunFailed: an image does not decode.
    """
    file, output = detector_file(detector_path), output and local_path(output, "output")
    if output is not None and output.is_file():
        raise UserError("output", f"{output} is a file.", "Pass a folder.")
    section = _data_section(file, kind)
    saved, images = kind_and_classes(file), None
    if saved is not None:
        kind, class_names = saved
        images = read_evaluated(data, split, section, DETECTORS[kind].facts["task"], class_names)
    from dupr_tf.detection.training import measure_detector  # loads TensorFlow

    return measure_detector(file, data, output, split, section, images)


def detector_file(path: str | Path) -> Path:
    """Returns the `.keras` file, or that of an output folder of `finetune`. Raises UserError if it does not exist."""
    file = local_path(path, "detector")
    file = file / DETECTOR_FILE if file.is_dir() else file
    if not file.is_file() or file.suffix != ".keras":
        raise UserError(
            "detector",
            f"There is no detector at {path}.",
            "Pass a .keras file, or the folder that finetune wrote.",
        )
    return file


def _data_section(file: Path, kind: str) -> DataConfig:
    """Returns the data section of the config next to the detector (default: the schema's), with the layout `kind`."""
    path = file.parent / "config.yaml"
    section = load_config(path).data if path.is_file() else DataConfig()
    return section.model_copy(update={"kind": kind})


def _run_folder(output: str | Path) -> Path:
    output = local_path(output, "output")
    if output.is_file():
        raise UserError("output", f"{output} is a file.", "Pass a folder.")
    holds_results = (output / DETECTOR_FILE).exists() or (output / METRICS_FILE).exists()
    if holds_results and not (output / FORMAT_FILE).exists():
        problem = f"{output} already holds a detector that cannot be resumed."
        raise UserError("output", problem, "Pass another folder, or remove this one.")
    return output
