"""Lets `keras.saving.load_model` find this package's classes after `import dupr_tf`, which does not import them.

Keras finds a saved class only by its registered name. Each name gets a stand-in that imports the class when a file
needs it. The class then replaces the stand-in.
"""

from __future__ import annotations

import contextlib
import importlib
import sys

from dupr_tf.around_import import install

CLASSES = {  # module -> its registered classes
    "dupr_tf.models.resnet": ("ResNetBackbone",),
    "dupr_tf.models.layers": ("TrainedConv2D", "FusedBatchNormalization"),
    "dupr_tf.models.heads": ("ProjectionHead",),
    "dupr_tf.models.encoder": ("Encoder",),
    "dupr_tf.models.memory_bank": ("MemoryBank",),
    "dupr_tf.models.terms.contrast": ("ImageContrast", "PatchContrast"),
    "dupr_tf.models.dupr": ("DUPR",),
    "dupr_tf.training.optimizers": ("CoupledSGD", "AdamW", "LossScaling", "Cosine", "Milestones", "AfterChange"),
    "dupr_tf.detection.dfine": ("KerasHubDFine",),
    "dupr_tf.detection.fcn": ("FCN",),
    "dupr_tf.detection.kerashub": ("KerasHubRetinaNet",),
    "dupr_tf.detection.parts.pyramid": ("FeaturePyramid", "PyramidNeck"),
    "dupr_tf.detection.rcnn.model": ("FasterRCNN", "MaskRCNN"),
    "dupr_tf.detection.rcnn.proposals": ("RPNHead",),
    "dupr_tf.detection.rcnn.region_heads": ("PyramidRegions", "BoxPredictor", "MaskHead"),
    "dupr_tf.detection.retinanet": ("RetinaNet", "PredictionHead"),
    "dupr_tf.detection.yolov8": ("YOLOv8",),
}


class StandIn:
    """Stands for a class in Keras' registry. It has the one method that Keras calls to load a file.

    Args:
        module, name: module and name of the class.
    """

    def __init__(self, module: str, name: str):
        self.module, self.name = module, name

    def from_config(self, config: dict):
        return getattr(importlib.import_module(self.module), self.name).from_config(config)


def register_stand_ins(keras) -> None:
    """Adds a stand-in to Keras' registry for each class that is not registered yet."""
    registry = keras.saving.get_custom_objects()
    for module, names in CLASSES.items():
        for name in names:
            registry.setdefault(f"dupr_tf>{name}", StandIn(module, name))


def register_with_keras() -> None:
    """Registers the stand-ins now if Keras is imported, or else once it is."""
    keras = sys.modules.get("keras")
    if keras is not None and hasattr(keras, "saving"):
        register_stand_ins(keras)
    else:
        install(("keras",), _registering)


@contextlib.contextmanager
def _registering(name):
    yield
    register_stand_ins(sys.modules[name])
