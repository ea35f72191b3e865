"""Reads the description in the file of a saved detector. Imports no TensorFlow."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import NamedTuple

from dupr_tf.config.detectors import DETECTORS
from dupr_tf.errors import UserError
from dupr_tf.files import local_path
from dupr_tf.records import MISTAKES
from dupr_tf.weights.archives import check_archive

DETECTOR_FILE = "detector.keras"


class Saved(NamedTuple):
    """Holds the description of a saved detector."""

    kind: str
    class_names: tuple[str, ...]
    settings: dict  # the arguments of its constructor


def read_saved(file: Path) -> Saved | None:
    """Reads the description of a saved detector.

    Returns None if the file must be loaded to find out, because its class is not in the table of detectors.

    Raises:
        UserError: the file is damaged, or holds a model that is no detector.
    """
    kinds = {tuple(entry.target.split(":")): kind for kind, entry in DETECTORS.items()}
    check_archive(file)
    fix = "Pass a detector.keras that finetune wrote."
    try:
        with zipfile.ZipFile(file) as archive:
            saved = json.loads(archive.read("config.json"))
        name, module, settings = str(saved["class_name"]), str(saved["module"]), saved["config"]
        kind = kinds.get((module, name))
        if kind is not None:
            return Saved(kind, tuple(map(str, settings["class_names"])), dict(settings))
    except (OSError, zipfile.BadZipFile, *MISTAKES):
        raise UserError("detector", f"{file} is damaged, or is no Keras file.", fix) from None
    if module.partition(".")[0] == "keras" or module.startswith("dupr_tf.models."):
        raise UserError("detector", f"{file} holds a {name}, which is not a detector.", fix)
    return None


def find_detector(path: str | Path) -> tuple[Path, Saved] | None:
    """Returns the file and the description of a detector, given its file or folder. None if it is no detector."""
    file = local_path(path, "weights")
    file = file / DETECTOR_FILE if file.is_dir() else file
    if file.suffix != ".keras" or not file.is_file():
        return None
    try:
        saved = read_saved(file)
    except UserError:  # a backbone, or a damaged file, which is reported when it is loaded
        return None
    return None if saved is None else (file, saved)
