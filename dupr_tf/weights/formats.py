"""What `export` writes, and what each format needs besides this package. Importing this needs no TensorFlow."""

import importlib.util

from dupr_tf.errors import UserError

FORMATS = ("keras", "saved_model", "onnx", "torchvision", "timm", "detectron2", "kerashub", "kerascv")

# Format -> (extra of this package that brings it, modules it needs).
EXTRAS = {
    "onnx": ("onnx", ("onnx", "tf2onnx", "onnxruntime")),
    "kerashub": ("kerashub", ("keras_hub",)),
}


def installed(module):
    """Whether a module is there to be imported; it is not imported."""
    return importlib.util.find_spec(module) is not None


def check_format(to):
    """Refuse a format that does not exist, or that needs what is not installed.

    Raises:
        UserError: naming the formats, or the extra to install.
    """
    if to not in FORMATS:
        raise UserError("to", f"Expected one of {', '.join(FORMATS)}, received {to!r}.")
    extra, modules = EXTRAS.get(to, (None, ()))
    missing = [module for module in modules if not installed(module)]
    if missing:
        raise UserError(
            "to", f"{to} needs {', '.join(missing)}, which is not installed.", f"Run: pip install 'dupr_tf[{extra}]'."
        )
