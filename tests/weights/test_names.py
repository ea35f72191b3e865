"""Compares the table of weight names with torchvision's, detectron2's and KerasHub's names, written by hand."""

import numpy as np
import pytest

from dupr_tf.errors import RunFailed, UserError
from dupr_tf.models.resnet import build_backbone
from dupr_tf.weights.names import (
    LAYOUTS,
    assign_arrays,
    keras_variable,
    named_arrays,
    to_keras_layout,
    to_torch_layout,
    torch_arrays,
    weight_names,
)
from tests.weights.backbones import randomised

NORM = ("weight", "bias", "running_mean", "running_var")

# `torchvision.models.resnet18().state_dict()` without `fc` and `num_batches_tracked`, one convolution a line.
RESNET18_CONVOLUTIONS = """
conv1 bn1
layer1.0.conv1 layer1.0.bn1
layer1.0.conv2 layer1.0.bn2
layer1.1.conv1 layer1.1.bn1
layer1.1.conv2 layer1.1.bn2
layer2.0.conv1 layer2.0.bn1
layer2.0.conv2 layer2.0.bn2
layer2.0.downsample.0 layer2.0.downsample.1
layer2.1.conv1 layer2.1.bn1
layer2.1.conv2 layer2.1.bn2
layer3.0.conv1 layer3.0.bn1
layer3.0.conv2 layer3.0.bn2
layer3.0.downsample.0 layer3.0.downsample.1
layer3.1.conv1 layer3.1.bn1
layer3.1.conv2 layer3.1.bn2
layer4.0.conv1 layer4.0.bn1
layer4.0.conv2 layer4.0.bn2
layer4.0.downsample.0 layer4.0.downsample.1
layer4.1.conv1 layer4.1.bn1
layer4.1.conv2 layer4.1.bn2
"""

RESNET50_ROWS = [
    ("conv1_conv/kernel", "conv1.weight", "stem.conv1.weight", True, "conv1_conv/kernel"),
    ("conv1_bn/moving_variance", "bn1.running_var", "stem.conv1.norm.running_var", False, "conv1_bn/moving_variance"),
    (
        "stack0_block0_0_conv/kernel",
        "layer1.0.downsample.0.weight",
        "res2.0.shortcut.weight",
        True,
        "stack0_block0_0_conv/kernel",
    ),
    (
        "stack0_block0_0_bn/gamma",
        "layer1.0.downsample.1.weight",
        "res2.0.shortcut.norm.weight",
        False,
        "stack0_block0_0_bn/gamma",
    ),
    (
        "stack0_block0_1_conv/kernel",
        "layer1.0.conv1.weight",
        "res2.0.conv1.weight",
        True,
        "stack0_block0_1_conv/kernel",
    ),
    ("stack1_block3_2_bn/beta", "layer2.3.bn2.bias", "res3.3.conv2.norm.bias", False, "stack1_block3_2_bn/beta"),
    (
        "stack2_block5_3_conv/kernel",
        "layer3.5.conv3.weight",
        "res4.5.conv3.weight",
        True,
        "stack2_block5_3_conv/kernel",
    ),
    (
        "stack3_block2_3_bn/moving_mean",
        "layer4.2.bn3.running_mean",
        "res5.2.conv3.norm.running_mean",
        False,
        "stack3_block2_3_bn/moving_mean",
    ),
]


def test_resnet18_has_keys_and_order_of_torchvision():
    expected = []
    for line in RESNET18_CONVOLUTIONS.split("\n")[1:-1]:
        convolution, norm = line.split()
        expected += [f"{convolution}.weight"] + [f"{norm}.{name}" for name in NORM]
    assert [row.torchvision for row in weight_names("resnet18")] == expected


@pytest.mark.parametrize("row", RESNET50_ROWS, ids=lambda row: row[1])
def test_resnet50_has_the_rows_written_by_hand(row):
    assert row in weight_names("resnet50")


# 1 stem, 2 or 3 in a block, and a shortcut in each stage (none in the first stage of basic blocks).
@pytest.mark.parametrize(
    ("architecture", "convolutions"),
    [("resnet18", 20), ("resnet34", 36), ("resnet50", 53), ("resnet101", 104), ("resnet152", 155)],
)
def test_every_depth_has_its_number_of_arrays(architecture, convolutions):
    rows = weight_names(architecture)
    assert len(rows) == 5 * convolutions
    assert sum(row.is_kernel for row in rows) == convolutions
    for layout in LAYOUTS:
        assert len({getattr(row, layout) for row in rows}) == len(rows)


@pytest.mark.parametrize(
    "architecture",
    ["resnet18", "resnet34", "resnet50", *(pytest.param(f"resnet{n}", marks=pytest.mark.slow) for n in (101, 152))],
)
def test_keras_column_lists_each_variable_once(architecture):
    backbone = build_backbone(architecture, width=0.125)
    variables = [keras_variable(backbone, row.keras) for row in weight_names(architecture)]
    assert {id(variable) for variable in variables} == {id(variable) for variable in backbone.variables}
    assert len(variables) == len(backbone.variables)


def test_kernel_is_transposed_in_both_directions():
    kernel = np.arange(2 * 3 * 4 * 5).reshape(2, 3, 4, 5)  # height, width, in, out
    torch = to_torch_layout(kernel, True)
    assert torch.shape == (5, 4, 2, 3)
    assert torch[4, 3, 1, 2] == kernel[1, 2, 3, 4] and torch.flags.c_contiguous
    np.testing.assert_array_equal(to_keras_layout(torch, True), kernel)
    np.testing.assert_array_equal(to_torch_layout(np.arange(3), False), np.arange(3))


def test_arrays_are_float32_in_the_order_of_torch():
    backbone = build_backbone("resnet50", width=0.125, dtype="float64")
    arrays = torch_arrays(backbone, "detectron2")
    assert {array.dtype for array in arrays.values()} == {np.dtype("float32")}
    assert arrays["stem.conv1.weight"].shape == (8, 3, 7, 7)
    assert arrays["res3.0.shortcut.weight"].shape == (64, 32, 1, 1)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_arrays_of_every_layout_are_restored(layout):
    backbone, other = randomised("resnet50", width=0.125), build_backbone("resnet50", width=0.125)
    arrays = named_arrays(backbone, layout)
    shape = (64, 32, 1, 1) if layout in ("torchvision", "detectron2") else (1, 1, 32, 64)
    (row,) = (row for row in weight_names("resnet50") if row.torchvision == "layer2.0.downsample.0.weight")
    assert arrays[getattr(row, layout)].shape == shape
    assign_arrays(other, "resnet50", arrays, layout)
    for expected, received in zip(backbone.get_weights(), other.get_weights(), strict=True):
        np.testing.assert_array_equal(received, expected)


def test_arrays_with_a_gap_or_too_many_are_refused():
    backbone = build_backbone("resnet18", width=0.125)
    arrays = named_arrays(backbone, "torchvision")
    arrays["fc.weight"] = arrays.pop("bn1.weight")
    with pytest.raises(RunFailed, match=r"bn1\.weight.*fc\.weight"):
        assign_arrays(backbone, "resnet18", arrays, "torchvision")


def test_unknown_names_are_refused():
    with pytest.raises(UserError) as error:
        weight_names("vgg16")
    assert error.value.field == "architecture" and "'vgg16'" in error.value.problem
    with pytest.raises(UserError) as error:
        named_arrays(build_backbone("resnet18", width=0.125), "timm")
    assert error.value.field == "layout" and "'timm'" in error.value.problem
