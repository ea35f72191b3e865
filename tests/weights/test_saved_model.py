"""Tests of SavedModels: raw images of any size as input, the model's own features as output, to the last bit."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from dupr_tf.errors import UserError
from dupr_tf.models.resnet import IMAGENET_MEAN, IMAGENET_STD, build_backbone, pyramid
from dupr_tf.weights.export import export
from dupr_tf.weights.saved_model import read_saved_model, serving_model, write_saved_model

SIZES = [(1, 64, 96), (2, 65, 47)]


def images_of(size, dtype):
    return np.random.default_rng(0).integers(0, 256, (*size, 3)).astype(dtype)


@pytest.fixture(scope="module", params=[True, False], ids=["normalising", "plain"])
def written(request, tmp_path_factory):
    keras.utils.set_random_seed(0)
    backbone = build_backbone("resnet18", width=0.125, include_normalization=request.param)
    path = tmp_path_factory.mktemp("saved_model") / "export"
    write_saved_model(backbone, path)
    return backbone, read_saved_model(path)


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("dtype", ["uint8", "float32"])
def test_features_equal_those_of_the_model(written, size, dtype):
    backbone, read = written
    images = images_of(size, dtype)
    model = tf.function(serving_model(backbone), autograph=False)  # eagerly, rounding may differ
    expected = model(tf.constant(images, tf.float32), training=False)
    received = read(images)
    assert list(sorted(received)) == ["P2", "P3", "P4", "P5"]
    for level, value in received.items():
        assert value.dtype == np.float32
        assert float(np.max(np.abs(value - expected[level].numpy()))) == 0.0


@pytest.mark.parametrize("dtype", ["uint8", "float32"])
def test_empty_batch_gives_empty_maps(written, dtype):
    maps = written[1](images_of((0, 70, 64), dtype))
    assert {level: value.shape[:3] for level, value in maps.items()} == {
        "P2": (0, 18, 16), "P3": (0, 9, 8), "P4": (0, 5, 4), "P5": (0, 3, 2),
    }  # fmt: skip


@pytest.mark.slow
def test_half_precision_backbone_converts_to_tflite(tmp_path):
    path = export(build_backbone("resnet18", width=0.125, dtype="mixed_float16"), "saved_model", tmp_path / "export")
    assert len(tf.lite.TFLiteConverter.from_saved_model(str(path)).convert()) > 100_000


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_saved_model_includes_the_normalisation(written, size):
    backbone, read = written
    images = images_of(size, "uint8")
    given = images
    if not backbone.include_normalization:
        given = ((images - np.array(IMAGENET_MEAN)) / np.array(IMAGENET_STD)).astype(np.float32)
    for level, value in pyramid(backbone)(given).items():
        np.testing.assert_allclose(read(images)[level], value, rtol=1e-4, atol=1e-4)


def test_every_weight_is_written_once(tmp_path):
    backbone = build_backbone("resnet18", width=0.125)
    write_saved_model(backbone, tmp_path / "export")
    (data,) = (tmp_path / "export" / "variables").glob("*.data-*")
    assert data.stat().st_size < 1.1 * 4 * backbone.count_params()


def test_both_signatures_take_any_size(written):
    signatures = written[1].loaded.signatures
    for name, dtype in (("serving_default", tf.float32), ("uint8", tf.uint8)):
        spec = signatures[name].structured_input_signature[1]["images"]
        assert spec.shape.as_list() == [None, None, None, 3] and spec.dtype == dtype


def test_mixed_backbone_serves_float32(tmp_path):
    backbone = build_backbone("resnet18", width=0.125, dtype="mixed_bfloat16")
    write_saved_model(backbone, tmp_path / "export")
    received = read_saved_model(tmp_path / "export")(images_of((1, 32, 32), "uint8"))
    expected = serving_model(backbone)(images_of((1, 32, 32), "uint8"), training=False)
    assert received["P5"].dtype == np.float32
    np.testing.assert_array_equal(received["P2"], tf.cast(expected["P2"], tf.float32))


def test_backbone_with_fewer_levels_serves_those():
    ours = build_backbone("resnet18", width=0.125)
    other = keras.Model(ours.input, ours.output)
    other.pyramid_level_inputs = {"P4": "stack2_block1_out", "P5": "stack3_block1_out"}
    assert set(serving_model(other)(images_of((1, 64, 64), "uint8"))) == {"P4", "P5"}


def test_weights_that_give_nan_are_reported(tmp_path):
    backbone = build_backbone("resnet18", width=0.125)
    backbone.get_layer("conv1_bn").beta.assign(np.full(8, np.nan))
    assert not any(check.finite for check in write_saved_model(backbone, tmp_path / "export").checks)


def test_both_signatures_are_compared_at_an_even_and_an_odd_size(tmp_path):
    written = write_saved_model(build_backbone("resnet18", width=0.125), tmp_path / "export")
    assert len(written.checks) == 2 * 2 * 4 and written.difference() == written.worst().relative == 0.0
    assert {check.image for check in written.checks} == {"64×96", "65×97"}


def test_model_without_a_pyramid_is_refused(tmp_path):
    with pytest.raises(UserError, match="levels"):
        write_saved_model(keras.Sequential([keras.Input((8, 8, 3)), keras.layers.Flatten()]), tmp_path / "export")
    assert not (tmp_path / "export").exists()
