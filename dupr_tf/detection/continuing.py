"""Continues training from a detector, on the same classes or on others."""

from __future__ import annotations

from pathlib import Path

from dupr_tf.config import Config
from dupr_tf.detection.saving import load_detector
from dupr_tf.errors import UserError
from dupr_tf.models.layers import norm_layers
from dupr_tf.weights.loading import check_architecture


def load_start(config: Config, path: str | Path):
    """Loads the detector to continue from. Norms that its own training froze can be trained again.

    Raises:
        UserError: its backbone is not that of the config.
    """
    detector = load_detector(path)
    check_architecture(detector.backbone, config.model.backbone, config.model.width, path)
    if detector.norm == "frozen":
        for layer in norm_layers(detector.backbone):
            layer.trainable = True
    return detector


def copy_weights(detector, start) -> str:
    """Copies the weights of one detector to another of the same kind and sizes.

    Args:
        detector: the detector to train. If its classes differ from those of `start`, layers with outputs for each class
            keep their weights, and so do layers whose width depends on the number of classes and differs.
        start: the detector to continue from.

    Returns:
        One line that says which layers were copied.

    Raises:
        UserError: the detectors differ in their sizes.
    """
    same = detector.class_names == start.class_names
    fresh = [] if same else [*detector.class_layers(), *_of_other_width(detector, start)]
    new = {id(v) for layer in fresh for v in layer.variables}
    pairs = [(v, w) for v, w in zip(detector.variables, start.variables, strict=False) if id(v) not in new]
    odd = next((v for v, w in pairs if v.shape != w.shape), None)
    if odd is not None or len(detector.variables) != len(start.variables):
        raise UserError(
            "--weights",
            f"The detector has other sizes than the config{f', for example of {odd.path}' if odd is not None else ''}.",
            "Use the settings of detector from the config.yaml of its run.",
        )
    for variable, value in pairs:
        variable.assign(value)
    if same:
        return "continuing from a detector of the same classes"
    layers = ", ".join(layer.name for layer in fresh)
    return f"continuing from a detector of other classes: {layers} start from random weights"


def _of_other_width(detector, start) -> list:
    """Returns the layers of a detector whose width depends on the number of classes and is another in `start`."""

    def shapes(layer):
        return [tuple(variable.shape) for variable in layer.variables]

    return [layer for layer in detector.class_widths() if shapes(layer) != shapes(start.get_layer(layer.name))]
