"""Detectors to and from files: `.keras`, and SavedModels that need neither Keras nor this package."""

from __future__ import annotations

from pathlib import Path

from dupr_tf.detection.build import CLASSES, task_of
from dupr_tf.weights.loading import read_keras


def save_detector(detector, path):
    """Writes a `.keras` file without the optimizer's state; `load_detector` reads it."""
    copy = type(detector).from_config(detector.get_config())
    copy.set_weights(detector.get_weights())
    copy.save(path)


def load_detector(path):
    """Reads a `.keras` file of `save_detector`, or of a folder that `finetune` wrote.

    Raises:
        ValueError: there is none, or it is another kind of model.
    """
    file = detector_file(path)
    model = read_keras(file)
    if not isinstance(model, CLASSES):
        names = ", ".join(one.__name__ for one in CLASSES)
        raise ValueError(
            f"Expected a detector ({names}), received {file} ({type(model).__name__}). Fix: a detector.keras of finetune"
        )
    return model


def detector_file(path):
    """The `.keras` file itself, or the one of a folder that `finetune` wrote. Raises ValueError where there is none."""
    file = Path(path)
    file = file / "detector.keras" if file.is_dir() else file
    if not file.is_file() or file.suffix != ".keras":
        raise ValueError(f"Expected a detector (.keras, or a folder of finetune), received {path}. Fix: the path")
    return file
