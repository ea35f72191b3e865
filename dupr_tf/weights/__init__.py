"""Reads and writes weights of Keras, SavedModel, ONNX, torchvision, timm, detectron2, KerasHub and KerasCV.

The public names are imported at first use: importing this package, `names` or `formats` loads no TensorFlow.
`dupr_tf.export` is the one call that writes, verifies and describes an export.
"""

import importlib

_HOME = {
    "EXPORTS": "formats",
    "FORMATS": "formats",
    "weight_names": "names",
    "translation": "names",
    "named_arrays": "names",
    "assign_arrays": "names",
    "load_backbone": "loading",
    "import_backbone": "loading",
    "read_checkpoint": "foreign",
    "to_torchvision": "torch_io",
    "from_torchvision": "torch_io",
    "to_keras_hub": "kerashub_io",
    "from_keras_hub": "kerashub_io",
    "write_detectron2": "detectron2_io",
    "write_onnx": "onnx_io",
    "read_onnx": "onnx_io",
    "write_saved_model": "saved_model",
    "read_saved_model": "saved_model",
}

__all__ = list(_HOME)


def __getattr__(name):
    if name not in _HOME:
        raise AttributeError(f"module 'dupr_tf.weights' has no attribute {name!r}; it has {', '.join(__all__)}")
    return getattr(importlib.import_module(f"dupr_tf.weights.{_HOME[name]}"), name)


def __dir__():
    return sorted({*globals(), *__all__})
