"""Runs the short programs of scripts/ for two steps on the embedded sample, as a user would run them."""

import importlib.util
from pathlib import Path

import pytest

from dupr_tf.data.sample import write_sample
from dupr_tf.models import build_backbone
from dupr_tf.weights.loading import load_backbone

SCRIPTS = Path(__file__).parents[2] / "scripts"


def script(name):
    spec = importlib.util.spec_from_file_location(name, SCRIPTS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def sample(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sample")
    write_sample(folder, train=10, val=2, unlabeled=66, seed=1)
    return folder


@pytest.fixture(scope="module")
def backbone(sample, tmp_path_factory):
    path = tmp_path_factory.mktemp("out") / "backbone.keras"
    script("pretrain").main(sample / "unlabeled", path, steps=2)
    return path


@pytest.mark.slow
def test_pretrain_writes_a_backbone(backbone):
    assert (load_backbone(backbone).architecture, load_backbone(backbone).width) == ("resnet18", 0.5)


@pytest.mark.slow
def test_finetune_accepts_the_backbone(sample, backbone, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    script("finetune_retinanet").main(backbone, sample, steps=2)
    assert "AP50" in capsys.readouterr().out
    assert (tmp_path / "detector.keras").is_file()


def test_export_prints_the_output_of_the_saved_model(tmp_path, capsys):
    build_backbone("resnet18", width=0.5).save(tmp_path / "backbone.keras")
    script("export").main(tmp_path / "backbone.keras", tmp_path)
    assert "P5 (1, 5, 7, 256)" in capsys.readouterr().out
    assert (tmp_path / "detectron2" / "backbone.pkl").is_file()
