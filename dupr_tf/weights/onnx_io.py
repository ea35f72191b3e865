"""Writes and reads backbones as ONNX files: raw images in, P2..P5 out, any size. Needs the extra `onnx`."""

from pathlib import Path

import numpy as np

from dupr_tf.models.resnet import ResNetBackbone
from dupr_tf.weights.formats import EXPORTS
from dupr_tf.weights.saved_model import as_numpy, serving_function, serving_model
from dupr_tf.weights.verify import Written, compare, float32_twin

ONNX_FILE = "backbone.onnx"
OPSET = 17


def write_onnx_directory(backbone, directory):
    """Write `backbone.onnx` into a directory; see `write_onnx`."""
    return write_onnx(backbone, directory / ONNX_FILE)


def write_onnx(backbone, path):
    """Write a backbone as an ONNX file with the normalisation inside.

    It has one input, `images`, float32 `[batch, height, width, 3]`, RGB in 0–255. It has one output per level,
    `P2`..`P5`, `[batch, h, w, channels]`. Batch, height and width may vary.

    Args:
        backbone: a model `dupr_tf.models.resnet.pyramid` accepts; its weights are written in float32.
        path: the file, ending in `.onnx`.

    Returns:
        A `Written` that compares onnxruntime on the CPU with the model.

    Raises:
        UserError: if the extra `onnx` is not installed.
    """
    EXPORTS.check("onnx")
    import onnxruntime
    import tf2onnx

    if isinstance(backbone, ResNetBackbone):  # in float32 even if it was trained in a lower precision
        backbone = float32_twin(backbone, include_normalization=True)
    function = serving_function(serving_model(backbone))
    signature = list(function.input_signature)
    tf2onnx.convert.from_function(function, input_signature=signature, opset=OPSET, output_path=str(path))
    against = f"onnxruntime {onnxruntime.__version__}"
    return Written(compare(against, as_numpy(function), read_onnx(path)))


def open_session(path: Path):
    """Opens an ONNX file with onnxruntime on the CPU. The path may be any that the system allows."""
    import onnxruntime

    return onnxruntime.InferenceSession(path.read_bytes(), providers=["CPUExecutionProvider"])


def read_onnx(path):
    """Return an ONNX file of `write_onnx` as `f(images in 0–255) -> {level: NumPy array}`, run by onnxruntime."""
    session = open_session(Path(path))
    (images,) = session.get_inputs()
    names = [output.name for output in session.get_outputs()]

    def features(pixels):
        values = session.run(names, {images.name: np.asarray(pixels, dtype=np.float32)})
        return dict(zip(names, values, strict=True))

    return features
