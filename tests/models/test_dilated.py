"""Tests of a dilated conv5: equal weights, equal features up to conv4, and the definition of dilation."""

import keras
import numpy as np
import pytest

from dupr_tf.errors import UserError
from dupr_tf.models.resnet import LEVELS, build_backbone, dilated, pyramid


def randomized(architecture, width):
    """Returns a backbone whose statistics and weights all differ, so that a mix-up shows."""
    keras.utils.set_random_seed(3)
    backbone = build_backbone(architecture, width=width)
    rng = np.random.default_rng(3)
    backbone.set_weights(
        [
            rng.uniform(0.5, 1.5, w.shape) if w.ndim == 1 else w + rng.normal(0, 0.02, w.shape)
            for w in backbone.get_weights()
        ]
    )
    return backbone


def correlate(x, kernel, dilation):
    """Correlates (H, W, C) with a (3, 3, C, D) kernel, as nine shifted products.

    The taps lie `dilation` apart, with zeros around.
    """
    height, width, _ = x.shape
    padded = np.pad(x.astype(np.float64), [(dilation, dilation)] * 2 + [(0, 0)])
    rows = range(0, 3 * dilation, dilation)
    return sum(
        padded[y : y + height, z : z + width] @ kernel[i, j] for i, y in enumerate(rows) for j, z in enumerate(rows)
    )


def normalised(x, layer):
    gamma, beta, mean, variance = layer.get_weights()
    return (x - mean) / np.sqrt(variance + 1e-5) * gamma + beta


@pytest.mark.parametrize(("architecture", "width"), [("resnet18", 0.125), ("resnet50", 0.125)])
def test_same_weights_and_the_same_features_up_to_conv4(architecture, width):
    backbone = randomized(architecture, width)
    twin = dilated(backbone)
    images = np.random.default_rng(0).normal(size=(2, 64, 96, 3)).astype(np.float32)
    plain, wide = pyramid(backbone)(images), pyramid(twin)(images)
    for level in LEVELS[:3]:
        np.testing.assert_array_equal(plain[level], wide[level])
    assert plain["P5"].shape[1:3] == (2, 3) and wide["P5"].shape[1:3] == (4, 6)
    assert [w.shape for w in twin.get_weights()] == [w.shape for w in backbone.get_weights()]
    assert twin.pyramid_level_inputs == backbone.pyramid_level_inputs


def test_conv5_of_a_basic_block_against_numpy():
    twin = dilated(randomized("resnet18", 0.125))
    levels = pyramid(twin)(np.random.default_rng(0).normal(size=(1, 64, 96, 3)).astype(np.float32))
    x = levels["P4"][0].numpy().astype(np.float64)
    for block in range(2):

        def conv(name, inputs, block=block):
            kernel = twin.get_layer(f"stack3_block{block}_{name}_conv").get_weights()[0]
            out = inputs @ kernel[0, 0] if len(kernel) == 1 else correlate(inputs, kernel, 2)
            return normalised(out, twin.get_layer(f"stack3_block{block}_{name}_bn"))

        shortcut = conv("0", x) if block == 0 else x
        x = np.maximum(shortcut + conv("2", np.maximum(conv("1", x), 0)), 0)
    np.testing.assert_allclose(levels["P5"][0], x, rtol=2e-4, atol=2e-4 * np.abs(x).max())


def test_dilation_is_saved_and_older_files_have_stride_32():
    twin = dilated(build_backbone("resnet18", width=0.125))
    assert type(twin).from_config(twin.get_config()).output_stride == 16
    config = build_backbone("resnet18", width=0.125).get_config()
    config.pop("output_stride")
    assert type(twin).from_config(config).output_stride == 32


def test_only_backbones_of_this_package_are_dilated():
    with pytest.raises(UserError) as error:
        dilated(keras.Sequential([keras.Input((8, 8, 3))]))
    assert error.value.field == "backbone" and "Sequential" in error.value.problem
    with pytest.raises(UserError) as error:
        build_backbone("resnet18", width=0.125, output_stride=8)
    assert error.value.field == "output_stride"
