"""Tests of torchvision state dicts: a round trip keeps the features, and errors name what is wrong."""

import keras
import numpy as np
import pytest

from dupr_tf.errors import UserError
from dupr_tf.models.resnet import build_backbone, pyramid
from dupr_tf.weights.torch_io import (
    dropped_keys,
    from_torchvision,
    infer_architecture,
    read_safetensors,
    to_torchvision,
    write_safetensors,
)

IMAGES = np.random.default_rng(0).normal(size=(1, 65, 64, 3)).astype(np.float32)


def state_of(architecture="resnet18", width=0.125):
    """Returns a state dict whose normalisations all differ."""
    keras.utils.set_random_seed(0)
    rng = np.random.default_rng(0)
    state = to_torchvision(build_backbone(architecture, width=width))
    return {
        name: rng.uniform(0.5, 1.5, value.shape).astype(np.float32) if value.ndim == 1 else value
        for name, value in state.items()
    }


@pytest.mark.parametrize(
    ("architecture", "width"),
    [
        ("resnet18", 0.3),
        ("resnet34", 0.125),
        ("resnet50", 0.25),
        pytest.param("resnet101", 0.125, marks=pytest.mark.slow),
    ],
)
def test_round_trip_keeps_network_and_features(architecture, width):
    state = state_of(architecture, width)
    first = from_torchvision(state)
    second = from_torchvision(to_torchvision(first))
    assert second.architecture == architecture
    for name, value in to_torchvision(second).items():
        np.testing.assert_array_equal(value, state[name])
    expected = pyramid(first)(IMAGES)
    for level, received in pyramid(second)(IMAGES).items():
        np.testing.assert_array_equal(received, expected[level])


@pytest.mark.parametrize("width", [0.01, 0.125, 0.2, 0.25, 0.3, 0.33, 0.5, 0.7, 1, 1.5, 2])
def test_width_is_derived_from_the_channels(width):
    from dupr_tf.models.resnet import stage_channels

    state = {"conv1.weight": np.zeros(1)}
    for stage, channels in enumerate(stage_channels(width), start=1):
        for index in (0, 1):
            state[f"layer{stage}.{index}.conv1.weight"] = np.zeros((channels, 1, 1, 1))
    architecture, found = infer_architecture(state)
    assert architecture == "resnet18"
    assert stage_channels(found) == stage_channels(width)


def test_heads_and_counters_are_dropped_and_listed(caplog):
    state = state_of()
    checkpoint = {f"module.encoder_q.{name}": value for name, value in state.items()}
    checkpoint["module.encoder_q.bn1.num_batches_tracked"] = np.int64(7)
    checkpoint["module.encoder_q.fc.weight"] = np.zeros((3, 64), np.float32)
    checkpoint["module.queue"] = np.zeros(3, np.float32)
    dropped = ["module.encoder_q.fc.weight", "module.queue"]
    assert dropped_keys(checkpoint, "module.encoder_q.") == dropped_keys(checkpoint) == dropped
    with caplog.at_level("INFO"):
        backbone = from_torchvision(checkpoint, prefix="module.encoder_q.")
    assert "Dropped 2 keys" in caplog.text and "module.queue" in caplog.text
    np.testing.assert_array_equal(to_torchvision(backbone)["conv1.weight"], state["conv1.weight"])


def test_normalising_backbone_has_the_same_weights():
    state = state_of()
    backbone = from_torchvision(state, include_normalization=True, name="mine")
    assert backbone.include_normalization and backbone.name == "mine"
    np.testing.assert_array_equal(to_torchvision(backbone)["layer4.1.bn2.bias"], state["layer4.1.bn2.bias"])


def without(state, *names):
    return {name: value for name, value in state.items() if name not in names}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: {}, "lacks conv1.weight"),
        (
            lambda s: without(s, "layer2.0.downsample.1.running_var"),
            "lacks layer2.0.downsample.1.running_var",
        ),
        (
            lambda s: without(s, "layer4.1.conv2.weight", "bn1.bias"),
            "lacks bn1.bias, layer4.1.conv2.weight",
        ),
        (lambda s: {**s, "layer1.0.se.weight": np.zeros(3)}, "received also layer1.0.se.weight"),
        (lambda s: {**s, "layer1.2.conv1.weight": np.zeros(3)}, "(3, 2, 2, 2) blocks"),
        (lambda s: {**s, "bn1.bias": np.zeros(9, np.float32)}, "bn1.bias to be (8,) in Keras' order, received (9,)"),
        (lambda s: {**s, "bn1.bias": np.full(8, np.nan, np.float32)}, "bn1.bias contains NaN"),
        (lambda s: {**s, "layer4.0.conv1.weight": np.zeros((8, 32, 3, 3))}, "received (8, 16, 32, 8)"),
        (lambda s: {f"layers.{name}": value for name, value in s.items() if "layer1" not in name}, "lacks conv1"),
    ],
    ids=["empty", "one missing", "two missing", "unknown", "deeper", "shape", "NaN", "narrow", "no layer1"],
)
def test_state_dict_that_does_not_fit_is_refused(change, message):
    with pytest.raises(UserError) as error:
        from_torchvision(change(state_of()))
    assert message in error.value.problem


def test_other_models_have_no_torchvision_names():
    with pytest.raises(UserError, match="`plain`"):
        to_torchvision(keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)], name="plain"))


def test_safetensors_keep_names_values_and_metadata(tmp_path):
    state = state_of()
    write_safetensors(state, tmp_path / "w.safetensors", metadata={"width": "0.125"})
    received, metadata = read_safetensors(tmp_path / "w.safetensors")
    assert metadata == {"format": "pt", "width": "0.125"}
    assert set(received) == set(state)
    for name, value in received.items():
        np.testing.assert_array_equal(value, state[name])


@pytest.mark.parametrize("damage", [lambda data: data[: len(data) // 2], lambda data: b"nothing", lambda data: b""])
def test_damaged_safetensors_file_gives_one_line(damage, tmp_path):
    path = tmp_path / "w.safetensors"
    write_safetensors(state_of(), path)
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(UserError) as error:
        read_safetensors(path)
    assert str(path) in error.value.problem
