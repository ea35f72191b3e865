"""dupr_tf: pre-training of object-detection backbones from unlabelled images (DUPR) in Keras 3 and TensorFlow.

The public names are imported when first used, so that `import dupr_tf` costs nothing and a config is checked before
TensorFlow loads.
"""

import importlib
import importlib.util
import os
import sys

from dupr_tf.serialization import register_with_keras

__version__ = "0.1.0"

# Turns on oneDNN's kernels. TensorFlow's default uses them only on CPUs with AVX-512. Without AVX-512 they train a
# ResNet-18 1.3 times as fast (docs/performance.md). TensorFlow reads this variable on import. An earlier value is kept.
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")
register_with_keras()

# Keras reads its backend on import. Only TensorFlow works here, whatever other projects have set.
if "keras" not in sys.modules:
    os.environ["KERAS_BACKEND"] = "tensorflow"

# A notebook passes its plot backend to programs that it starts. Without that backend there, Keras would not load.
_plots = os.environ.get("MPLBACKEND", "")
if _plots.startswith("module://") and not importlib.util.find_spec(_plots.removeprefix("module://").partition(".")[0]):
    os.environ["MPLBACKEND"] = "agg"

_HOME = {
    "Config": "dupr_tf.config",
    "load_config": "dupr_tf.config",
    "DUPR": "dupr_tf.models",
    "MemoryBank": "dupr_tf.models",
    "ResNetBackbone": "dupr_tf.models",
    "build_backbone": "dupr_tf.models",
    "pretrain": "dupr_tf.training.pretrain",
    "finetune": "dupr_tf.detection.finetune",
    "evaluate": "dupr_tf.detection.finetune",
    "predict": "dupr_tf.detection.predict",
    "Detector": "dupr_tf.detection.inference",
    "load_detector": "dupr_tf.detection.saving",
    "load_backbone": "dupr_tf.weights.loading",
    "embed": "dupr_tf.probing.embedder",
    "export": "dupr_tf.weights.export",
}

_PACKAGES = (
    "batch", "config", "data", "detection", "errors", "models", "ops", "probing", "training", "weights",
)  # fmt: skip

__all__ = [*_HOME, "__version__"]


def __getattr__(name):
    if name in _PACKAGES:
        return importlib.import_module(f"dupr_tf.{name}")
    if name not in _HOME:
        raise AttributeError(f"module 'dupr_tf' has no attribute {name!r}; it has {', '.join(__all__)}")
    return getattr(importlib.import_module(_HOME[name]), name)


def __dir__():
    return sorted([*__all__, *_PACKAGES])
