"""Writes and checks the record of a run: config, images and initial weights. Every later start must match it.

| file | contents |
|---|---|
| config.yaml | the config |
| images.json | the number of images, a digest of their names (and of their labels), and digests of some contents |
| images.bin, images-SPLIT.bin | size and time of each image file, as `Fingerprint.rows` has them |
| start.json | the path or name and the sha256 of the weights that the run started from, unless they were random |
| format.json | `FORMAT`, and the id of the run, which its checkpoints carry |
| cluster.json | the workers of the newest start of a run with several workers, see `cluster` |

`check`, `check_weights` and `starting_weights` only read; `starting_weights` loads TensorFlow. `record` writes after
the model is built and its checkpoint restored. A rejected start therefore leaves every file unchanged.
"""

from __future__ import annotations

import json
import logging
import os
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from dupr_tf.config import Config, dump_config, load_config
from dupr_tf.config.sections import SHORT_FORM
from dupr_tf.environment import check_clock, record_environment
from dupr_tf.errors import UserError, raise_all
from dupr_tf.files import write_all
from dupr_tf.records import digest, read_record, refuse_other_outputs, text, whole
from dupr_tf.training.run_images import KEEP_OR_ALLOW, Images, image_changes, image_files
from dupr_tf.weights.catalogue import find_public, is_public, name_for
from dupr_tf.weights.checkpoint_files import saved_checkpoints
from dupr_tf.weights.download import origin_of
from dupr_tf.weights.paths import RANDOM, START_FILE, recorded_name, weights_file

if TYPE_CHECKING:
    import keras

log = logging.getLogger(__name__)
MAY_CHANGE = (  # fields, sections
    "train.log_every", "train.checkpoint_every", "train.keep_checkpoints", "train.strategy", "train.worker_timeout",
    "train.start_timeout", "data.threads", "data.processes", "probing",
    "data.root",  # the images below it are compared, so they may be moved or mounted elsewhere
)  # fmt: skip
NEEDS_NO_STEPS = (  # fields whose change has its effect on a run that has taken all its steps
    "train.epochs", "train.max_steps", "detector.patience", "detector.score_threshold", "detector.nms_iou",
    "detector.max_detections", "detector.test_short_side", "detector.precise_bn_images",
)  # fmt: skip
CONFIG_FILE = "config.yaml"
FORMAT_FILE = "format.json"
FORMAT = 4  # increased by each change of random draws, checkpoint keys or the files of a run; see CHANGELOG
KEEP_WEIGHTS = "Use the weights of its start (pretrain: leave --weights out), or choose another --output."


def check(
    run: Path, config: Config, images: Images, allow_change: bool = False, others: Sequence[UserError] = ()
) -> list[UserError]:
    """Rejects a start whose config or images differ from those of the run.

    Args:
        run: the run's folder.
        config: config of this start.
        images: an `ImagesEntry`, or one for each split, {split: entry}.
        allow_change: log the differences instead of raising.
        others: further differences, such as `pool.exclusion_changes`.

    Returns:
        The differences that were allowed.

    Raises:
        UserError: a difference, or a file of the record that cannot be read; a UserErrors for several.
    """
    if run.is_file():
        raise UserError("--output", f"{run} is a file.", "Pass a folder.")
    check_clock()
    if not os.path.lexists(run / CONFIG_FILE):
        _check_new(run)
        return []
    check_format(run)
    _check_kind(run, config)
    changes = [*_config_changes(run / CONFIG_FILE, config), *others, *image_changes(run, images)]
    if not allow_change:
        raise_all(changes)
    for change in changes:
        log.warning("changed within the run: %s: %s", change.field, change.problem)
    return changes


def refuse_late_changes(changes: Sequence[UserError], step: int, total: int) -> None:
    """Rejects changes of a run without steps left: its record would show settings that its weights never saw.

    Args:
        changes: the differences that `check` allowed.
        step: steps that the run has taken.
        total: steps of its changed config.

    Raises:
        UserError: a change that needs further steps; a UserErrors for several.
    """
    if step < total:
        return
    fix = f"Take more than {step} steps (train.epochs, train.max_steps), or choose another --output."
    late = [change for change in changes if change.field is not None and change.field not in NEEDS_NO_STEPS]
    raise_all([UserError(c.field, f"{c.problem} The run has taken {step} of {total} steps.", fix) for c in late])


def _check_new(run: Path) -> None:
    """Raises UserError if a folder without a config has checkpoints, or the output of another command."""
    refuse_other_outputs(run, "a run")
    if saved_checkpoints(run / "checkpoints"):
        problem = f"{run} has checkpoints, but no {CONFIG_FILE}, which this start must match."
        raise UserError("--output", problem, "Restore the file from a copy, or choose another --output.")


def _check_kind(run: Path, config: Config) -> None:
    """Raises UserError if one of the run and the config is a pre-training, and the other a fine-tuning."""
    try:
        saved = load_config(run / CONFIG_FILE)
    except UserError:  # it is reported with the other differences
        return
    if (saved.detector is None) != (config.detector is None):
        kind = "pre-training" if saved.detector is None else "fine-tuning"
        raise UserError("--output", f"{run} holds a {kind} run.", "Choose another --output.")


def check_format(run: Path) -> None:
    """Rejects a run of another version of this program, whose draws or checkpoints differ.

    Raises:
        UserError: another format, or a record that cannot be read.
    """
    path = run / FORMAT_FILE
    saved = read_record(path, lambda value: whole(value["format"])) if os.path.lexists(path) else 1
    if saved != FORMAT:
        raise UserError(
            "--output",
            f"The run in {run} has format {saved}, and this version resumes format {FORMAT} only.",
            f"Choose another --output; --weights {run} starts from its backbone.",
        )


def run_id(run: Path) -> str:
    """Returns the id in the record of a run; empty before it has one. Raises UserError if the record is damaged."""
    path = run / FORMAT_FILE
    return read_record(path, lambda value: text(value.get("run", ""), 64)) if os.path.lexists(path) else ""


def record(
    run: Path, config: Config, images: Images, weights: dict | None = None, files: Mapping[str, str] | None = None
) -> None:
    """Writes the record of a checked start, and of the machine it runs on.

    Args:
        run: the run's folder; created if absent.
        config, images: as in `check`.
        weights: entry from `starting_weights`.
        files: {name: contents} of further files, such as `Pool.files`.
    """
    contents = dict(files or {})
    contents |= {FORMAT_FILE: json.dumps({"format": FORMAT, "run": run_id(run) or uuid.uuid4().hex}) + "\n"}
    contents |= image_files(images)
    if weights is not None:
        contents[START_FILE] = json.dumps(weights, indent=2) + "\n"
    contents[CONFIG_FILE] = dump_config(config)  # written last: a folder without this file holds no run
    write_all({run / name: content for name, content in contents.items()})
    record_environment(run)


def starting_weights(
    run: Path, config: Config, weights: str | Path | None, include_normalization: bool = False, load=None
) -> tuple[keras.Model | None, dict | None]:
    """Loads the backbone, or another model, that a run starts from.

    Args:
        run: the run's folder.
        config: config of this start.
        weights: "random", or a path or name for `load_backbone`. Default: the recorded weights, if any, or random ones.
        include_normalization: True if the backbone takes 0–255 images.
        load: path -> model. Default: `load_weights_for` of the config's backbone.

    Returns:
        The model, or None if weights are random or a checkpoint has them all; and the entry for `record`.

    Raises:
        UserError: the run started from other weights, or its record is damaged.
    """
    saved, weights = check_weights(run, config, weights)
    if weights is None:
        return None, saved
    from dupr_tf.weights.loading import load_weights_for, weights_digest  # these load TensorFlow

    if load is None:
        backbone = load_weights_for(config.model.backbone, config.model.width, weights, include_normalization)
    else:
        backbone = load(weights)
    digest = weights_digest(backbone)
    if saved is None:
        log.info("starting from the weights of %s", weights)
        source = origin_of(find_public(weights)) if is_public(weights) else {}
        return backbone, {"weights": recorded_name(weights), "sha256": digest, **source}
    if digest != saved["sha256"]:
        problem = f"The run {run} was started from {saved['weights']}, and {weights} holds other weights."
        raise UserError("--weights", problem, KEEP_WEIGHTS)
    return backbone, saved


def check_weights(run: Path, config: Config, weights: str | Path | None) -> tuple[dict | None, str | Path | None]:
    """Rejects weights that a run cannot start from or resume with, without loading them. Downloads public ones.

    Args:
        run, config, weights: as in `starting_weights`.

    Returns:
        The weights entry of the run's record, None for random weights; and the weights to load, None if there are none.

    Raises:
        UserError: the run started from other weights, its record is damaged, or the weights do not exist.
    """
    path = run / START_FILE
    saved = _read_start(path) if os.path.lexists(path) else None
    if str(weights) == RANDOM and saved is not None:
        problem = f"The run {run} was started from {saved['weights']}, so it cannot continue from random weights."
        raise UserError("--weights", problem, KEEP_WEIGHTS)
    if saved is None and (weights is None or str(weights) == RANDOM):
        return None, None
    if saved is None and (run / CONFIG_FILE).exists():
        problem = f"The run {run} was started from random weights, so it cannot continue from {weights}."
        raise UserError("--weights", problem, KEEP_WEIGHTS)
    if weights is None and saved_checkpoints(run / "checkpoints"):
        return saved, None
    weights = name_for(weights or saved["weights"], config.model.backbone, config.model.width)
    weights_file(weights, detectors=True)  # `finetune` continues from them, and has checked the kind
    return saved, weights


def require_checkpoint(step: int, loaded: bool, start: dict | None) -> None:
    """Raises UserError if a run would begin again without the weights that it started from.

    Args:
        step: step of the restored checkpoint; 0 if none could be read.
        loaded: whether the weights of the start were loaded.
        start: their entry in the record; None for random weights.
    """
    if step == 0 and start is not None and not loaded:
        problem = f"No checkpoint of the run can be read, and it started from {start['weights']}."
        raise UserError("--weights", problem, f"Pass --weights {start['weights']} again.")


def recorded_weights(run: Path) -> str | None:
    """Returns the weights that a run started from, as its record names them. None if there is no run."""
    if not os.path.lexists(run / CONFIG_FILE):
        return None
    return _read_start(run / START_FILE)["weights"] if os.path.lexists(run / START_FILE) else RANDOM


def differences(old: Config, new: Config, what: str = "run") -> list[UserError]:
    """Returns an error for every differing field that may not change within a run, or what else is named."""
    before, after = (config.model_dump(mode="json") for config in (old, new))
    before["model"], after["model"] = _model_values(old.model, new.model), _model_values(new.model, old.model)
    changes = []
    for section in after:
        a, b = before[section] or {}, after[section] or {}
        for name in sorted({*a, *b}):
            if a.get(name) != b.get(name) and not {section, f"{section}.{name}"} & set(MAY_CHANGE):
                problem = f"The {what} was started with {a.get(name)}, and the config now has {b.get(name)}."
                changes.append(UserError(f"{section}.{name}", problem, KEEP_OR_ALLOW))
    return changes


def _model_values(model, other) -> dict:
    """Returns the fields of a model's section to compare between runs; differing terms compare field by field."""
    values = model.model_dump(mode="json", exclude={"terms", *SHORT_FORM})
    if model.named_terms() == other.named_terms():
        return values
    if model.terms is None and other.terms is None:
        return {**values, **model.model_dump(mode="json", include=set(SHORT_FORM))}
    terms = model.named_terms().items()
    return {**values, **{f"terms.{name}.{field}": value for name, term in terms for field, value in term.items()}}


def _config_changes(path: Path, config: Config) -> list[UserError]:
    try:
        return differences(load_config(path), config)
    except UserError as error:
        return [UserError(None, f"{path} is damaged ({error.errors[0]})", KEEP_OR_ALLOW)]


def _read_start(path: Path) -> dict:
    def schema(value):
        saved = {"weights": text(value["weights"]), "sha256": digest(value["sha256"])}
        if "url" in value:  # of public weights
            saved |= {"url": text(value["url"]), "file_sha256": digest(value["file_sha256"])}
        return saved

    return read_record(path, schema)
