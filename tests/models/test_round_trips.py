"""Model, encoder, bank, terms, heads and a detector through configs, files and a new process."""

import json
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest

from dupr_tf.detection.fcn import FCN
from dupr_tf.models import DUPR, build_backbone
from dupr_tf.training.optimizers import CoupledSGD
from tests.models.random_batches import batches

ROOT = Path(__file__).resolve().parents[2]
SETTINGS = {
    "image_weights": (0, 0, 0, 1.0), "patch_weights": (0, 0, 1.0, 0), "roi_sizes": (16, 8, 4, 2),
    "embedding_dim": 8, "bank_size": 32, "momentum": 0.5, "photometric": "none",
}  # fmt: skip


def make_model(seed):
    keras.utils.set_random_seed(seed)
    backbone = build_backbone("resnet18", width=0.125)
    backbone.get_layer("conv1_conv").trainable = False
    model = DUPR(backbone, seed=seed, **SETTINGS)
    model.compile(CoupledSGD(0.1), run_eagerly=True)
    return model


def layers_of(model):
    return {
        "encoder": model.query_encoder, "bank": model.banks["patch_P4"], "image_term": model.terms[0],
        "patch_term": model.terms[1], "head": model.query_encoder.projectors["image_P5"],
    }  # fmt: skip


@pytest.fixture(scope="module")
def trip(tmp_path_factory):
    """A trained model, its loss on a batch, and what a new process says about its files."""
    folder, model, batch = tmp_path_factory.mktemp("trip"), make_model(0), next(batches(1, 4))
    model.train_on_batch(batch)
    detector = FCN(build_backbone("resnet18", width=0.125, include_normalization=True), ("a", "b"), head_channels=8)
    for name, part in (("model", model), ("backbone", model.backbone), ("detector", detector)):
        part.save(folder / f"{name}.keras")
    configs = {name: keras.saving.serialize_keras_object(layer) for name, layer in layers_of(model).items()}
    (folder / "layers.json").write_text(json.dumps(configs))
    np.savez(folder / "batch.npz", **batch)
    code = [sys.executable, "-m", "tests.models.round_trip", str(folder)]
    done = subprocess.run(code, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    files = {"model": model, "backbone": model.backbone, "detector": detector}
    return folder, model, batch, files, json.loads((folder / "answer.json").read_text())


def test_new_process_loads_every_file_after_import_dupr_tf(trip):
    folder, model, batch, files, answer = trip
    everything = {**layers_of(model), **files}
    assert answer["types"] == {name: type(part).__name__ for name, part in everything.items()}
    assert answer["optimizer"] == "CoupledSGD" and answer["attributes"]
    weights = np.load(folder / "weights.npz")
    for name, part in files.items():
        for i, value in enumerate(part.get_weights()):
            np.testing.assert_array_equal(weights[f"{name}/{i}"], value, err_msg=f"{name} {i}")
    assert answer["loss"] == pytest.approx(model.test_on_batch(batch, return_dict=True)["loss"], rel=1e-5)


def test_configs_are_the_same_after_a_round_trip(trip):
    _, model, _, _, answer = trip
    for name, layer in layers_of(model).items():
        ours = json.loads(json.dumps(keras.saving.serialize_keras_object(layer)["config"]))
        assert without_ids(answer["configs"][name]) == without_ids(ours), name


def without_ids(config):
    """A config without the numbers that Keras draws for shared objects."""
    if isinstance(config, dict):
        return {name: without_ids(value) for name, value in config.items() if name != "shared_object_id"}
    return [without_ids(value) for value in config] if isinstance(config, list) else config


def test_frozen_layers_are_frozen_in_a_loaded_model(trip):
    loaded = keras.saving.load_model(trip[0] / "model.keras")
    for encoder in (loaded.query_encoder, loaded.key_encoder):
        assert [layer.name for layer in encoder.pyramid.layers if not layer.trainable] == ["conv1_conv"]


def test_weights_file_restores_another_model(trip, tmp_path):
    model, other = trip[1], make_model(1)
    model.save_weights(tmp_path / "model.weights.h5")
    assert any((a != b).any() for a, b in zip(model.get_weights(), other.get_weights(), strict=True))
    other.load_weights(tmp_path / "model.weights.h5")
    for a, b in zip(model.get_weights(), other.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)
