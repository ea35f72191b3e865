"""Tests of the detectron2 pickle, read back by an unpickler that knows only three names."""

import io
import pickle
import pickletools

import keras
import numpy as np
import pytest

from dupr_tf.errors import UserError
from dupr_tf.models.resnet import build_backbone
from dupr_tf.weights.detectron2_io import write_detectron2
from dupr_tf.weights.names import torch_arrays


class Restricted(pickle.Unpickler):
    """Allows only what an array needs, under names that NumPy 1 and 2 both have."""

    def find_class(self, module, name):
        allowed = {
            ("numpy.core.multiarray", "_reconstruct"): np._core.multiarray._reconstruct,
            ("numpy", "ndarray"): np.ndarray,
            ("numpy", "dtype"): np.dtype,
        }
        return allowed[module, name]


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    backbone = build_backbone("resnet50")
    path = tmp_path_factory.mktemp("detectron2") / "backbone.pkl"
    write_detectron2(backbone, path)
    return backbone, path


def test_file_has_the_format_of_detectron2(written):
    backbone, path = written
    checkpoint = Restricted(io.BytesIO(path.read_bytes()), encoding="latin1").load()  # as detectron2 reads it
    assert list(checkpoint) == ["model", "__author__", "matching_heuristics"]
    assert checkpoint["matching_heuristics"] is True and checkpoint["__author__"] == "dupr_tf"
    model = checkpoint["model"]
    assert len(model) == 265
    for name, array in torch_arrays(backbone, "detectron2").items():
        assert model[name].dtype == np.float32 and model[name].flags.writeable
        np.testing.assert_array_equal(model[name], array)


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("stem.conv1.weight", (64, 3, 7, 7)),
        ("stem.conv1.norm.running_var", (64,)),
        ("res2.0.shortcut.weight", (256, 64, 1, 1)),
        ("res3.0.conv2.weight", (128, 128, 3, 3)),
        ("res4.5.conv3.norm.bias", (1024,)),
        ("res5.2.conv3.weight", (2048, 512, 1, 1)),
    ],
)
def test_shapes_are_those_of_detectron2(written, name, shape):
    model = Restricted(io.BytesIO(written[1].read_bytes())).load()["model"]
    assert model[name].shape == shape


def test_pickle_has_protocol_3_and_only_old_numpy_names(written):
    found = set()
    for opcode, argument, _ in pickletools.genops(written[1].read_bytes()):
        if opcode.name == "PROTO":
            assert argument == 3
        assert opcode.proto <= 3 and "STACK_GLOBAL" not in opcode.name
        if opcode.name == "GLOBAL":
            found.add(argument)
    assert found == {"numpy.core.multiarray _reconstruct", "numpy ndarray", "numpy dtype"}


def test_readme_of_the_export_has_the_config(written):
    text = (written[1].parent / "README.md").read_text()
    for line in ("STRIDE_IN_1X1: False", 'FORMAT: "RGB"', "FREEZE_AT: 0", 'NORM: "SyncBN"', "DEPTH: 50"):
        assert line in text
    assert "PIXEL_MEAN: [123.675, 116.28, 103.53]" in text and "PIXEL_STD: [58.395, 57.12, 57.375]" in text
    assert "FPN only" not in text and "RES2_OUT_CHANNELS" not in text and "times as wide" not in text


def test_readme_of_a_small_network_states_its_config(tmp_path, caplog):
    write_detectron2(build_backbone("resnet18", width=0.5), tmp_path / "small.pkl")
    text = (tmp_path / "README.md").read_text()
    assert "DEPTH: 18" in text and "RES2_OUT_CHANNELS: 32" in text and "0.5 times as wide" in text
    assert "FPN only" in text and "detectron2 refuses it" in text and "width 1 only" in caplog.text
    assert len(Restricted(io.BytesIO((tmp_path / "small.pkl").read_bytes())).load()["model"]) == 100


def test_readme_of_a_narrow_deep_network_lists_its_channels(tmp_path):
    write_detectron2(build_backbone("resnet50", width=0.25), tmp_path / "narrow.pkl")
    text = (tmp_path / "README.md").read_text()
    for line in ("STEM_OUT_CHANNELS: 16", "WIDTH_PER_GROUP: 16", "RES2_OUT_CHANNELS: 64"):
        assert line in text
    model = Restricted(io.BytesIO((tmp_path / "narrow.pkl").read_bytes())).load()["model"]
    assert model["res2.0.conv1.weight"].shape[0] == 16 and model["res2.0.conv3.weight"].shape[0] == 64


def test_wrong_suffix_and_other_networks_are_refused(tmp_path):
    with pytest.raises(UserError, match=r"\.pkl"):
        write_detectron2(build_backbone("resnet18", width=0.125), tmp_path / "backbone.pth")
    with pytest.raises(UserError, match="ResNetBackbone"):
        write_detectron2(keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)]), tmp_path / "other.pkl")
    assert list(tmp_path.iterdir()) == []
