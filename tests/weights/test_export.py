"""Exports: complete, verified, described, or not there at all."""

import json

import keras
import numpy as np
import pytest

from dupr_tf.models.resnet import build_backbone, pyramid
from dupr_tf.weights import export as module
from dupr_tf.weights.export import FORMATS, export
from dupr_tf.weights.loading import load_backbone
from dupr_tf.weights.manifest import check_directory, sha256_of
from dupr_tf.weights.names import torch_arrays

IMAGES = np.random.default_rng(0).integers(0, 256, (1, 64, 64, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def backbone():
    keras.utils.set_random_seed(0)
    return build_backbone("resnet18", width=0.125, include_normalization=True)


@pytest.mark.parametrize(
    ("to", "files"),
    [
        ("saved_model", {"saved_model.pb", "fingerprint.pb", "variables/variables.index"}),
        ("keras", {"backbone.keras"}),
        ("detectron2", {"backbone.pkl", "README.md"}),
        ("torchvision", {"backbone.safetensors"}),
    ],
)
def test_an_export_is_whole(backbone, tmp_path, to, files):
    output = export(backbone, to, tmp_path / "deep" / "out", card={"data": "1,024 photos | mine"})
    assert output == tmp_path / "deep" / "out"
    manifest = json.loads((output / "manifest.json").read_text())
    assert manifest["format"] == to and manifest["difference"] == 0.0
    assert files | {"model_card.md"} <= set(manifest["files"])
    for name, digest in manifest["files"].items():
        assert sha256_of(output / name) == digest
    card = (output / "model_card.md").read_text()
    assert "resnet18, width 0.125" in card and "1,024 photos \\| mine" in card and "| parameters | " in card
    assert [path.name for path in output.parent.iterdir()] == ["out"]  # nothing temporary stays


@pytest.mark.parametrize("to", ["keras", "torchvision"])
def test_an_export_loads_with_the_same_features(backbone, tmp_path, to):
    loaded = load_backbone(export(backbone, to, tmp_path / "out"), include_normalization=True)
    expected = pyramid(backbone)(IMAGES)
    for level, value in pyramid(loaded)(IMAGES).items():
        np.testing.assert_array_equal(value, expected[level])


def test_an_earlier_export_is_replaced_only_when_asked(backbone, tmp_path):
    output = export(backbone, "keras", tmp_path / "out")
    with pytest.raises(ValueError, match=r"which exists\. Fix: pass overwrite"):
        export(backbone, "torchvision", output)
    assert (output / "backbone.keras").is_file()
    export(backbone, "torchvision", output, overwrite=True)
    assert not (output / "backbone.keras").exists() and (output / "backbone.safetensors").is_file()
    check_directory(output)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_what_is_no_export_is_never_replaced(backbone, tmp_path):
    photos = tmp_path / "photos"
    photos.mkdir()
    (photos / "a.jpg").write_bytes(b"precious")
    with pytest.raises(ValueError, match=r"has no manifest\.json"):
        export(backbone, "keras", photos, overwrite=True)
    (tmp_path / "file").write_text("precious")
    with pytest.raises(ValueError, match=r"has no manifest\.json"):
        export(backbone, "keras", tmp_path / "file", overwrite=True)
    assert (photos / "a.jpg").read_bytes() == b"precious" and (tmp_path / "file").read_text() == "precious"


def test_an_empty_directory_is_filled(backbone, tmp_path):
    (tmp_path / "out").mkdir()
    assert (export(backbone, "torchvision", tmp_path / "out") / "backbone.safetensors").is_file()


@pytest.mark.parametrize("to", [to for to in FORMATS if to != "saved_model"])  # that one: test_saved_model
def test_weights_with_nan_are_refused_and_nothing_stays(tmp_path, to):
    broken = build_backbone("resnet18", width=0.125)
    broken.get_layer("stack1_block0_1_bn").beta.assign(np.full(16, np.nan))
    with pytest.raises(ValueError, match="NaN"):
        export(broken, to, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("to", ["keras", "torchvision", "detectron2"])
def test_a_difference_is_refused_and_the_earlier_export_stays(backbone, tmp_path, monkeypatch, to):
    output = export(backbone, to, tmp_path / "out")
    before = (output / "manifest.json").read_text()
    other = build_backbone("resnet18", width=0.125, include_normalization=True)
    monkeypatch.setattr(module, "load_backbone", lambda *_: other)
    monkeypatch.setattr(module, "torch_arrays", lambda _, layout: torch_arrays(other, layout))
    with pytest.raises(ValueError, match=f"Expected the {to} export to give the model's features to 0.0001"):
        export(backbone, to, output, overwrite=True)
    assert (output / "manifest.json").read_text() == before
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize(
    ("to", "output", "message"),
    [
        (
            "onnx",
            "out",
            r"Expected one of saved_model, keras, detectron2, torchvision, received 'onnx'\. Fix",
        ),
        ("keras", "model.keras", r"Expected a directory as output, .*model\.keras\. Fix: drop the ending"),
    ],
)
def test_wrong_arguments_are_named(backbone, tmp_path, to, output, message):
    with pytest.raises(ValueError, match=message):
        export(backbone, to, tmp_path / output)


def test_a_model_of_another_kind_is_refused_where_it_could_not_be_read_again(tmp_path):
    ours = build_backbone("resnet18", width=0.125)
    other = keras.Model(ours.input, ours.output, name="other")
    other.pyramid_level_inputs = ours.pyramid_level_inputs
    for to in ("torchvision", "detectron2"):
        with pytest.raises(ValueError, match="Expected a ResNetBackbone, received `other`"):
            export(other, to, tmp_path / "out")
    with pytest.raises(ValueError, match="Expected a backbone with a feature pyramid"):
        export(other, "keras", tmp_path / "out")  # no class of its own: Keras forgets the attribute
    assert list(tmp_path.iterdir()) == []
