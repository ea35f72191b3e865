"""Sends model, encoder, bank, terms, heads and a detector through configs, files and a new process."""

import json
import subprocess
import sys
import zipfile
from pathlib import Path

import keras
import numpy as np
import pytest

from dupr_tf.detection.fcn import FCN
from dupr_tf.models import DUPR, build_backbone
from dupr_tf.training.optimizers import CoupledSGD
from tests.models.random_batches import batches
from tests.refusals import refusal

ROOT = Path(__file__).resolve().parents[2]
SETTINGS = {
    "image_weights": (0, 0, 0, 1.0), "patch_weights": (0, 0, 1.0, 0), "roi_sizes": (16, 8, 4, 2),
    "embedding_dim": 8, "bank_size": 32, "momentum": 0.5, "photometric": "none",
}  # fmt: skip


def make_model(seed, backbone=None):
    keras.utils.set_random_seed(seed)
    if backbone is None:
        backbone = build_backbone("resnet18", width=0.125)
        backbone.get_layer("conv1_conv").trainable = False
    model = DUPR(backbone, seed=seed, **SETTINGS)
    model.compile(CoupledSGD(0.1), run_eagerly=True)
    return model


def plain_backbone():
    """Returns a functional model of Keras' own class. Its config lacks `pyramid_outputs`."""
    x, levels = (images := keras.Input((None, None, 3))), {}
    for level in ("stem", "P2", "P3", "P4", "P5"):
        x = keras.layers.Conv2D(8, 3, strides=2, padding="same", name=f"{level}_conv")(x)
        x = levels[level] = keras.layers.BatchNormalization(name=level)(x)
    backbone = keras.Model(images, x)
    backbone.pyramid_outputs = {level: levels[level] for level in ("P2", "P3", "P4", "P5")}
    backbone.get_layer("P3").trainable = False
    return backbone


def layers_of(model):
    return {
        "encoder": model.query_encoder, "bank": model.banks["patch_P4"], "image_term": model.terms[0],
        "patch_term": model.terms[1], "head": model.query_encoder.projectors["image_P5"],
    }  # fmt: skip


@pytest.fixture(scope="module")
def trip(tmp_path_factory):
    """Returns a trained model, its loss on a batch, and a new process's results from its files."""
    folder, model, batch = tmp_path_factory.mktemp("trip"), make_model(0), next(batches(1, 4))
    model.train_on_batch(batch)
    detector = FCN(build_backbone("resnet18", width=0.125, include_normalization=True), ("a", "b"), head_channels=8)
    own = make_model(0, plain_backbone())
    own.train_on_batch(batch)
    files = {"model": model, "backbone": model.backbone, "detector": detector, "own": own}
    for name, part in files.items():
        part.save(folder / f"{name}.keras")
    model.save_weights(folder / "model.weights.h5")
    everything = {**layers_of(model), "rebuilt": model}
    configs = {name: keras.saving.serialize_keras_object(part) for name, part in everything.items()}
    (folder / "layers.json").write_text(json.dumps(configs))
    np.savez(folder / "batch.npz", **batch)
    code = [sys.executable, "-m", "tests.models.round_trip", str(folder)]
    done = subprocess.run(code, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return folder, model, batch, files, json.loads((folder / "answer.json").read_text())


def test_new_process_loads_every_file_after_import_dupr_tf(trip):
    folder, model, batch, files, answer = trip
    everything = {**layers_of(model), **files, "rebuilt": model}
    assert answer["types"] == {name: type(part).__name__ for name, part in everything.items()}
    assert answer["optimizer"] == "CoupledSGD" and answer["attributes"]
    weights = np.load(folder / "weights.npz")
    for name, part in files.items():
        for i, value in enumerate(part.get_weights()):
            np.testing.assert_array_equal(weights[f"{name}/{i}"], value, err_msg=f"{name} {i}")
    for name, part in (("model", model), ("own", files["own"]), ("rebuilt", model)):
        loss = part.test_on_batch(batch, return_dict=True)["loss"]
        assert answer["losses"][name] == pytest.approx(loss, rel=1e-5), name
    assert answer["frozen"] == [["P3"], ["P3"]]


def test_configs_are_the_same_after_a_round_trip(trip):
    _, model, _, _, answer = trip
    for name, layer in layers_of(model).items():
        ours = json.loads(json.dumps(keras.saving.serialize_keras_object(layer)["config"]))
        assert without_ids(answer["configs"][name]) == without_ids(ours), name


def without_ids(config):
    """Returns a config without the numbers that Keras draws for shared objects."""
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


def test_file_of_an_earlier_version_is_refused(trip, tmp_path):
    """The file's config contains the backbone's config, where `serialize_backbone` now writes two entries."""
    with zipfile.ZipFile(trip[0] / "model.keras") as ours, zipfile.ZipFile(tmp_path / "old.keras", "w") as theirs:
        for name in ours.namelist():
            content = ours.read(name)
            if name == "config.json":
                whole = json.loads(content)
                whole["config"]["backbone"] = whole["config"]["backbone"]["model"]
                content = json.dumps(whole)
            theirs.writestr(name, content)
    assert refusal(keras.saving.load_model, tmp_path / "old.keras").fields == ("file",)
