"""Tests of the names and addresses of public weights. No address is contacted."""

import importlib.util
import re
from pathlib import Path

import pytest

from dupr_tf.commands.checks import expand_paths, public_problems
from dupr_tf.commands.import_ import Import, default_output
from dupr_tf.config import load_config
from dupr_tf.config.backbones import BACKBONES
from dupr_tf.weights.catalogue import CATALOGUE, NO_HASH, find_public, is_public, name_for
from dupr_tf.weights.paths import check_weights_file, checkpoint_file
from tests.refusals import refusal

ROOT = Path(__file__).resolve().parents[2]
DIGITS = {"sha256": 64, "md5": 32}
IN_NAME = re.compile(r"-([0-9a-f]{8})[.]pth")


@pytest.fixture
def torch(monkeypatch):
    """Makes PyTorch look installed."""
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *a: find("sys" if name == "torch" else name, *a))


@pytest.fixture
def no_torch(monkeypatch):
    """Makes PyTorch look missing."""
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *a: None if name == "torch" else find(name, *a))


@pytest.mark.parametrize("name", CATALOGUE)
def test_entry_is_complete(name, torch):
    remote, facts = find_public(name), CATALOGUE[name].facts
    assert remote.url == facts["url"] and remote.url.startswith("https://") and remote.terms
    assert facts["architecture"] in BACKBONES
    if "/" in name:  # the name says which network it is
        assert name.split("/")[1].removesuffix("_v2") == facts["architecture"] and facts["architecture"] in remote.url
    algorithm, _, digits = (remote.published or "md5:00000000").partition(":")
    assert re.fullmatch("[0-9a-f]+", digits) and len(digits) in (8, DIGITS[algorithm])


@pytest.mark.parametrize("name", [name for name in CATALOGUE if IN_NAME.search(CATALOGUE[name].facts["url"])])
def test_digits_in_the_name_of_a_file_are_its_hash(name, torch):
    remote = find_public(name)
    assert remote.published == "sha256:" + IN_NAME.search(remote.file)[1]


def test_docs_have_every_entry_with_address_and_hash():
    table = (ROOT / "docs" / "weights.md").read_text(encoding="utf-8")
    rows = {row.split("`")[1]: row for row in table.splitlines() if row.startswith("| `")}
    for name, entry in CATALOGUE.items():
        facts = entry.facts
        if name != "imagenet":
            assert facts["url"] in rows[name] and facts["terms"] in rows[name]
            assert (facts["published"] or NO_HASH).replace(":", " ") in rows[name]


def test_list_marks_entries_without_a_published_hash():
    without = {name for name, entry in CATALOGUE.items() if entry.facts["published"] is None}
    assert {name for name, entry in CATALOGUE.items() if NO_HASH in entry.summary} == without
    assert "swav_800ep" in without and "imagenet/resnet50" not in without


def test_imagenet_needs_no_pytorch(no_torch):
    assert all(find_public(name).file.endswith(".safetensors") for name in CATALOGUE if name.startswith("imagenet"))
    for name in ("moco_v2_800ep", "hf:someone/net/w.pth", "https://example.org/w.pt"):
        assert "pip install" in refusal(find_public, name).fix


@pytest.mark.parametrize(
    ("name", "path"),
    [
        ("hf:timm/resnet50.tv_in1k", "timm/resnet50.tv_in1k/resolve/main/model.safetensors"),
        ("hf:a/b@v1.0", "a/b/resolve/v1.0/model.safetensors"),
        ("hf:a/b/c/w.npz", "a/b/resolve/main/c/w.npz"),
        ("hf:a/b@0f3/w.npz", "a/b/resolve/0f3/w.npz"),
    ],
)
def test_names_on_the_hub(name, path, monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", "https://mirror.example.org/")
    remote = find_public(name)
    assert remote.url == f"https://huggingface.co/{path}" and path.endswith(remote.file)
    assert remote.contacted == f"https://mirror.example.org/{path}"


def test_address_keeps_its_query_and_loses_its_fragment(monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", "https://mirror.example.org")
    remote = find_public("https://example.org/a/w.npz?dl=1#top")
    assert (remote.contacted, remote.file) == ("https://example.org/a/w.npz?dl=1", "w.npz")
    assert find_public("http://127.0.0.1:80/w.npz").file == "w.npz"


@pytest.mark.parametrize(
    "name",
    [
        *("hf:", "hf:someone", "hf:a/b/", "hf:a/../w.npz", "hf:a/b/w.pkl", "hf:a/b?x/w.npz", "hf://a/b/w.npz"),
        *("https://", "https:///w.npz", "https://example.org", "https://example.org/w", "https://example.org/w.h5"),
        *("http://example.org/w.npz", "https://me:secret@example.org/w.npz", "https://example.org:x/w.npz"),
        *("https://[1/w.npz", "https://example.org/a b.npz", "https://example.org/w.npz\n"),
    ],
)
def test_malformed_addresses_are_refused(name):
    error = refusal(find_public, name)
    assert error.field == "--weights" and "secret" not in str(error)


def test_only_text_is_a_name():
    assert is_public("imagenet") and is_public("HTTPS://example.org/w.npz") and is_public("hf:a/b")
    assert not any(map(is_public, (Path("imagenet"), "./imagenet", "runs/imagenet", "gs://a/b", "hf", "random", None)))


def test_imagenet_is_that_of_the_config():
    assert [name_for("imagenet", backbone, 1.0) for backbone in BACKBONES] == [f"imagenet/{one}" for one in BACKBONES]
    for same in (None, "random", "runs/x", Path("imagenet"), "hf:a/b"):
        assert name_for(same, "resnet18", 0.5) == same


@pytest.mark.parametrize(
    ("name", "backbone", "width"),
    [("imagenet", "resnet18", 0.5), ("moco_v2_800ep", "resnet18", 1.0), ("imagenet/resnet34", "resnet50", 1.0)],
)
def test_weights_of_another_network_are_refused(name, backbone, width):
    held = {"imagenet": "resnet18"}.get(name, CATALOGUE[name].facts["architecture"])
    assert f"--model.backbone {held} --model.width 1" in refusal(name_for, name, backbone, width).fix


def test_commands_check_names_before_a_download():
    config = load_config(ROOT / "configs" / "dupr_r18_small.yaml")  # of half width
    assert [one.field for one in public_problems("imagenet", config)] == ["--weights"]
    assert len(public_problems("hf:x", None)) == 1
    assert public_problems("imagenet", None) == public_problems("runs/x", config) == []
    check_weights_file("imagenet/resnet18")  # contacts no server


def test_similar_name_is_suggested():
    for check in (check_weights_file, checkpoint_file):
        assert "moco_v2_800ep" in refusal(check, "moco_v2_80ep").fix
        assert "list weights" in refusal(check, "nothing/like/it.npz").fix


def test_names_are_no_paths(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    for name in ("imagenet", "torchvision/resnet50", "hf:a/b", "https://example.org/w.npz"):
        command = Import(name)
        expand_paths(command)
        assert command.file == name
    for path in ("./imagenet", "a/../imagenet", "./torchvision/resnet50"):
        command = Import(path)
        expand_paths(command)
        assert not is_public(command.file) and Path(command.file).name == Path(path).name


@pytest.mark.parametrize(
    ("file", "output"),
    [
        ("moco_v2_800ep", "moco_v2_800ep.keras"),
        ("imagenet/resnet18", "imagenet_resnet18.keras"),
        ("hf:timm/resnet50.tv_in1k", "resnet50.tv_in1k.keras"),
        ("https://example.org/a/w.npz?dl=1", "w.keras"),
        ("a/moco_v1_200ep_pretrain.pth.tar", "moco_v1_200ep_pretrain.keras"),
        ("backbone.safetensors", "backbone.keras"),
    ],
)
def test_default_output_of_import(file, output):
    assert default_output(file) == Path(output)
