"""Writers of detectors for TensorFlow, ONNX and LiteRT, and the runtimes that run the written files.

A writer takes a detector, a directory and a description, which it stores in the file where the format has room. It
returns the name of the runtime and a function from images (1, H, W, 3) uint8 to {output: array}.
"""

from __future__ import annotations

import json
import tempfile
import warnings
import zipfile

import numpy as np
import tensorflow as tf

from dupr_tf.detection.parts.target import LITERT, ONNX, tracing_for
from dupr_tf.detection.saving import export_detector, serve_function
from dupr_tf.weights.onnx_io import open_session

LABELS_FILE, DESCRIPTION_FILE = "labels.txt", "detector.json"
ONNX_FILE, LITERT_FILE = "detector.onnx", "detector.tflite"
OPSET = 17


def write_saved_model(detector, directory, description):
    """Writes the SavedModel of `export_detector`; other files of the export hold its description."""
    export_detector(detector, directory)
    loaded = tf.saved_model.load(str(directory))

    def run(images):
        return {name: value.numpy() for name, value in loaded.serve(tf.constant(images)).items()}

    return f"TensorFlow {tf.__version__}", run


def write_onnx(detector, directory, description):
    """Writes an ONNX file for batches of any number of images of any size; the description is in its metadata."""
    import onnx
    import onnxruntime
    import tf2onnx

    with tracing_for(ONNX):
        function = serve_function(detector)
        function.get_concrete_function()
        model, _ = tf2onnx.convert.from_function(function, input_signature=function.input_signature, opset=OPSET)
    for tensor, names in [
        (model.graph.input[0], ("batch", "height", "width")),
        *((o, ("batch",)) for o in model.graph.output),
    ]:
        for dimension, name in zip(tensor.type.tensor_type.shape.dim, names, strict=False):
            dimension.dim_param = name
    onnx.helper.set_model_props(model, {name: json.dumps(value) for name, value in description.items()})
    onnx.save(model, str(directory / ONNX_FILE))
    session = open_session(directory / ONNX_FILE)
    outputs = [output.name for output in session.get_outputs()]

    def run(images):
        return dict(zip(outputs, session.run(outputs, {"images": images}), strict=True))

    return f"onnxruntime {onnxruntime.__version__}", run


def write_litert(detector, directory, description):
    """Writes a LiteRT file of built-in operations for one image of any size.

    The description and the labels are appended to it as a zip archive, as is usual for LiteRT: `unzip detector.tflite`.
    """
    module = tf.Module()
    module.weights = [variable.value for variable in detector.variables]
    with tracing_for(LITERT), tempfile.TemporaryDirectory() as folder:
        module.serve = serve_function(detector, batch=1)
        tf.saved_model.save(module, folder, signatures={"serving_default": module.serve})
        converter = tf.lite.TFLiteConverter.from_saved_model(folder)
        converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS]
        (directory / LITERT_FILE).write_bytes(converter.convert())
    with zipfile.ZipFile(directory / LITERT_FILE, "a") as archive:
        archive.writestr(LABELS_FILE, "\n".join(detector.class_names) + "\n")
        archive.writestr(DESCRIPTION_FILE, json.dumps(description))
    with warnings.catch_warnings():  # announces that the interpreter of another package replaces this one
        warnings.simplefilter("ignore", UserWarning)
        interpreter = tf.lite.Interpreter(str(directory / LITERT_FILE))

    def run(images):
        results = interpreter.get_signature_runner()(images=images)
        return {name: np.array(value) for name, value in results.items()}

    return f"LiteRT's interpreter of TensorFlow {tf.__version__}", run
