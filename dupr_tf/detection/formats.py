"""Lists the export formats of detectors, and the extra packages that each needs. Imports no TensorFlow."""

from __future__ import annotations

from dupr_tf.registry import Entry, Registry

# A target is called as `target(detector, directory, description)`, fills the directory, and returns the name of the
# runtime and a function from images (1, H, W, 3) uint8 to {output: array} that runs the written file.
DETECTOR_EXPORTS = Registry(
    "export format of detectors",
    "to",
    {
        "saved_model": Entry(
            "dupr_tf.detection.runtimes:write_saved_model", "TensorFlow SavedModel: images in, detections out"
        ),
        "onnx": Entry(
            "dupr_tf.detection.runtimes:write_onnx",
            "ONNX file: images in, detections out",
            "onnx",
            ("onnx", "tf2onnx", "onnxruntime"),
        ),
        "litert": Entry(
            "dupr_tf.detection.runtimes:write_litert", "LiteRT (.tflite) file: one image in, detections out"
        ),
    },
)
