"""Tests of exports: complete, verified and described, or not written at all."""

import errno
import hashlib
import importlib.util
import json
import os
import platform
import shutil
import subprocess
import typing
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf
from safetensors import SafetensorError

from dupr_tf import cli
from dupr_tf.commands import Export
from dupr_tf.detection.formats import DETECTOR_EXPORTS
from dupr_tf.errors import RunFailed, UserError
from dupr_tf.files import sha256_of
from dupr_tf.models.resnet import build_backbone, pyramid
from dupr_tf.weights import detectron2_io, keras_io, torch_export
from dupr_tf.weights.export import export
from dupr_tf.weights.formats import EXPORTS, FORMATS
from dupr_tf.weights.loading import load_backbone
from dupr_tf.weights.manifest import check_directory, write_manifest
from dupr_tf.weights.torch_io import to_torchvision, write_safetensors
from dupr_tf.weights.verify import float32_twin
from tests.odd_names import ODD
from tests.refusals import refusal
from tests.weights.backbones import randomised

IMAGES = np.random.default_rng(0).integers(0, 256, (1, 64, 64, 3), dtype=np.uint8)


PLAIN = ("keras", "saved_model", "torchvision", "timm", "detectron2", "kerascv")  # formats that need no extra


@pytest.fixture(scope="module")
def backbone():
    return randomised("resnet18", width=0.125, include_normalization=True)


def test_command_offers_every_format():
    assert set(typing.get_args(typing.get_type_hints(Export)["to"])) == {*FORMATS, *DETECTOR_EXPORTS}


@pytest.mark.parametrize(
    ("to", "files"),
    [
        ("saved_model", {"saved_model.pb", "fingerprint.pb", "variables/variables.index"}),
        ("keras", {"backbone.keras"}),
        ("detectron2", {"backbone.pkl", "README.md"}),
        ("torchvision", {"backbone.safetensors"}),
        ("timm", {"model.safetensors", "config.json"}),
        ("kerascv", {"backbone.keras"}),
    ],
)
def test_export_is_complete(backbone, tmp_path, to, files):
    output = export(backbone, to, tmp_path / ODD / ODD, card={"data": "1,024 photos | mine"})
    assert output == tmp_path / ODD / ODD
    manifest = json.loads((output / "manifest.json").read_text())
    assert manifest["format"] == to and manifest["difference"] == manifest["relative_difference"] == 0.0
    assert {(check["image"], check["level"]) for check in manifest["checks"]} == {
        (image, level) for image in ("64×96", "65×97") for level in ("P2", "P3", "P4", "P5")
    }
    assert all(check["finite"] and check["scale"] > 0.1 for check in manifest["checks"])
    assert files | {"model_card.md"} <= set(manifest["files"])
    for name, digest in manifest["files"].items():
        assert sha256_of(output / name) == digest
    card = (output / "model_card.md").read_text()
    assert "resnet18, width 0.125" in card and "1,024 photos \\| mine" in card and "| parameters | " in card
    assert list(output.parent.iterdir()) == [output]  # no temporary file remains


@pytest.mark.parametrize("to", ["keras", "torchvision"])
def test_export_loads_with_the_same_features(backbone, tmp_path, to):
    loaded = load_backbone(export(backbone, to, tmp_path / "out"), include_normalization=True)
    expected = pyramid(backbone)(IMAGES)
    for level, value in pyramid(loaded)(IMAGES).items():
        np.testing.assert_array_equal(value, expected[level])


def test_earlier_export_is_replaced_only_with_overwrite(backbone, tmp_path):
    output = export(backbone, "keras", tmp_path / "out")
    with pytest.raises(UserError) as error:
        export(backbone, "torchvision", output)
    assert error.value.field == "output" and str(output) in error.value.problem
    assert (output / "backbone.keras").is_file()
    export(backbone, "torchvision", output, overwrite=True)
    assert not (output / "backbone.keras").exists() and (output / "backbone.safetensors").is_file()
    check_directory(output)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_earlier_export_stays_if_the_rename_fails(backbone, tmp_path, monkeypatch):
    output = export(backbone, "torchvision", tmp_path / "out")
    before, rename = (output / "manifest.json").read_text(), Path.rename

    def fail(self, target):
        if ".partial" in self.name:
            raise PermissionError(errno.EPERM, "not now", str(self))
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", fail)
    with pytest.raises(PermissionError):
        export(backbone, "torchvision", output, overwrite=True)
    check_directory(output)
    assert (output / "manifest.json").read_text() == before
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_file_changed_after_the_manifest_is_noticed(backbone, tmp_path, monkeypatch):
    def write_then_damage(directory, facts):
        write_manifest(directory, facts)
        file = directory / "backbone.safetensors"
        content = bytearray(file.read_bytes())
        content[-1] ^= 1
        file.write_bytes(content)

    monkeypatch.setattr("dupr_tf.weights.export.write_manifest", write_then_damage)
    with pytest.raises(UserError, match=r"backbone\.safetensors"):
        export(backbone, "torchvision", tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_folder_that_is_no_export_is_never_replaced(backbone, tmp_path):
    photos = tmp_path / "photos"
    photos.mkdir()
    (photos / "a.jpg").write_bytes(b"precious")
    (tmp_path / "file").write_text("precious")
    for output in (photos, tmp_path / "file"):
        with pytest.raises(UserError) as error:
            export(backbone, "keras", output, overwrite=True)
        assert error.value.field == "output" and str(output) in error.value.problem
    assert (photos / "a.jpg").read_bytes() == b"precious" and (tmp_path / "file").read_text() == "precious"


@pytest.mark.parametrize("other", ["labels.json", "run/backbone.keras"])
def test_export_with_other_files_is_never_replaced(other, backbone, tmp_path):
    output = export(backbone, "keras", tmp_path / "out")
    (output / other).parent.mkdir(exist_ok=True)
    (output / other).write_text("precious")
    error = refusal(export, backbone, "keras", output, overwrite=True)
    assert error.fields == ("output",) and other in error.problem
    assert (output / other).read_text() == "precious"


def test_manifest_of_another_program_makes_no_export(backbone, tmp_path):
    (tmp_path / "manifest.json").write_text('{"name": "a web page", "files": {"manifest.json": "0"}}')
    assert refusal(export, backbone, "keras", tmp_path, overwrite=True).fields == ("output",)
    assert [path.name for path in tmp_path.iterdir()] == ["manifest.json"]


def test_files_of_killed_exports_are_removed(backbone, tmp_path, monkeypatch):
    def fail(*_):
        raise RunFailed("stop")

    output, dead = export(backbone, "keras", tmp_path / "out"), subprocess.Popen(["true"])
    dead.wait()
    name = f".export-{hashlib.sha256(f'{platform.node()}/out'.encode()).hexdigest()[:8]}"
    stem = f"{name}.partial-"
    for process in (dead.pid, os.getppid()):
        (tmp_path / f"{stem}{process}").mkdir()
    export(backbone, "keras", output, overwrite=True)
    assert {path.name for path in tmp_path.iterdir()} == {"out", f"{stem}{os.getppid()}"}
    output.rename(tmp_path / f"{name}.earlier-{dead.pid}")  # as a kill between the two renames leaves it
    output.mkdir()
    before = sha256_of(tmp_path / f"{name}.earlier-{dead.pid}" / "backbone.keras")
    assert "exists already" in refusal(export, backbone, "keras", output).problem
    assert sha256_of(output / "backbone.keras") == before
    monkeypatch.setattr("dupr_tf.weights.export.write_manifest", fail)
    with pytest.raises(RunFailed, match="stop"):
        export(backbone, "keras", output, overwrite=True)
    check_directory(output)


def test_files_can_be_read_by_others(backbone, tmp_path):
    output = export(backbone, "torchvision", tmp_path / "out")
    assert len({path.stat().st_mode for path in output.iterdir()}) == 1


def test_empty_directory_is_filled(backbone, tmp_path):
    (tmp_path / "out").mkdir()
    assert (export(backbone, "torchvision", tmp_path / "out") / "backbone.safetensors").is_file()


@pytest.mark.parametrize("to", PLAIN)
def test_weights_with_nan_are_refused_unless_allowed(tmp_path, to):
    broken = randomised("resnet18", width=0.125)
    broken.get_layer("stack1_block0_1_bn").beta.assign(np.full(16, np.nan))
    with pytest.raises(UserError) as error:
        export(broken, to, tmp_path / "out")
    assert "stack1_block0_1_bn/beta" in error.value.problem and "--allow-nonfinite" in error.value.fix
    assert list(tmp_path.iterdir()) == []
    output = export(broken, to, tmp_path / "out", allow_nonfinite=True)
    manifest = json.loads((output / "manifest.json").read_text())
    assert manifest["difference"] == 0.0
    assert {check["level"] for check in manifest["checks"] if not check["finite"]} == {"P3", "P4", "P5"}


def test_diverged_backbone_is_exported_only_with_its_flag(tmp_path, capsys):
    broken = randomised("resnet18", width=0.125)
    broken.get_layer("conv1_bn").beta.assign(np.full(8, np.inf))
    broken.save(tmp_path / "diverged.keras")
    command = ["export", str(tmp_path / "diverged.keras"), "--to", "keras", "--output", str(tmp_path / "out")]
    assert cli.main(command) == 2
    assert "conv1_bn/beta" in capsys.readouterr().err
    assert cli.main([*command, "--allow-nonfinite"]) == 0
    assert (tmp_path / "out" / "backbone.keras").is_file()


def test_finite_weights_that_overflow_are_refused(tmp_path):
    huge = randomised("resnet18", width=0.125)
    huge.get_layer("conv1_bn").gamma.assign(np.full(8, 3e38))
    with pytest.raises(RunFailed, match="overflow"):
        export(huge, "torchvision", tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def nudged(backbone):
    """Returns a copy with one norm of the last stage off by more than the tolerance of features of some hundreds."""
    other = float32_twin(backbone, include_normalization=True)
    beta = other.get_layer("stack3_block1_2_bn").beta
    beta.assign(beta + 1.0)
    return other


@pytest.mark.parametrize("to", ["keras", "kerascv"])
def test_export_with_a_difference_keeps_the_earlier_one(backbone, tmp_path, monkeypatch, to):
    output = export(backbone, to, tmp_path / "out")
    before = (output / "manifest.json").read_text()
    other = nudged(backbone)
    monkeypatch.setattr(keras_io, "load_backbone", lambda *_, **__: other)
    monkeypatch.setattr(keras.saving, "load_model", lambda *_, **__: other)
    with pytest.raises(RunFailed, match=rf"the {to} export differ.* at P5 of an image"):
        export(backbone, to, output, overwrite=True)
    assert (output / "manifest.json").read_text() == before
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def swap(state):
    """Swaps two norms of equal shape, so that all names and all arrays remain."""
    first, second = "layer1.0.bn1.weight", "layer1.0.bn2.weight"
    return {**state, first: state[second], second: state[first]}


@pytest.mark.parametrize("to", ["torchvision", "timm"])
def test_swapped_norms_are_detected(backbone, tmp_path, monkeypatch, to):
    monkeypatch.setattr(torch_export, "to_torchvision", lambda model: swap(to_torchvision(model)))
    with pytest.raises(RunFailed, match=f"the {to} export differ"):
        export(backbone, to, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: {k: v for k, v in s.items() if k != "bn1.bias"}, "lacks bn1.bias and has nothing"),
        (lambda s: {**s, "fc.bias": s["bn1.bias"]}, "lacks nothing and has fc.bias"),
        (swap, r"layer1\.0\.bn1\.weight, layer1\.0\.bn2\.weight"),
    ],
    ids=["missing", "unmapped", "swapped"],
)
def test_file_without_the_weights_is_refused(backbone, tmp_path, monkeypatch, change, message):
    monkeypatch.setattr(torch_export, "write_safetensors", lambda s, *rest: write_safetensors(change(s), *rest))
    with pytest.raises(RunFailed, match=message):
        export(backbone, "torchvision", tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_damaged_pickle_is_refused(backbone, tmp_path, monkeypatch):
    def write(model, path, write=detectron2_io.write_detectron2):
        write(model, path)
        data = bytearray(path.read_bytes())
        data[-200] ^= 1  # inside the last norm's array
        path.write_bytes(data)

    monkeypatch.setattr(detectron2_io, "write_detectron2", write)
    with pytest.raises(RunFailed, match=r"backbone\.pkl .*res5"):
        export(backbone, "detectron2", tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_tensor_without_a_name_is_refused(backbone, tmp_path):
    more = keras.Model(backbone.input, keras.layers.BatchNormalization(name="extra")(backbone.output), name="more")
    more.architecture, more.width, more.pyramid_outputs = "resnet18", 0.125, backbone.pyramid_outputs
    fewer = keras.Model(backbone.input, backbone.pyramid_outputs["P4"], name="fewer")
    fewer.architecture, fewer.width = "resnet18", 0.125
    for model, message in (
        (more, r"0 are missing \(none\) and 4 have no name \(.*extra/gamma"),
        (fewer, r"25 are missing \(stack3"),
    ):
        with pytest.raises(RunFailed, match=message):
            export(model, "torchvision", tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"),
        tf.errors.ResourceExhaustedError(None, None, "variables.data; No space left on device"),
        RuntimeError("Unable to synchronously write (errno = 28, error message = 'No space left on device')"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_full_disk_gives_one_line_and_leaves_nothing(backbone, tmp_path, monkeypatch, error):
    def fill(model, directory):
        (directory / "half").write_bytes(b"written")
        raise error

    monkeypatch.setattr(keras_io, "write_keras", fill)
    with pytest.raises(RunFailed, match=r"^The disk is full: [^\n]* 1,\d{3},\d{3} bytes [^\n]*$"):
        export(backbone, "keras", tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_too_little_disk_space_is_refused_before_writing(backbone, tmp_path, monkeypatch):
    free = shutil.disk_usage(tmp_path)._replace(free=1_000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: free)
    monkeypatch.setattr(torch_export, "write_torchvision", lambda *_: pytest.fail("written"))
    with pytest.raises(RunFailed, match=r" 1,000 left"):
        export(backbone, "torchvision", tmp_path / "out")


def test_other_errors_keep_their_messages(backbone, tmp_path, monkeypatch):
    monkeypatch.setattr(keras_io, "write_keras", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        export(backbone, "keras", tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("to", ["onnx", "kerashub"])
def test_format_without_its_extra_gives_one_line(backbone, tmp_path, monkeypatch, capsys, to):
    found = importlib.util.find_spec
    needed = EXPORTS[to].modules
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name in needed else found(name, *rest))
    with pytest.raises(UserError) as error:
        export(backbone, to, tmp_path / "out")
    assert error.value.field == "to" and f"'dupr_tf[{to}]'" in error.value.fix
    (tmp_path / "model.keras").touch()
    assert cli.main(["export", str(tmp_path / "model.keras"), "--to", to, "--output", str(tmp_path / "out")]) == 2
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.slow
def test_mixed_backbone_is_exported_in_float32(tmp_path):
    mixed = randomised("resnet18", width=0.125, dtype="mixed_bfloat16")
    for to in ("torchvision", "detectron2", "kerascv", "saved_model"):
        manifest = json.loads((export(mixed, to, tmp_path / to) / "manifest.json").read_text())
        assert manifest["difference"] == 0.0


@pytest.fixture
def saved(backbone, tmp_path):
    backbone.save(tmp_path / "backbone.keras")
    return str(tmp_path / "backbone.keras")


def test_command_prints_its_comparisons(saved, tmp_path, capsys):
    output = tmp_path / "out"
    arguments = ["export", saved, "--to", "detectron2", "--output", str(output), "--license", "CC BY 4.0"]
    assert cli.main(arguments) == 0
    out = capsys.readouterr().out
    assert "compared with backbone.pkl, read again: P2 0.0e+00, P3 0.0e+00, P4 0.0e+00, P5 0.0e+00" in out
    assert "not compared with detectron2: exports do not run it" in out and "largest difference 0.0e+00" in out
    assert "| licence of the weights | CC BY 4.0 |" in (output / "model_card.md").read_text()


def test_command_exits_with_1_if_the_export_is_refused(saved, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(torch_export, "to_torchvision", lambda model: swap(to_torchvision(model)))
    output = tmp_path / "out"
    assert cli.main(["export", saved, "--to", "torchvision", "--output", str(output)]) == 1
    error = capsys.readouterr().err
    assert error.startswith("dupr-tf: error: ") and "torchvision export" in error and error.count("\n") == 1
    assert not output.exists()


def test_command_exits_with_2_if_the_input_is_wrong(saved, tmp_path, capsys):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_text("precious")
    assert cli.main(["export", saved, "--to", "keras", "--output", str(tmp_path / "out")]) == 2
    assert capsys.readouterr().err.startswith("dupr-tf: error: output: ")


@pytest.mark.parametrize(
    ("to", "output", "field", "named"),
    [("tflite", "out", "to", "'tflite'"), ("keras", "model.keras", "output", "model.keras")],
)
def test_wrong_arguments_are_named(backbone, tmp_path, to, output, field, named):
    with pytest.raises(UserError) as error:
        export(backbone, to, tmp_path / output)
    assert error.value.field == field and named in error.value.problem


def test_model_of_another_class_is_refused(tmp_path):
    ours = build_backbone("resnet18", width=0.125)
    other = keras.Model(ours.input, ours.output, name="other")
    other.pyramid_level_inputs = ours.pyramid_level_inputs
    for to in ("torchvision", "timm", "detectron2"):
        with pytest.raises(UserError, match="`other`"):
            export(other, to, tmp_path / "out")
    for to in ("keras", "kerascv"):  # the file would lack the levels
        assert refusal(export, other, to, tmp_path / "out").fields == ("backbone",)
    assert list(tmp_path.iterdir()) == []


def test_output_may_be_a_link_but_not_the_current_folder(backbone, tmp_path, monkeypatch):
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    export(backbone, "torchvision", tmp_path / "link")
    export(backbone, "torchvision", tmp_path / "link", overwrite=True)
    check_directory(tmp_path / "real")
    assert (tmp_path / "link").is_symlink() and sorted(path.name for path in tmp_path.iterdir()) == ["link", "real"]
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    assert "current folder" in refusal(export, backbone, "torchvision", ".").problem
    assert "mount point" in refusal(export, backbone, "torchvision", "/", overwrite=True).problem
