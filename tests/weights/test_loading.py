"""Tests of loading a backbone: every place it may be in, and one clear line for anything else."""

import json
import zipfile

import keras
import numpy as np
import pytest

from dupr_tf.errors import UserError
from dupr_tf.models.resnet import ResNetBackbone, build_backbone, pyramid
from dupr_tf.weights.loading import load_backbone, with_normalization
from dupr_tf.weights.manifest import write_manifest
from dupr_tf.weights.torch_io import to_torchvision, write_safetensors

IMAGES = np.random.default_rng(0).normal(size=(1, 64, 64, 3)).astype(np.float32)


@pytest.fixture(scope="module")
def backbone():
    keras.utils.set_random_seed(0)
    return build_backbone("resnet18", width=0.125)


@pytest.fixture
def run(backbone, tmp_path):
    backbone.save(tmp_path / "backbone.keras")
    write_manifest(tmp_path, {"step": 7})
    return tmp_path


def assert_same_features(first, second):
    expected = pyramid(first)(IMAGES)
    for level, value in pyramid(second)(IMAGES).items():
        np.testing.assert_array_equal(value, expected[level])


def test_run_keras_file_and_safetensors_load(backbone, run):
    write_safetensors(to_torchvision(backbone), run / "other.safetensors")
    for path in (run, str(run), run / "backbone.keras", run / "other.safetensors"):
        loaded = load_backbone(path)
        assert type(loaded) is ResNetBackbone
        assert_same_features(backbone, loaded)


def test_directory_with_only_safetensors_loads(backbone, tmp_path):
    write_safetensors(to_torchvision(backbone), tmp_path / "backbone.safetensors")
    assert_same_features(backbone, load_backbone(tmp_path))


def test_normalisation_can_be_added_and_removed(backbone, run):
    inside = load_backbone(run, include_normalization=True)
    assert inside.include_normalization
    assert_same_features(backbone, with_normalization(inside, False))
    assert load_backbone(run, include_normalization=False).include_normalization is False


def test_flipped_bit_is_noticed(run):
    data = bytearray((run / "backbone.keras").read_bytes())
    data[len(data) // 2] ^= 1
    (run / "backbone.keras").write_bytes(data)
    with pytest.raises(UserError) as error:
        load_backbone(run)
    assert "backbone.keras" in error.value.problem and "sha256" in error.value.problem


@pytest.mark.parametrize("keep", [0, 100, 20_000], ids=["empty", "head", "part"])
def test_truncated_file_without_manifest_gives_one_line(run, keep):
    path = run / "cut.keras"
    path.write_bytes((run / "backbone.keras").read_bytes()[:keep])
    with pytest.raises(UserError) as error:
        load_backbone(path)
    assert str(path) in error.value.problem and "\n" not in str(error.value)


def test_damaged_manifest_is_named(run):
    (run / "manifest.json").write_text("{")
    with pytest.raises(UserError) as error:
        load_backbone(run)
    assert str(run / "manifest.json") in error.value.problem


@pytest.mark.parametrize(
    ("name", "named"),
    [
        ("absent", "no file"),
        ("absent.keras", "no file"),
        ("empty", "no backbone.safetensors"),
        ("weights.pkl", "pickles can run code"),
        ("weights.h5", "pickles can run code"),
    ],
)
def test_path_that_is_missing_or_of_another_type_is_refused(tmp_path, name, named):
    (tmp_path / "empty").mkdir()
    for file in ("weights.pkl", "weights.h5"):
        (tmp_path / file).write_bytes(b"anything")
    with pytest.raises(UserError) as error:
        load_backbone(tmp_path / name)
    assert str(tmp_path / name) in error.value.problem and named in str(error.value)
    assert error.value.fix and "\n" not in str(error.value)


def test_model_that_is_no_backbone_is_refused(tmp_path):
    keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)]).save(tmp_path / "dense.keras")
    with pytest.raises(UserError) as error:
        load_backbone(tmp_path / "dense.keras")
    assert str(tmp_path / "dense.keras") in error.value.problem and "Sequential" in error.value.problem


def test_code_in_a_file_is_refused_not_run(tmp_path):
    marker = tmp_path / "it_ran"
    layer = keras.layers.Lambda(lambda x, path=str(marker): (open(path, "w").close(), x)[1], output_shape=(4,))
    keras.Sequential([keras.Input((4,)), layer]).save(tmp_path / "code.keras")
    marker.unlink(missing_ok=True)
    with pytest.raises(UserError, match=r"code\.keras"):
        load_backbone(tmp_path / "code.keras")
    assert not marker.exists()


def test_unknown_class_gives_one_line(run):
    with zipfile.ZipFile(run / "backbone.keras") as source, zipfile.ZipFile(run / "odd.keras", "w") as target:
        for name in source.namelist():
            data = source.read(name)
            if name == "config.json":
                config = {**json.loads(data), "registered_name": "elsewhere>Net", "module": "no.such.module"}
                data = json.dumps({**config, "class_name": "Net"}).encode()
            target.writestr(name, data)
    with pytest.raises(UserError) as error:
        load_backbone(run / "odd.keras")
    assert str(run / "odd.keras") in error.value.problem and "\n" not in str(error.value)
