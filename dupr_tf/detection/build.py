"""Builds detectors from configs, lists their classes and names their tasks."""

from __future__ import annotations

from dupr_tf.config.detectors import DETECTORS


def build_detector(backbone, class_names, config):
    """Builds the detector of `config.detector` on this backbone, without compiling it.

    Args:
        backbone: a functional model with `pyramid_level_inputs`; it takes RGB images in 0–255.
        class_names: names of the classes 0, 1, …
        config: config with a `detector` section.

    Raises:
        UserError: a kind whose extra is not installed, or a backbone it does not support.
    """
    return DETECTORS.load(config.detector.kind).from_experiment(backbone, tuple(class_names), config)


def detector_classes():
    """Imports the installed detector classes, so that Keras finds them by name, and returns them."""
    return tuple(DETECTORS.load(kind) for kind, entry in DETECTORS.items() if not entry.missing)


def task_of(detector):
    """Returns the task of a detector: "boxes", "masks" or "segments"."""
    tasks = {entry.target: entry.facts["task"] for entry in DETECTORS.values()}
    names = (f"{one.__module__}:{one.__name__}" for one in type(detector).__mro__)
    return next(tasks[name] for name in names if name in tasks)
