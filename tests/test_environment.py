"""Tests of a run's environment record, of model cards, and of settings that other projects leave in a process."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml

from dupr_tf import environment
from dupr_tf.environment import commit, describe_environment, read_environments, record_environment
from dupr_tf.weights.export import export
from dupr_tf.weights.model_card import run_facts
from tests.weights.backbones import randomised

ROOT = Path(__file__).resolve().parents[1]


def test_environment_is_described():
    found = describe_environment()
    assert set(found) == {"commit", "hardware", "versions"}
    assert found["hardware"].startswith(f"{os.cpu_count()} × ") and "GPU" in found["hardware"]
    assert found["versions"]["numpy"] == np.__version__ and {"dupr_tf", "python", "keras"} <= set(found["versions"])


def checkout(folder):
    """Returns a committed git repository with a package in it."""
    (folder / "dupr_tf").mkdir(parents=True)
    (folder / "dupr_tf" / "__init__.py").write_text("")
    for arguments in (["init", "-q"], ["add", "."], ["commit", "-qm", "first"]):
        identity = ["-c", "user.name=a", "-c", "user.email=a@b"]
        subprocess.run(["git", "-C", str(folder), *identity, *arguments], check=True)
    return folder / "dupr_tf" / "__init__.py"


def test_commit_is_that_of_the_package(tmp_path, monkeypatch):
    file = checkout(tmp_path / "ours")
    monkeypatch.setattr(environment, "PACKAGE", file.parent)
    head = subprocess.run(["git", "-C", file.parent, "rev-parse", "HEAD"], capture_output=True, text=True, check=True)
    assert commit() == head.stdout.strip() and len(commit()) == 40
    file.write_text("changed = True")
    assert commit() == head.stdout.strip() + "+changes"


def test_commit_outside_of_git_is_none(tmp_path, monkeypatch):
    monkeypatch.setattr(environment, "PACKAGE", tmp_path)
    assert commit() is None
    installed = checkout(tmp_path / "theirs").parent.parent / ".venv" / "dupr_tf" / "__init__.py"
    installed.parent.mkdir(parents=True)
    installed.write_text("")
    monkeypatch.setattr(environment, "PACKAGE", installed.parent)
    assert commit() is None  # a repository of another project
    monkeypatch.setenv("PATH", str(tmp_path))
    assert commit() is None  # no git at all
    assert describe_environment()["commit"] == "unknown: not run from a git checkout"


def test_resume_on_another_machine_adds_an_entry(tmp_path, monkeypatch):
    record_environment(tmp_path)
    record_environment(tmp_path)
    assert len(read_environments(tmp_path)) == 1
    monkeypatch.setattr(environment, "hardware", lambda: "8 × Abacus")
    record_environment(tmp_path)
    assert [entry["hardware"] for entry in read_environments(tmp_path)][1] == "8 × Abacus"
    assert [path.name for path in tmp_path.iterdir()] == ["environment.json"]


@pytest.mark.parametrize("text", ["", "{", "{}", "[1]", '"a"'])
def test_damaged_file_gives_no_entry(tmp_path, text):
    (tmp_path / "environment.json").write_text(text)
    assert read_environments(tmp_path) == []


@pytest.fixture
def run(tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    (run / "config.yaml").write_text(
        "data:\n  root: /a/b/photos\n  kind: folder\nprobing:\n  data: /a/b/val\ntrain:\n  seed: 3\n"
    )
    (run / "metrics.jsonl").write_text('{"step": 1}\n' + json.dumps({"step": 40, "loss": 2.5, "loss/patch_P4": 1.25}))
    entries = [
        {"commit": "a" * 40, "hardware": "2 × Loom", "versions": {"keras": "3.15.1"}},
        {"commit": "a" * 40, "hardware": "8 × Abacus", "versions": {"keras": "3.15.1"}},
    ]
    (run / "environment.json").write_text(json.dumps(entries))
    start = {"weights": "moco_v2_800ep", "sha256": "b" * 64, "url": "https://x.org/a.pth", "file_sha256": "c" * 64}
    (run / "start.json").write_text(json.dumps(start))
    return run


def test_card_shows_the_environment_of_the_run(run, tmp_path):
    output = export(randomised("resnet18", width=0.125), "torchvision", tmp_path / "out", card=run_facts(run))
    card = (output / "model_card.md").read_text()
    for row in (
        "| licence of the weights | not stated |",
        "| data | `photos` (folder), without labels |",
        "| started from | `moco_v2_800ep` from https://x.org/a.pth |",
        f"| sha256 of those weights | {'b' * 64} |",
        f"| sha256 of that file | {'c' * 64} |",
        "| steps | 40 |",
        "| last losses | loss 2.500, loss/patch_P4 1.250 |",
        f"| commit | {'a' * 40} |",
        "| hardware | 2 × Loom; then 8 × Abacus |",
        "| versions | keras 3.15.1 |",
    ):
        assert row in card, row
    assert "(of the export)" not in card
    block = yaml.safe_load(card.split("```yaml\n")[1].split("```")[0])
    assert block["train"]["seed"] == 3 and block["data"]["root"] == "photos" and "/a/b" not in card
    assert block["probing"]["data"] == "val"


def test_card_shows_the_last_name_of_a_path_only(run):
    (run / "start.json").write_text(json.dumps({"weights": "/a/b/moco", "sha256": "b" * 64}))
    facts = run_facts(run)
    assert facts["started from"] == "`moco`" and "sha256 of that file" not in facts


def test_card_of_a_file_shows_the_environment_of_export(tmp_path):
    assert run_facts(tmp_path / "backbone.keras") == {}
    card = (export(randomised("resnet18", width=0.125), "timm", tmp_path / "out") / "model_card.md").read_text()
    assert card.count("(of the export)") == 3 and "| hardware | " in card


# ---- settings of other projects ----

CODE = """
import json, os, dupr_tf, keras
dupr_tf.ResNetBackbone
names = ("backend", "image_data_format", "floatx", "epsilon")
print(json.dumps({"plots": os.environ["MPLBACKEND"], **{name: getattr(keras.config, name)() for name in names}}))
"""


def output_of(code, **environment):
    path = {"PYTHONPATH": str(ROOT), "TF_CPP_MIN_LOG_LEVEL": "3"}
    done = subprocess.run([sys.executable, "-c", code], env={**os.environ, **path, **environment}, capture_output=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.decode().strip()


def test_settings_of_other_projects_change_nothing(tmp_path):
    other = {"backend": "jax", "image_data_format": "channels_first", "floatx": "float16", "epsilon": 1e-2}
    (tmp_path / "keras.json").write_text(json.dumps(other))
    plots = "module://not_installed_here.backend"
    got = json.loads(output_of(CODE, KERAS_HOME=str(tmp_path), KERAS_BACKEND="torch", MPLBACKEND=plots))
    expected = {"backend": "tensorflow", "image_data_format": "channels_last", "floatx": "float32", "epsilon": 1e-7}
    assert got == {"plots": "agg", **expected}
