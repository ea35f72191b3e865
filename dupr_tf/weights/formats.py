"""Lists the formats that `export` writes, and the extra packages that each needs. Imports no TensorFlow."""

import importlib.util

from dupr_tf.registry import Entry, Registry

# A target is called as `target(backbone, directory)`, fills the empty directory and returns a `Written`. Facts:
# `pixels` is True if it takes pixels in 0-255 (None: as the backbone does). `copies` counts its files with all weights.
EXPORTS = Registry(
    "export format",
    "to",
    {
        "keras": Entry(
            "dupr_tf.weights.keras_io:write_keras", "a .keras file of the unchanged model", facts={"pixels": None}
        ),
        "saved_model": Entry(
            "dupr_tf.weights.saved_model:write_saved_model",
            "TensorFlow SavedModel: images in, P2..P5 out",
            facts={"pixels": True},
        ),
        "onnx": Entry(
            "dupr_tf.weights.onnx_io:write_onnx_directory",
            "ONNX file: images in, P2..P5 out",
            "onnx",
            ("onnx", "tf2onnx", "onnxruntime"),
            facts={"pixels": True},
        ),
        "torchvision": Entry(
            "dupr_tf.weights.torch_export:write_torchvision",
            "safetensors for torchvision, and a .pth where PyTorch is installed",
            facts={"pixels": False, "copies": 2, "levels": "layer1..layer4"},
        ),
        "timm": Entry(
            "dupr_tf.weights.torch_export:write_timm",
            "safetensors and config.json for timm.create_model",
            facts={"pixels": False, "levels": "layer1..layer4"},
        ),
        "detectron2": Entry(
            "dupr_tf.weights.detectron2_io:write_detectron2_directory",
            "a pickle that detectron2 loads, and its config lines",
            facts={"pixels": False, "levels": "res2..res5"},
        ),
        "kerashub": Entry(
            "dupr_tf.weights.kerashub_io:write_kerashub",
            "a KerasHub preset with its image converter",
            "kerashub",
            ("keras_hub",),
            facts={"pixels": False},
        ),
        "kerascv": Entry(
            "dupr_tf.weights.keras_io:write_kerascv",
            "a .keras file with the normalisation inside, for KerasCV's detectors",
            facts={"pixels": True},
        ),
    },
)
FORMATS = tuple(EXPORTS)


def installed(module):
    """Return True if a module is installed, without importing it."""
    return importlib.util.find_spec(module) is not None
