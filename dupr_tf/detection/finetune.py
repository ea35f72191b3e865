"""Fine-tuning and evaluation: checks the inputs without TensorFlow, then loads it and starts."""

from __future__ import annotations

import json
import logging
import os
import zipfile
from pathlib import Path
from typing import Literal

from rich.console import Console

from dupr_tf.config import Config, DataConfig, load_config
from dupr_tf.config.detectors import DETECTORS
from dupr_tf.data.images.fingerprint import Fingerprint
from dupr_tf.data.inspection import inspect_targets
from dupr_tf.detection.labels import LABELS, labels_entry, read_evaluated, read_splits
from dupr_tf.errors import UserError, raise_all
from dupr_tf.files import local_path
from dupr_tf.locks import locked
from dupr_tf.records import MISTAKES
from dupr_tf.text import visible
from dupr_tf.training.run import FORMAT_FILE, ImagesEntry, check, check_weights
from dupr_tf.weights.archives import check_archive

log = logging.getLogger(__name__)
DETECTOR_FILE = "detector.keras"
METRICS_FILE = "metrics.json"  # written last: a run that has it is finished


def finetune(
    config: Config,
    weights: str | Path,
    data: str | Path,
    output: str | Path,
    console: Console | None = None,
    allow_change: bool = False,
    after_change: Literal["planned", "decay", "warmup"] | None = None,
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
        after_change: learning rate after an allowed change, see `dupr_tf.training.schedule`. Default: "planned".

    Returns:
        The contents of `metrics.json`: by task `AP`, `AP50`, … or `mIoU`, `per_class`; steps, speed, seed, weights. If
        the run has already finished, its existing `metrics.json`.

    Raises:
        UserError: config, weights, data or output do not fit together, or the run in `output` has others. It is raised
            before any long work.
        RunFailed: an image does not decode, the loss is not finite, or something could not be written.
        RunInterrupted: SIGTERM, SIGINT or SIGHUP came during training; the step was finished and saved.
    """
    raise_all(config.finetune_problems())
    output = _run_folder(output)
    with locked(output):
        task = DETECTORS.check(config.detector.kind).facts["task"]
        splits = read_splits(config, data, task)
        entries = {split: _entry(data, images) for split, images in zip(("train", "val"), splits, strict=False)}
        changes = check(output, config, entries, allow_change)
        check_weights(output, weights)
        for warning in config.schedule_warnings(LABELS[task].learnable(splits[0])):
            log.warning("warning: %s", warning)
        console = console or Console(markup=False)
        console.print(visible(inspect_targets(splits[0], config)), markup=False, highlight=False, soft_wrap=True)
        from dupr_tf.detection.training import train_detector  # loads TensorFlow

        return train_detector(config, weights, data, output, console, splits, entries, bool(changes), after_change)


def _entry(data, images) -> ImagesEntry:
    """Describes the images and labels of a split, and the files of both images and masks."""
    files = [*images.paths, *getattr(images, "segment_paths", ())]
    return ImagesEntry(**labels_entry(data, images), files=Fingerprint(files, os.fspath(data)))


def evaluate(
    detector_path: str | Path,
    data: str | Path,
    output: str | Path | None = None,
    split: str = "val",
    kind: str = "auto",
    overrides: dict[str, str] | None = None,
) -> dict:
    """Evaluates a saved detector.

    Args:
        detector_path: `detector.keras`, or the output folder of `finetune`.
        data: root of a labelled data set with the detector's classes.
        output: a folder for `metrics.json` and pictures; created if absent. Default: nothing is written.
        split: split of the data set.
        kind: layout of the data, as `data.kind`; "auto" detects it.
        overrides: {"data.max_pixels": "…", …}, fields of the data section to change, as YAML text.

    Returns:
        By task `AP`, `AP50`, … or `mIoU`, `per_class`, and the number of images.

    Raises:
        UserError: the detector does not exist, or cannot be evaluated on the data.
        RunFailed: an image does not decode.
    """
    file, output = detector_file(detector_path), output and local_path(output, "output")
    if output is not None and output.is_file():
        raise UserError("output", f"{output} is a file.", "Pass a folder.")
    section = _data_section(file, kind, overrides or {})
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


def kind_and_classes(file: Path) -> tuple[str, tuple[str, ...]] | None:
    """Reads the kind of a saved detector and the names of its classes from the description in its file.

    Returns None if only loading the file can tell: it is damaged, is no detector, or its class is not in the table.
    """
    kinds = {tuple(entry.target.split(":")): kind for kind, entry in DETECTORS.items()}
    check_archive(file)
    try:
        with zipfile.ZipFile(file) as archive:
            saved = json.loads(archive.read("config.json"))
        return kinds[saved["module"], saved["class_name"]], tuple(map(str, saved["config"]["class_names"]))
    except (OSError, zipfile.BadZipFile, *MISTAKES):
        return None


def _data_section(file: Path, kind: str, overrides: dict[str, str]) -> DataConfig:
    """Returns the data section of the config next to the detector (default: the schema's), with the layout `kind`."""
    path = file.parent / "config.yaml"
    return load_config(path if path.is_file() else None, {"data.kind": kind, **overrides}).data


def _run_folder(output: str | Path) -> Path:
    output = local_path(output, "output")
    if output.is_file():
        raise UserError("output", f"{output} is a file.", "Pass a folder.")
    holds_results = (output / DETECTOR_FILE).exists() or (output / METRICS_FILE).exists()
    if holds_results and not (output / FORMAT_FILE).exists():
        problem = f"{output} already holds a detector that cannot be resumed."
        raise UserError("output", problem, "Pass another folder, or remove this one.")
    return output
