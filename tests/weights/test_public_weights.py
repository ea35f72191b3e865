"""Tests of commands and functions that take public weights, with a tiny ResNet on a loopback server."""

import contextlib
import hashlib
import io
import json
import subprocess

import keras
import numpy as np
import pytest

from dupr_tf.cli import main
from dupr_tf.comparing import cell
from dupr_tf.comparing import compare as compare_module
from dupr_tf.comparing.compare import plan_comparison
from dupr_tf.comparing.grid import parse_backbones
from dupr_tf.comparing.plan import Settings
from dupr_tf.comparing.record import read_comparison
from dupr_tf.config import Config, parse_config
from dupr_tf.data.sample import write_sample
from dupr_tf.models.resnet import build_backbone
from dupr_tf.registry import Entry
from dupr_tf.training.run import START_FILE, check_weights, starting_weights
from dupr_tf.weights.catalogue import CATALOGUE, TARGET
from dupr_tf.weights.loading import load_backbone, weights_digest
from dupr_tf.weights.torch_io import to_torchvision, write_safetensors
from tests.weights.server import serving

NAME, PATH = "hf:someone/tiny", "/someone/tiny/resolve/main/model.safetensors"


@pytest.fixture(scope="module")
def backbone():
    keras.utils.set_random_seed(3)
    return build_backbone("resnet18", width=0.125)


@pytest.fixture(scope="module")
def server(backbone, tmp_path_factory):
    file = tmp_path_factory.mktemp("tiny") / "model.safetensors"
    write_safetensors(to_torchvision(backbone) | {"fc.weight": np.zeros((10, 64), np.float32)}, file)
    with serving() as files:
        files.content[PATH] = file.read_bytes()
        yield files


@pytest.fixture(autouse=True)
def place(server, tmp_path, monkeypatch):
    monkeypatch.setenv("DUPR_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_ENDPOINT", server.url)
    monkeypatch.chdir(tmp_path)
    server.requests.clear()
    return tmp_path


def test_backbone_of_the_hub_loads(backbone, server):
    assert weights_digest(load_backbone(NAME)) == weights_digest(load_backbone(NAME)) == weights_digest(backbone)
    assert len(server.requests) == 1


def test_import_downloads_and_names_its_output(backbone, place, capsys):
    assert main(["import", NAME]) == 0
    assert "dropped: fc.weight" in capsys.readouterr().out
    assert weights_digest(load_backbone(place / "tiny.keras")) == weights_digest(backbone)


def test_model_card_of_an_export_names_source_hash_and_licence(server, place, monkeypatch):
    own = CATALOGUE["imagenet/resnet18"].facts | {"url": f"https://huggingface.co{PATH}", "published": None}
    monkeypatch.setitem(CATALOGUE._entries, "imagenet/resnet18", Entry(TARGET, "tiny", facts=own))
    assert main(["export", "imagenet/resnet18", "--to", "torchvision", "--output", "out"]) == 0
    card = (place / "out" / "model_card.md").read_text()
    assert f"https://huggingface.co{PATH}" in card and hashlib.sha256(server.content[PATH]).hexdigest() in card
    assert "| BSD-3-Clause |" in card


def test_probe_records_the_source(server, place):
    write_sample(place / "sample", train=1, val=1, unlabeled=8)
    command = f"probe matching --weights {NAME} --data sample/unlabeled --images 4 --output probed"
    assert main(command.split()) == 0
    saved = json.loads((place / "probed" / "probe.json").read_text())
    assert saved["weights"] == {"tiny": NAME}
    assert saved["sources"]["tiny"]["file_sha256"] == hashlib.sha256(server.content[PATH]).hexdigest()


def test_embed_records_name_and_source(server, place):
    write_sample(place / "sample", train=1, val=1, unlabeled=4)
    command = f"embed {NAME} --images sample/unlabeled --output f.npy --image-size 64"
    assert main(command.split()) == 0 == main(command.split())  # it resumes from the cache
    saved = json.loads((place / "f.npy.json").read_text().splitlines()[0])["weights"]
    assert (saved["name"], saved["url"]) == (NAME, f"https://huggingface.co{PATH}") and len(server.requests) == 1
    assert saved["sha256"] == hashlib.sha256(server.content[PATH]).hexdigest()
    assert np.load(place / "f.npy").shape == (4, 64)


@pytest.mark.parametrize("name", ["hf:x", "imagenet/resnet9", "hf:someone/absent"])
def test_embed_refuses_a_wrong_name_in_one_line(name, place, capsys):
    write_sample(place / "sample", train=1, val=1, unlabeled=1)
    assert main(["embed", name, "--images", "sample/unlabeled", "--output", "f.npy"]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1 and not list(place.glob("f.npy*"))


def test_compare_downloads_public_weights_for_its_cells(backbone, server, place, monkeypatch):
    tiny = {"backbone": "resnet18", "width": 0.125}
    config = parse_config({"model": tiny, "optimizer": {"learning_rate": 0.1}, "detector": {"kind": "retinanet"}})
    write_sample(place / "sample", train=2, val=1, unlabeled=1)
    settings = Settings(parse_backbones(["random", NAME]), seeds=1, steps=(1,))
    planned = plan_comparison(config, place / "sample", place / "out", settings)
    assert server.requests == []
    monkeypatch.setattr(compare_module, "run_cells", lambda *_: None)
    monkeypatch.setattr(subprocess, "run", load_here)
    made, _ = compare_module.compare(planned, place / "out", 1, False, lambda *_: None)
    assert made.digests == {NAME: weights_digest(backbone)} and made.overlaps[NAME].unknown
    assert read_comparison(place / "out").backbone("tiny").weights == (NAME,) and len(server.requests) == 1


def load_here(words, **_):
    """Does what the process that checks backbones does, in this one, where TensorFlow is loaded already."""
    output = io.StringIO()
    with contextlib.redirect_stdout(output):
        code = cell.main(words[3:])
    return subprocess.CompletedProcess(words, code, output.getvalue(), "")


def test_run_records_name_address_and_hash(backbone, server, place):
    config = Config.model_validate({"model": {"backbone": "resnet18", "width": 0.125}})
    run = place / "run"
    run.mkdir()
    loaded, entry = starting_weights(run, config, NAME)
    assert weights_digest(loaded) == weights_digest(backbone) == entry["sha256"]
    assert entry["weights"] == NAME and entry["url"] == f"https://huggingface.co{PATH}"
    assert entry["file_sha256"] == hashlib.sha256(server.content[PATH]).hexdigest()
    (run / START_FILE).write_text(json.dumps(entry))
    again, same = starting_weights(run, config, None)  # a run without a checkpoint yet reads the name from its record
    assert weights_digest(again) == entry["sha256"] and same == entry and len(server.requests) == 1


@pytest.mark.parametrize("backbone_name", ["resnet18", "resnet34"])
def test_imagenet_of_a_config_is_chosen_by_its_backbone(server, monkeypatch, place, backbone_name):
    for name in ("resnet18", "resnet34"):
        own = CATALOGUE[f"imagenet/{name}"].facts | {"url": f"https://huggingface.co/{name}{PATH}", "published": None}
        monkeypatch.setitem(CATALOGUE._entries, f"imagenet/{name}", Entry(TARGET, "", facts=own))
        server.content[f"/{name}{PATH}"] = server.content[PATH]
    config = Config.model_validate({"model": {"backbone": backbone_name}})
    assert check_weights(place / "run", config, "imagenet") == (None, f"imagenet/{backbone_name}")
    assert server.requests == [(f"/{backbone_name}{PATH}", None)]


def test_import_refuses_an_ending_before_the_download(place, capsys, monkeypatch):
    monkeypatch.setattr("dupr_tf.weights.paths.fetch", lambda remote: pytest.fail("downloaded"))
    assert main(["import", "https://example.org/backbone.keras"]) == 2
    assert ".safetensors" in capsys.readouterr().err


def test_import_suggests_a_name_for_a_mistyped_one(place, capsys):
    assert main(["import", "imagenet/resnet81"]) == 2
    assert (
        "There is no file imagenet/resnet81" in (printed := capsys.readouterr().err) and "imagenet/resnet18" in printed
    )
