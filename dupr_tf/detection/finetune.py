"""Fine-tunes and evaluates detectors. Checks the inputs without TensorFlow, then loads it and starts."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Literal, NamedTuple

from rich.console import Console

from dupr_tf.config import Config, DataConfig, load_config
from dupr_tf.config.detectors import DETECTORS
from dupr_tf.data.file_results import FileResults
from dupr_tf.data.images.fingerprint import Fingerprint
from dupr_tf.data.inspection import inspect_targets
from dupr_tf.data.parts import recorded_differences
from dupr_tf.detection.curves import rounded_score
from dupr_tf.detection.task_labels import LABELS, kind_of_root, labels_entry, read_evaluated, read_splits
from dupr_tf.errors import UserError, raise_all
from dupr_tf.files import local_path, sha256_of
from dupr_tf.locks import locked
from dupr_tf.records import mapping, read_record, refuse_other_outputs
from dupr_tf.text import visible
from dupr_tf.training.run import FORMAT_FILE, check, check_weights, recorded_weights
from dupr_tf.training.run_images import ImagesEntry
from dupr_tf.weights.catalogue import is_public, name_for
from dupr_tf.weights.checkpoint_files import saved_checkpoints
from dupr_tf.weights.paths import KERAS_FILE, RANDOM, weights_file
from dupr_tf.weights.saved_detectors import DETECTOR_FILE, Saved, find_detector, read_saved

log = logging.getLogger(__name__)
CHECKED_FILE = "checked_images.tsv"  # results of the checks of images, so that a resumed run need not decode them
LAST_FILE = "detector_last.keras"  # saved with `detector.validate_every`, besides the best detector
METRICS_FILE = "metrics.json"  # written before the pictures; a run with this file is finished


class Checked(NamedTuple):
    """Holds what the checks of `finetune` have read.

    Attributes:
        data: root of the labelled data.
        splits: result of `read_splits`.
        entries: entries of the record of the run, {split: images and labels}.
        changes: how config and data differ from those of the start, as far as that was allowed.
        continues: True if the weights are the file of a detector.
        results: results of the checks of images, which are saved with the record.
    """

    data: str | Path
    splits: tuple
    entries: dict[str, ImagesEntry]
    changes: list[UserError]
    continues: bool
    results: FileResults


def finetune(
    config: Config,
    weights: str | Path | None,
    data: str | Path,
    output: str | Path,
    console: Console | None = None,
    allow_change: bool = False,
    after_change: Literal["planned", "decay", "warmup"] | None = None,
) -> dict:
    """Trains the detector of `config.detector`, evaluates it, and saves both. It trains on all GPUs of the machine.

    Called again after a kill or an interrupt, it resumes. The result is bit-identical, on a GPU only as far as
    TensorFlow's kernels are deterministic.

    Args:
        config: config with a `detector` section and `optimizer.learning_rate`.
        weights: "random", or a run, an export, a `.keras` file, another tool's checkpoint or the name of a public one,
            as for `load_backbone`. `imagenet` is that of the config's backbone. A `detector.keras`, or the folder of
            its run, continues from this detector. If its classes are others, the layers with outputs for each class
            start from random weights. None: a resumed run has them in its checkpoint.
        data: root of a labelled data set with the splits train and val (docs/detection.md).
        output: a folder to create. It gets `config.yaml`, `metrics.jsonl` (every loss), `tensorboard/`,
            `checkpoints/`, `detector.keras`, `saved_model/`, pictures, `metrics.json`, `checked_images.tsv`, with
            `data.share` below 1 `image_ids.txt`, and with `detector.validate_every` `detector_last.keras`.
        console: console for progress. Default: the terminal.
        allow_change: resume with another config or other data, and log the differences.
        after_change: learning rate after an allowed change, see `dupr_tf.training.schedule`.

    Returns:
        The contents of `metrics.json`: by task `AP`, `AP50`, … or `mIoU`, `per_class`; steps, speed, seed, weights.
        With `detector.validate_every` these are the scores of the best detector, `selected_on` is the split that
        selected it, and `best` and `last` have file, step and scores of both. If the run has already finished, its
        existing `metrics.json`.

    Raises:
        UserError: before any long work: config, weights, data or output, or the run there, do not fit together.
        RunFailed: an image does not decode, the loss is not finite, or something could not be written.
        RunInterrupted: SIGTERM, SIGINT or SIGHUP came during training; the step was finished and saved.
    """
    raise_all(config.finetune_problems())
    output = _run_folder(output)
    weights, continues = _weights_to_load(config, weights, output)
    console = console or Console(markup=False)
    with locked(output):
        checked = _check_inputs(config, weights, continues, data, output, allow_change)
        _describe_labels(config, checked.splits[0], console)
        from dupr_tf.detection.training import train_detector  # loads TensorFlow

        return train_detector(config, weights, checked, output, console, after_change)


def _weights_to_load(config: Config, weights: str | Path | None, output: Path) -> tuple:
    """Returns the weights that a start loads, None if a checkpoint has them; and True if they are a detector's."""
    if weights is None and saved_checkpoints(output / "checkpoints"):
        return None, False
    weights = recorded_weights(output) if weights is None else weights
    if weights is None:
        problem = "A new run needs weights to start from."
        raise UserError("--weights", problem, "Pass --weights RUN, imagenet, or random.")
    return starting_file(name_for(weights, config.model.backbone, config.model.width), config.detector.kind)


def _check_inputs(config: Config, weights, continues: bool, data, output: Path, allow_change: bool) -> Checked:
    """Reads both splits, and compares config, data and weights with those of an earlier start."""
    results = FileResults(output / CHECKED_FILE)
    splits = read_splits(config, data, DETECTORS.check(config.detector.kind).facts["task"], results)
    entries = {split: _entry(data, images) for split, images in zip(("train", "val"), splits, strict=False)}
    changes = check(output, config, entries, allow_change)
    check_weights(output, config, weights)
    return Checked(data, splits, entries, changes, continues, results)


def _describe_labels(config: Config, train, console: Console) -> None:
    """Warns of a schedule that does not suit the training images, and prints what is in their labels."""
    task = DETECTORS[config.detector.kind].facts["task"]
    for warning in config.schedule_warnings(LABELS[task].learnable(train)):
        log.warning("warning: %s", warning)
    console.print(visible(inspect_targets(train, config)), markup=False, highlight=False, soft_wrap=True)


def _entry(data, images) -> ImagesEntry:
    """Describes the images and labels of a split, and the files of both images and masks."""
    files = [*images.paths, *getattr(images, "segment_paths", ())]
    return ImagesEntry(**labels_entry(data, images), files=Fingerprint(files, os.fspath(data)))


def evaluate(
    detector_path: str | Path,
    data: str | Path,
    output: str | Path | None = None,
    split: str = "val",
    kind: str | None = None,
    image_size: int | None = None,
    overrides: dict[str, str] | None = None,
) -> dict:
    """Evaluates a saved detector.

    Args:
        detector_path: `detector.keras`, or the output folder of `finetune`.
        data: root of a labelled data set with the detector's classes.
        output: a folder for `metrics.json` and pictures; created if absent. Default: nothing is written.
        split: split of the data set.
        kind: layout of the data, as `data.kind`. Default: that of the detector's run if the data have it, or else it is
            detected.
        image_size: px; evaluates at this size: the side of the square, or the short side of images of any size.
            Default: the detector's own.
        overrides: {"data.max_pixels": "…", …}, fields of the data section to change, as YAML text.

    Returns:
        By task `AP`, `AP50`, … or `mIoU`, `per_class`, and the number of images.

    Raises:
        UserError: the detector does not exist, or cannot be evaluated on the data.
        RunFailed: an image does not decode.
    """
    file, output = detector_file(detector_path), output and local_path(output, "output")
    facts = {"detector": {"file": os.path.abspath(file), "sha256": sha256_of(file)}}
    facts["settings"] = {"data": os.path.abspath(data), "split": split, "image_size": image_size}
    facts["settings"] |= {"data.kind": kind, **(overrides or {})}
    if output is not None:
        _check_evaluation_folder(output, file, facts)
    saved, images, results = read_saved(file), None, FileResults(file.parent / CHECKED_FILE)
    check_size(saved, image_size)
    task = None if saved is None else DETECTORS[saved.kind].facts["task"]
    section = data_section(file, kind, overrides)
    if kind is None and "data.kind" not in (overrides or {}):
        section = section.model_copy(update={"kind": kind_of_root(data, split, section.kind, task)})
    if saved is not None:
        images = read_evaluated(data, split, section, task, saved.class_names, results)
    from dupr_tf.detection.training import measure_detector  # loads TensorFlow

    return measure_detector(file, data, output, facts, section, images)


def starting_file(weights: str | Path, kind: str | None) -> tuple[str | Path, bool]:
    """Checks the weights that fine-tuning starts from, without loading them. Downloads public ones.

    Args:
        weights: as in `finetune`.
        kind: kind of the detector to train; None accepts any.

    Returns:
        The weights, or the file of a detector for the folder of one; and True if they are a detector's.

    Raises:
        UserError: they do not exist, or are those of a detector of another kind.
    """
    if str(weights) == RANDOM:
        return weights, False
    if is_public(weights):
        weights_file(weights)
        return weights, False
    saved_detector = find_detector(weights)
    if saved_detector is None or (local_path(weights, "--weights") / KERAS_FILE).is_file():
        weights_file(weights)
        return weights, False
    path, saved = saved_detector
    if kind not in (None, saved.kind):
        problem = f"{path} is a {saved.kind}, and the config has {kind}."
        raise UserError("--weights", problem, f"Pass --detector.kind {saved.kind}, or the weights of a backbone.")
    return path, True


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


def suggested_score(file: Path) -> float | None:
    """Returns the `suggested_threshold` of the `metrics.json` beside a detector, rounded down to three digits.

    None if there is no such file, no detection on val was right, or the detector is `detector_last.keras`.

    Raises:
        UserError: the file is damaged.
    """

    def schema(value):
        suggested = mapping(value).get("suggested_threshold")
        return None if suggested is None else rounded_score(suggested)

    path = file.parent / METRICS_FILE  # those of the best detector, if several were saved
    return (
        read_record(path, schema, "Restore the file, or remove it.")
        if path.is_file() and file.name != LAST_FILE
        else None
    )


def chosen_score(file: Path, min_score: float | Literal["suggested"] | None) -> float | None:
    """Returns a threshold as a number: the suggested one of a detector for the word. Raises UserError without one."""
    if min_score != "suggested":
        return min_score
    score = suggested_score(file)
    if score is None:
        problem = f"No threshold is suggested beside {file}: its {METRICS_FILE} has none, or is missing."
        raise UserError("--min-score", problem, "Pass a number, such as 0.3.")
    return score


def check_size(saved: Saved | None, image_size: int | None) -> None:
    """Raises UserError if a detector cannot take images of a size, as far as its description shows."""
    if image_size is None:
        return
    if not 32 <= image_size <= 4096:
        raise UserError("--image-size", f"Expected 32 to 4096, received {image_size}.", "Pass 256, for example.")
    if saved is not None and saved.settings.get("image_size") is not None and image_size % 32:
        raise UserError(
            "--image-size", f"Expected a multiple of 32, received {image_size}.", f"Pass {image_size // 32 * 32}."
        )


def data_section(file: Path, kind: str | None = None, overrides: dict[str, str] | None = None) -> DataConfig:
    """Returns the data section of the config next to the detector (default: the schema's), with the layout `kind`."""
    path = file.parent / "config.yaml"
    changes = {} if kind is None else {"data.kind": kind}
    return load_config(path if path.is_file() else None, {**changes, **(overrides or {})}).data


def _check_evaluation_folder(output: Path, file: Path, facts: dict) -> None:
    """Raises UserError if an evaluation would replace the scores of a run or of another one, or output is a file."""
    if output.is_file():
        raise UserError("output", f"{output} is a file.", "Pass a folder.")
    if output.resolve() == file.parent.resolve() or (output / DETECTOR_FILE).exists():
        problem = f"{output} holds a detector, whose scores would be replaced."
        raise UserError("--output", problem, "Choose another --output.")
    refuse_other_outputs(output, "an evaluation")
    if (output / METRICS_FILE).is_file():
        fix = "Choose another --output, or remove it."
        saved = read_record(output / METRICS_FILE, lambda value: mapping(value).get("evaluation"), fix)
        changed = recorded_differences(mapping(saved), facts) if saved is not None else ""
        if changed:
            raise UserError("--output", f"{output} holds the scores of an evaluation with {changed}.", fix)


def _run_folder(output: str | Path) -> Path:
    output = local_path(output, "output")
    if output.is_file():
        raise UserError("output", f"{output} is a file.", "Pass a folder.")
    holds_results = (output / DETECTOR_FILE).exists() or (output / METRICS_FILE).exists()
    if holds_results and not (output / FORMAT_FILE).exists():
        problem = f"{output} already holds a detector that cannot be resumed."
        raise UserError("output", problem, "Pass another folder, or remove this one.")
    return output
