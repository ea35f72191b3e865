"""Tests exports in the libraries they are for, where installed, on an even-sized and an odd-sized image."""

import json
import subprocess
import sys

import keras
import numpy as np
import pytest

from dupr_tf.errors import RunFailed, UserError
from dupr_tf.models.resnet import pyramid
from dupr_tf.weights import torch_export
from dupr_tf.weights.export import export
from dupr_tf.weights.formats import installed
from dupr_tf.weights.names import keras_variable, weight_names
from dupr_tf.weights.verify import check_images, features, normalized
from tests.odd_names import ODD
from tests.weights.backbones import randomised

BAR = 1e-5  # share of a level's largest feature


def needs(*modules):
    """Skips where a module is not installed. It imports none, since PyTorch with TensorFlow can crash."""
    missing = [module for module in modules if not installed(module)]
    return pytest.mark.skipif(bool(missing), reason=f"{', '.join(missing)} not installed")


def checks_of(output, library):
    """Returns the comparisons with a library: all levels of both images, each within the tolerance."""
    manifest = json.loads((output / "manifest.json").read_text())
    assert manifest["not_compared"] == []
    checks = [check for check in manifest["checks"] if check["against"].startswith(library)]
    assert {(check["image"], check["level"]) for check in checks} == {
        (image, level) for image in ("64×96", "65×97") for level in ("P2", "P3", "P4", "P5")
    }
    for check in checks:
        assert check["difference"] <= BAR * check["scale"], check
    return checks


@pytest.mark.parametrize("architecture", ["resnet18", "resnet50"])
@pytest.mark.parametrize(
    "library", [pytest.param(name, marks=needs("torch", name)) for name in ("torchvision", "timm")]
)
def test_networks_of_pytorch_give_our_features(library, architecture, tmp_path):
    output = export(randomised(architecture), library, tmp_path / "out")
    assert max(check["difference"] for check in checks_of(output, library)) > 0  # it was another network


@needs("torch")
def test_pth_file_holds_tensors_only(tmp_path):
    output = export(randomised("resnet18", width=0.125), "torchvision", tmp_path / "out")
    code = "import sys, torch; print(len(torch.load(sys.argv[1], weights_only=True)))"
    command = [sys.executable, "-c", code, str(output / "backbone.pth")]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip() == "100"


def test_pth_export_without_pytorch_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(torch_export, "installed", lambda module: False)
    output = export(randomised("resnet18", width=0.125), "torchvision", tmp_path / "out")
    assert {path.name for path in output.iterdir()} == {"backbone.safetensors", "manifest.json", "model_card.md"}
    assert "not compared with torchvision: not installed" in (output / "model_card.md").read_text()


@pytest.mark.parametrize(
    "library", [pytest.param(name, marks=needs("torch", name)) for name in ("torchvision", "timm")]
)
def test_unavailable_width_is_not_compared(library, tmp_path):
    output = export(randomised("resnet18", width=0.125), library, tmp_path / "out")
    manifest = json.loads((output / "manifest.json").read_text())
    assert manifest["not_compared"] == [f"{library}: it has no resnet18 of width 0.125"]


@needs("torch", "torchvision")
@pytest.mark.parametrize(
    ("rename", "message"),
    [
        ({"bn1.bias": "bn1.offset"}, r"missing \['bn1.bias'\], unexpected \['bn1.offset'\]"),
        (
            {"layer1.0.bn1.bias": "layer1.0.bn2.bias", "layer1.0.bn2.bias": "layer1.0.bn1.bias"},
            "differ from the model's",
        ),
    ],
    ids=["unknown", "swapped"],
)
def test_wrong_name_in_the_table_is_detected_by_torchvision(rename, message, tmp_path, monkeypatch):
    from dupr_tf.weights import names

    def wrong(architecture, rows=names.weight_names):
        return tuple(
            row._replace(torchvision=rename.get(row.torchvision, row.torchvision)) for row in rows(architecture)
        )

    monkeypatch.setattr(names, "weight_names", wrong)  # wrong in both directions: our own reader sees nothing
    with pytest.raises(RunFailed, match=message):
        export(randomised("resnet18"), "torchvision", tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("answer", ["raise SystemExit('no such thing')", "import os; os.kill(os.getpid(), 11)"])
def test_pytorch_that_fails_or_crashes_is_refused(answer, tmp_path, monkeypatch):
    (tmp_path / "process.py").write_text(answer)
    monkeypatch.setattr(torch_export, "PROCESS", tmp_path / "process.py")
    with pytest.raises(RunFailed, match=r"timm.*(no such thing|exit code -11)"):
        torch_export.ask({"task": "timm"})


def test_pytorch_import_error_is_reported(tmp_path, monkeypatch):
    monkeypatch.setattr(torch_export, "installed", lambda module: True)
    (tmp_path / "process.py").write_text('print(\'{"unavailable": "ImportError: libc10.so"}\')')
    monkeypatch.setattr(torch_export, "PROCESS", tmp_path / "process.py")
    output = export(randomised("resnet18", width=0.125), "torchvision", tmp_path / "out")
    told = json.loads((output / "manifest.json").read_text())["not_compared"]
    assert "torch, and no backbone.pth was written: ImportError: libc10.so" in told


@needs("onnx", "tf2onnx", "onnxruntime")
@pytest.mark.parametrize(
    ("architecture", "width", "normalising"),
    [
        ("resnet18", 0.125, False),
        ("resnet18", 0.125, True),
        pytest.param("resnet50", 0.125, False, marks=pytest.mark.slow),
    ],
)
def test_onnx_export_gives_our_features(architecture, width, normalising, tmp_path):
    from dupr_tf.weights.onnx_io import read_onnx

    backbone = randomised(architecture, width=width, include_normalization=normalising)
    output = export(backbone, "onnx", tmp_path / ODD)
    checks_of(output, "onnxruntime")
    images = np.concatenate([check_images((33, 47)), check_images((33, 47))[:, ::-1]])  # a batch of yet another size
    expected = features(backbone, images if normalising else normalized(images))
    received = read_onnx(output / "backbone.onnx")(images)
    assert sorted(received) == ["P2", "P3", "P4", "P5"]
    for level, value in received.items():
        assert value.dtype == np.float32
        np.testing.assert_allclose(value, expected[level], atol=1e-5 * np.abs(expected[level]).max())


@needs("onnx", "tf2onnx", "onnxruntime")
def test_onnx_file_of_other_weights_is_refused(tmp_path, monkeypatch):
    from dupr_tf.weights import onnx_io

    read = onnx_io.read_onnx
    monkeypatch.setattr(onnx_io, "read_onnx", lambda path: lambda x: {k: v * 1.001 for k, v in read(path)(x).items()})
    with pytest.raises(RunFailed, match="onnx"):
        export(randomised("resnet18", width=0.125), "onnx", tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


@needs("keras_hub")
@pytest.mark.parametrize("architecture", ["resnet18", "resnet50"])
def test_kerashub_export_keeps_weights(architecture, tmp_path):
    import keras_hub

    backbone = randomised(architecture)
    output = export(backbone, "kerashub", tmp_path / "out")
    checks_of(output, f"KerasHub {keras_hub.__version__} with")
    loaded = keras_hub.models.ResNetBackbone.from_preset(str(output))
    for row in weight_names(architecture):
        theirs = keras_variable(loaded, row.kerashub)
        np.testing.assert_array_equal(keras_variable(backbone, row.keras), theirs)


@needs("keras_hub")
def test_kerashub_export_needs_the_full_width(tmp_path):
    with pytest.raises(UserError) as error:
        export(randomised("resnet18", width=0.125), "kerashub", tmp_path / "out")
    assert error.value.field == "backbone" and "0.125" in error.value.problem
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def kerascv_file(tmp_path):
    return export(randomised("resnet18", width=0.125), "kerascv", tmp_path / "out") / "backbone.keras"


def test_kerascv_file_accepts_raw_images(kerascv_file):
    backbone, images = randomised("resnet18", width=0.125), check_images((64, 64))
    for level, value in features(keras.saving.load_model(kerascv_file), images).items():
        expected = np.asarray(pyramid(backbone)(normalized(images))[level])
        np.testing.assert_allclose(value, expected, atol=1e-5 * np.abs(expected).max())


@pytest.mark.slow  # models/test_resnet.py builds a RetinaNet on the backbone
def test_kerascv_file_loads_and_carries_a_retinanet(kerascv_file):
    code = """
import sys, keras, numpy, dupr_tf.models
backbone = keras.saving.load_model(sys.argv[1])
import keras_cv
detector = keras_cv.models.RetinaNet(num_classes=20, bounding_box_format="xyxy", backbone=backbone)
outputs = detector(numpy.zeros((1, 64, 64, 3)))
print(sorted(backbone.pyramid_level_inputs), {name: tuple(value.shape) for name, value in outputs.items()})
"""
    done = subprocess.run([sys.executable, "-c", code, kerascv_file], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    printed = done.stdout.strip().splitlines()[-1]
    assert "['P2', 'P3', 'P4', 'P5']" in printed and "(1, 774, 4)" in printed, printed
