"""Tests of the ResNets: torchvision's sizes and names, and features against a NumPy forward pass by torch's rules."""

import keras
import numpy as np
import pytest

from dupr_tf.errors import UserError
from dupr_tf.models.resnet import (
    ARCHITECTURES,
    IMAGENET_MEAN,
    IMAGENET_STD,
    ResNetBackbone,
    build_backbone,
    imagenet_normalization,
    pyramid,
    stage_channels,
)
from dupr_tf.weights.torch_io import to_torchvision

# Trainable parameters of torchvision's models without `fc`.
TORCHVISION_PARAMETERS = {
    "resnet18": 11_176_512,
    "resnet34": 21_284_672,
    "resnet50": 23_508_032,
    "resnet101": 42_500_160,
    "resnet152": 58_143_808,
}


def randomised(architecture, seed=0, **kwargs):
    """Returns a small float64 network whose normalisations all differ, so that a swapped one shows."""
    keras.utils.set_random_seed(seed)
    backbone = build_backbone(architecture, width=0.125, dtype="float64", **kwargs)
    rng = np.random.default_rng(seed)
    for layer in backbone.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            for variable, low, high in (("gamma", 0.5, 1.5), ("beta", -0.5, 0.5)):
                getattr(layer, variable).assign(rng.uniform(low, high, layer.gamma.shape))
            layer.moving_mean.assign(rng.uniform(-0.5, 0.5, layer.gamma.shape))
            layer.moving_variance.assign(rng.uniform(0.5, 1.5, layer.gamma.shape))
    return backbone


# ---- torch's ResNet v1.5 in NumPy; arrays are NCHW, as there ----


def windows(x, kernel, stride, padding, fill):
    """Returns the kernel windows of an array padded with `padding`.

    (B, C, H, W) → (B, C, H', W', kernel, kernel), with H' = floor((H + 2·padding − kernel) / stride) + 1.
    """
    x = np.pad(x, ((0, 0), (0, 0), (padding, padding), (padding, padding)), constant_values=fill)
    return np.lib.stride_tricks.sliding_window_view(x, (kernel, kernel), (2, 3))[:, :, ::stride, ::stride]


def convolve(x, weight, stride=1, padding=0):
    return np.einsum("bchwij,ocij->bohw", windows(x, weight.shape[-1], stride, padding, 0.0), weight)


def normalise(x, state, name):
    def column(key):
        return state[f"{name}.{key}"][:, None, None]

    x = (x - column("running_mean")) / np.sqrt(column("running_var") + 1e-5)
    return x * column("weight") + column("bias")


def block(x, state, name, stride):
    bottleneck = f"{name}.conv3.weight" in state
    shortcut = x
    if f"{name}.downsample.0.weight" in state:
        shortcut = convolve(x, state[f"{name}.downsample.0.weight"], stride)
        shortcut = normalise(shortcut, state, f"{name}.downsample.1")
    plan = [(1, 1, 0), (2, stride, 1), (3, 1, 0)] if bottleneck else [(1, stride, 1), (2, 1, 1)]
    for number, conv_stride, padding in plan:
        x = convolve(x, state[f"{name}.conv{number}.weight"], conv_stride, padding)
        x = normalise(x, state, f"{name}.bn{number}")
        x = np.maximum(x + shortcut if number == len(plan) else x, 0)
    return x


def numpy_resnet(state, x):
    """Returns features {level: NHWC} of a torchvision state dict, for NHWC images."""
    x = np.transpose(x, (0, 3, 1, 2))
    x = np.maximum(normalise(convolve(x, state["conv1.weight"], 2, 3), state, "bn1"), 0)
    x = windows(x, 3, 2, 1, -np.inf).max((-2, -1))
    levels = {}
    for stage in (1, 2, 3, 4):
        depth = len({key.split(".")[1] for key in state if key.startswith(f"layer{stage}.")})
        for index in range(depth):
            x = block(x, state, f"layer{stage}.{index}", 2 if stage > 1 and index == 0 else 1)
        levels[f"P{stage + 1}"] = np.transpose(x, (0, 2, 3, 1))
    return levels


@pytest.mark.parametrize(
    ("architecture", "size"),
    [
        *(("resnet18", size) for size in [(64, 64), (65, 71), (33, 46), (7, 96)]),
        ("resnet50", (65, 71)),
        pytest.param("resnet50", (64, 64), marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_features_have_padding_and_strides_of_torch(architecture, size):
    backbone = randomised(architecture)
    images = np.random.default_rng(1).normal(size=(2, *size, 3))
    state = {name: value.astype(np.float64) for name, value in to_torchvision(backbone).items()}
    for layer in backbone.layers:  # the state dict is float32, so both sides use its values
        for variable in layer.variables:
            variable.assign(np.asarray(variable).astype(np.float32))
    received = pyramid(backbone)(images)
    for level, expected in numpy_resnet(state, images).items():
        assert received[level].shape == expected.shape
        np.testing.assert_allclose(received[level], expected, rtol=1e-9, atol=1e-9)


SLOW = ("resnet34", "resnet101", "resnet152")  # same blocks as others; weights/test_names.py counts them


@pytest.mark.parametrize(
    "architecture", [pytest.param(name, marks=[pytest.mark.slow] * (name in SLOW)) for name in ARCHITECTURES]
)
def test_parameter_counts_are_those_of_torchvision(architecture):
    backbone = build_backbone(architecture)
    trainable = sum(int(np.prod(variable.shape)) for variable in backbone.trainable_variables)
    assert trainable == TORCHVISION_PARAMETERS[architecture]


def test_layer_names_are_those_of_kerashub():
    names = {layer.name for layer in build_backbone("resnet50", width=0.125).layers}
    expected = {
        "conv1_conv",
        "conv1_bn",
        "stack0_block0_0_conv",
        "stack0_block0_0_bn",
        "stack0_block0_3_conv",
    }
    assert expected | {"stack1_block3_2_bn", "stack3_block2_out"} <= names
    basic = {layer.name for layer in build_backbone("resnet18", width=0.125).layers}
    assert "stack0_block0_0_conv" not in basic and "stack1_block0_0_conv" in basic


def test_initial_weights_are_he_fan_out_and_no_gamma_is_zero():
    keras.utils.set_random_seed(0)
    backbone = build_backbone("resnet50", width=0.5)
    kernel = np.asarray(backbone.get_layer("stack2_block0_2_conv").kernel)
    assert kernel.std() == pytest.approx(np.sqrt(2 / (9 * kernel.shape[-1])), rel=0.02)
    assert np.abs(kernel).max() > 3 * kernel.std()  # not a truncated normal
    norm = backbone.get_layer("stack2_block0_3_bn")
    assert np.all(np.asarray(norm.gamma) == 1)
    assert (norm.epsilon, norm.momentum) == (1e-5, 0.9)


def test_both_attributes_name_the_same_levels():
    backbone = build_backbone("resnet18", width=0.125)
    assert list(backbone.pyramid_outputs) == list(backbone.pyramid_level_inputs) == ["P2", "P3", "P4", "P5"]
    for level, layer in backbone.pyramid_level_inputs.items():
        assert backbone.get_layer(layer).output is backbone.pyramid_outputs[level]
    assert backbone.output is backbone.pyramid_outputs["P5"]


@pytest.mark.parametrize(
    "kwargs",
    [
        {"architecture": "resnet18", "width": 0.25, "include_normalization": True, "name": "mine"},
        {"architecture": "resnet50", "width": 0.125, "input_shape": (64, 96, 3), "dtype": "mixed_bfloat16"},
        {"architecture": "resnet18", "width": 0.125, "input_shape": (None, None, 4), "trainable": False},
    ],
    ids=["normalising", "mixed", "frozen"],
)
def test_saved_backbone_loads_unchanged(kwargs, tmp_path):
    backbone = ResNetBackbone(**kwargs)
    backbone.save(tmp_path / "backbone.keras")
    loaded = keras.saving.load_model(tmp_path / "backbone.keras")
    assert type(loaded) is ResNetBackbone
    assert loaded.get_config() == backbone.get_config()
    assert loaded.dtype_policy.name == kwargs.get("dtype", "float32")
    assert len(loaded.trainable_variables) == len(backbone.trainable_variables)
    images = np.random.default_rng(0).normal(size=(1, 64, 96, kwargs.get("input_shape", (3,))[-1]))
    expected = np.asarray(backbone(images), np.float32)
    np.testing.assert_array_equal(np.asarray(loaded(images), np.float32), expected)


def test_normalisation_inside_equals_normalisation_outside():
    outside = randomised("resnet18")
    inside = randomised("resnet18", include_normalization=True)
    images = np.random.default_rng(0).integers(0, 256, (1, 32, 32, 3), dtype=np.uint8)
    expected = outside((images - np.array(IMAGENET_MEAN)) / np.array(IMAGENET_STD))
    np.testing.assert_allclose(inside(images), expected, rtol=1e-6, atol=1e-6)
    np.testing.assert_array_equal(inside(images.astype(np.float64)), inside(images))


def test_mixed_policy_normalises_pixels_in_float32():
    backbone = build_backbone("resnet18", width=0.125, include_normalization=True, dtype="mixed_bfloat16")
    assert backbone.get_layer("normalization").output.dtype == "float32"
    assert backbone.output.dtype == "bfloat16"


def test_pyramid_takes_a_model_with_either_attribute():
    ours = build_backbone("resnet18", width=0.125)
    like_keras_cv = keras.Model(ours.input, ours.output)
    like_keras_cv.pyramid_level_inputs = ours.pyramid_level_inputs
    like_keras_hub = keras.Model(ours.input, ours.output)
    like_keras_hub.pyramid_outputs = ours.pyramid_outputs
    images = np.random.default_rng(0).normal(size=(1, 64, 64, 3))
    expected = pyramid(ours)(images)
    assert list(expected) == ["P2", "P3", "P4", "P5"]
    for model in (like_keras_cv, like_keras_hub):
        received = pyramid(model, ("P3", "P5"))(images)
        assert list(received) == ["P3", "P5"]
        for level, value in received.items():
            np.testing.assert_array_equal(value, expected[level])


def test_pyramid_shares_weights_and_names_missing_levels():
    backbone = build_backbone("resnet18", width=0.125)
    assert pyramid(backbone).trainable_variables[0] is backbone.trainable_variables[0]
    with pytest.raises(UserError) as error:
        pyramid(backbone, ("P2", "P6"))
    assert error.value.field == "backbone" and "P2, P6" in error.value.problem
    with pytest.raises(UserError) as error:
        pyramid(keras.Sequential([keras.Input((8,)), keras.layers.Dense(1)]))
    assert error.value.field == "backbone" and "none" in error.value.problem


def test_normalisation_is_that_of_imagenet_in_rgb_order():
    red = np.array([[[[255.0, 0.0, 0.0]]]], np.float32)
    received = np.asarray(imagenet_normalization()(red))[0, 0, 0]
    np.testing.assert_allclose(received, [2.24891, -2.03571, -1.80444], atol=1e-5)  # torchvision's numbers


def test_kernels_start_from_fan_out_as_in_torchvision():
    keras.utils.set_random_seed(0)
    kernel = np.asarray(build_backbone("resnet18", width=0.5).get_layer("conv1_conv").kernel)  # (7, 7, 3, 32)
    assert kernel.std() == pytest.approx(np.sqrt(2 / (32 * 7 * 7)), rel=0.05)


def test_width_gives_multiples_of_eight():
    assert stage_channels(1.0) == (64, 128, 256, 512)
    assert stage_channels(0.3) == (16, 40, 80, 152)
    assert stage_channels(0.01) == (8, 8, 8, 8)
    assert build_backbone("resnet50", width=0.25).output.shape[-1] == 512


@pytest.mark.parametrize(
    ("kwargs", "field", "named"),
    [
        ({"architecture": "resnet51"}, "model.backbone", "'resnet51'"),
        ({"architecture": "resnet18", "width": 0}, "width", "received 0"),
        ({"architecture": "resnet18", "width": "wide"}, "width", "'wide'"),
        ({"architecture": "resnet18", "input_shape": (224, 224)}, "input_shape", "(224, 224)"),
        (
            {"architecture": "resnet18", "input_shape": (8, 8, 1), "include_normalization": True},
            "input_shape",
            "received 1",
        ),
    ],
)
def test_wrong_arguments_are_named_with_a_fix(kwargs, field, named):
    with pytest.raises(UserError) as error:
        build_backbone(**kwargs)
    assert error.value.field == field and named in error.value.problem and error.value.fix


def test_retinanet_of_kerascv_builds_on_the_backbone():
    keras_cv = pytest.importorskip("keras_cv")
    backbone = build_backbone("resnet18", width=0.125, input_shape=(128, 128, 3), include_normalization=True)
    detector = keras_cv.models.RetinaNet(num_classes=2, bounding_box_format="xyxy", backbone=backbone)
    out = detector({"images": np.zeros((1, 128, 128, 3), np.float32)})
    assert out["box"].shape[-1] == 4 and out["classification"].shape[-1] in (2, 3)
    kernel = backbone.get_layer("conv1_conv").kernel
    assert any(variable is kernel for variable in detector.trainable_variables)
