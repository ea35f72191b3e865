"""Every kind of detector: how it is built, what it is called, what it finds. A new kind is a line here."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from typing import NamedTuple

from dupr_tf.detection.fcn import FCN, build_fcn
from dupr_tf.detection.rcnn import FasterRCNN, MaskRCNN, build_rcnn
from dupr_tf.detection.retinanet import RetinaNet, build_retinanet
from dupr_tf.errors import UserError

KERASHUB = importlib.util.find_spec("keras_hub") is not None


class Kind(NamedTuple):
    """A line of the table."""

    build: Callable  # (backbone, class_names, config) -> a detector, not compiled
    task: str  # a key of `tasks.TASKS`: "boxes", "masks" or "segments"


def build_kerashub_retinanet(backbone, class_names, config):
    """A `KerasHubRetinaNet`. Raises UserError where the extra is not installed."""
    if not KERASHUB:
        problem = "kerashub_retinanet needs keras_hub, which is not installed."
        raise UserError("detector.kind", problem, "Run: pip install 'dupr_tf[kerashub]'.")
    from dupr_tf.detection.kerashub import build_kerashub

    return build_kerashub(backbone, class_names, config)


KINDS = {
    "retinanet": Kind(build_retinanet, "boxes"),
    "kerashub_retinanet": Kind(build_kerashub_retinanet, "boxes"),
    "faster_rcnn": Kind(build_rcnn, "boxes"),
    "mask_rcnn": Kind(build_rcnn, "masks"),
    "fcn": Kind(build_fcn, "segments"),
}


def build_detector(backbone, class_names, config):
    """The detector that `config.detector` describes, on this backbone.

    Args:
        backbone: a functional model with `pyramid_level_inputs`; it takes RGB images in 0–255.
        class_names: names of the classes 0, 1, …
        config: with a `detector` section.

    Raises:
        UserError: a kind whose extra is not installed, or a backbone it cannot stand on.
    """
    return KINDS[config.detector.kind].build(backbone, tuple(class_names), config)


def detector_classes():
    """Every class of detector that can be read from a file here. Importing them lets Keras know their names."""
    classes = [RetinaNet, FasterRCNN, MaskRCNN, FCN]
    if KERASHUB:
        from dupr_tf.detection.kerashub import KerasHubRetinaNet

        classes.append(KerasHubRetinaNet)
    return tuple(classes)


def task_of(detector):
    """What a detector finds: "boxes", "masks" or "segments"."""
    tasks = {FCN: "segments", MaskRCNN: "masks"}
    return next((task for one, task in tasks.items() if isinstance(detector, one)), "boxes")
