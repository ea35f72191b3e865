"""Tests of detector exports: equal detections in every runtime, with a description, or no export at all."""

import importlib.util
import json
import types
import zipfile

import numpy as np
import pytest
import tensorflow as tf

from dupr_tf import cli
from dupr_tf.detection import export as exports
from dupr_tf.detection.export import compare_detections, compare_runtimes, export_file
from dupr_tf.detection.saving import save_detector
from dupr_tf.errors import RunFailed
from dupr_tf.weights.manifest import check_directory
from dupr_tf.weights.onnx_io import open_session
from tests.detection.rcnn.small import NAMES, make
from tests.odd_names import ODD

HAS_ONNX = all(importlib.util.find_spec(name) for name in ("onnx", "tf2onnx", "onnxruntime"))
ONNX = pytest.param("onnx", marks=pytest.mark.skipif(not HAS_ONNX, reason="the extra onnx is not installed"))


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    path = tmp_path_factory.mktemp("detector") / ODD / "detector.keras"
    path.parent.mkdir()
    save_detector(make("mask", "fpn", image_size=96), path)
    return path


@pytest.mark.slow
@pytest.mark.parametrize("to", ["litert", "saved_model", ONNX])
def test_exported_detector_detects_the_same(file, tmp_path, to):
    output = export_file(file, to, tmp_path / ODD / ODD)
    check_directory(output)
    manifest = json.loads((output / "manifest.json").read_text())
    assert {check["level"] for check in manifest["checks"]} == {"boxes", "scores", "masks"}
    assert all(check["image"].split(", ")[1] != "0 detections" for check in manifest["checks"])
    assert manifest["relative_difference"] < 1e-4 and not manifest["not_compared"]
    assert (output / "labels.txt").read_text().split() == list(NAMES)
    description = json.loads((output / "detector.json").read_text())
    assert description["class_names"] == list(NAMES) and description["score_threshold"] == 0.28
    if to == "litert":
        with zipfile.ZipFile(output / "detector.tflite") as archive:
            assert json.loads(archive.read("detector.json")) == description
    if to == "onnx":
        session = open_session(output / "detector.onnx")
        stored = session.get_modelmeta().custom_metadata_map
        assert {name: json.loads(value) for name, value in stored.items()} == description
        assert session.get_inputs()[0].shape == ["batch", "height", "width", 3]


def test_export_with_other_detections_leaves_nothing(file, tmp_path, monkeypatch):
    def write(detector, directory, description):
        def run(images):
            results = {name: value.numpy() for name, value in exports.serve_function(detector)(images).items()}
            return {**results, "boxes": results["boxes"] + 1}

        return "a broken runtime", run

    monkeypatch.setattr("dupr_tf.detection.runtimes.write_litert", write)
    with pytest.raises(RunFailed):
        export_file(file, "litert", tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def detections(*rows, count=4):
    """Returns rows of (x1, score, class) as detections of an image."""
    padded = [*rows, *[(-1, -1, -1)] * (count - len(rows))]
    left, scores, classes = (np.array(column, np.float32)[None] for column in zip(*padded, strict=True))
    boxes = np.stack([left, left * 0, left + 10, left * 0 + 10], -1)
    return {"boxes": boxes, "scores": scores, "classes": classes, "num_detections": np.array([len(rows)])}


def test_images_without_detections_are_not_called_compared(monkeypatch):
    monkeypatch.setattr(exports, "serve_function", lambda _: lambda images: tensors(detections()))
    monkeypatch.setattr(exports, "task_of", lambda _: "boxes")
    detector = types.SimpleNamespace(score_threshold=0.3, max_detections=4)
    written = compare_runtimes(detector, "onnxruntime", lambda _: detections(), [np.zeros((5, 7, 3), np.uint8)])
    assert "none in 1 image. Pass another --image" in written.not_compared[0]
    assert {check.image for check in written.checks} == {"7×5, 0 detections"}


def tensors(arrays):
    return {name: tf.constant(value) for name, value in arrays.items()}


def test_detections_are_compared_one_by_one():
    first = detections((10, 0.9, 0), (40, 0.5, 1))
    assert compare_detections(first, first, 0.3, 4) == {"boxes": 0.0, "scores": 0.0}
    swapped = detections((40, 0.5, 1), (12, 0.8, 0))
    assert compare_detections(first, swapped, 0.3, 4) == {"boxes": 2.0, "scores": pytest.approx(0.1)}
    for other in (detections((10, 0.9, 0)), detections((10, 0.9, 0), (40, 0.5, 2)), detections()):
        assert compare_detections(first, other, 0.3, 4)["boxes"] == np.inf
        assert compare_detections(other, first, 0.3, 4)["boxes"] == np.inf
    assert compare_detections(first, detections((10, 0.9, 0)), 0.49999, 4)["boxes"] == 0.0  # at the threshold
    full = compare_detections(first, detections((10, 0.9, 0), (70, 0.5, 1)), 0.3, 2)
    assert full["boxes"] == 0.0  # the last of two that match


def test_detector_in_place_of_a_backbone_is_refused(file, tmp_path):
    for line in (
        ["export", str(file), "--to", "timm"],
        ["import", str(file)],
        ["export", str(file.parent), "--to", "keras"],
    ):
        assert cli.main([*line, "--output", str(tmp_path / "out")]) == 2
    assert not (tmp_path / "out").exists()
