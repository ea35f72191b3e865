"""Tests of other tools' checkpoints, with their real key names and random tensors, and of malicious files."""

import argparse
import io
import json
import pickle
import resource
import sys

import keras
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

from dupr_tf.cli import main
from dupr_tf.errors import UserError
from dupr_tf.models.resnet import ResNetBackbone, build_backbone
from dupr_tf.weights.foreign import read_checkpoint
from dupr_tf.weights.loading import import_backbone, load_backbone, weights_digest
from dupr_tf.weights.manifest import write_manifest
from dupr_tf.weights.torch_io import dropped_keys, find_prefix, from_torchvision, to_torchvision, write_safetensors
from tests.refusals import refusal


def both(*names):
    return [f"{name}.{kind}" for name in names for kind in ("weight", "bias")]


QUEUE = ["queue", "queue_ptr"]
# {layout: (place of the wanted ResNet, places of others, other keys)}, in the file's order. Among the other places,
# + marks a copy and ~ an average of it. The names are those of the public code: facebookresearch/moco and moco-v3
# (builder.py), HobbitLong/PyContrast (networks/, learning/contrast_trainer.py), facebookresearch/swav (resnet50.py),
# OpenSelfSup (byol.py), WXinlong/DenseCL (densecl.py, necks.py, extract_backbone_weights.py),
# lucidrains/byol-pytorch, facebookresearch/vissl (the trunk), torchvision.
LAYOUTS = {
    "torchvision": ("", [], both("fc")),
    "timm": ("", [], both("fc")),
    "moco_v1": ("module.encoder_q.", ["~module.encoder_k."],
                [f"module.{name}" for name in QUEUE] + both("module.encoder_q.fc", "module.encoder_k.fc")),
    "moco_v2": ("module.encoder_q.", ["~module.encoder_k."],
                [f"module.{name}" for name in QUEUE] + both("module.encoder_q.fc.0", "module.encoder_q.fc.2",
                                                            "module.encoder_k.fc.0", "module.encoder_k.fc.2")),
    "moco_v3": ("module.base_encoder.", ["~module.momentum_encoder."],
                ["module.base_encoder.fc.0.weight", "module.base_encoder.fc.1.running_mean",
                 "module.momentum_encoder.fc.0.weight", "module.predictor.0.weight"]),
    "insdis": ("module.encoder.", [], both("module.head.0")),
    "pirl": ("module.encoder.", [], both("module.head.0", "module.head_jig.fc1", "module.head_jig.fc2")),
    "pirl_mlp": ("module.encoder.", [], both("module.head.0", "module.head.2", "module.head_jig.fc1.0",
                                             "module.head_jig.fc1.2", "module.head_jig.fc2")),
    "data_parallel_twice": ("module.encoder.module.", [], both("module.head.0")),
    "swav": ("module.", [], [*both("module.projection_head.0", "module.projection_head.1", "module.projection_head.3"),
                             "module.projection_head.1.running_mean", "module.projection_head.1.running_var",
                             "module.projection_head.1.num_batches_tracked", "module.prototypes.weight"]),
    "swav_several": ("module.", [], ["module.prototypes.prototypes0.weight", "module.prototypes.prototypes1.weight"]),
    "densecl": ("encoder_q.0.", ["~encoder_k.0.", "+backbone."],
                [*QUEUE, "queue2", "queue2_ptr",
                 *both(*[f"encoder_{e}.1.{m}.{i}" for e in "qk" for m in ("mlp", "mlp2") for i in (0, 2)])]),
    "densecl_extracted": ("", [], []),
    "openselfsup_moco": ("encoder_q.0.", ["~encoder_k.0.", "+backbone."],
                         [*QUEUE, *both("encoder_q.1.mlp.0", "encoder_q.1.mlp.2", "encoder_k.1.mlp.0")]),
    "openselfsup_byol": ("online_net.0.", ["~target_net.0.", "+backbone."],
                         [*both("online_net.1.mlp.0", "online_net.1.mlp.1", "online_net.1.mlp.3", "target_net.1.mlp.0",
                                "neck.mlp.0", "neck.mlp.1", "neck.mlp.3", "head.predictor.mlp.0"),
                          "neck.mlp.1.running_mean", "neck.mlp.1.running_var", "neck.mlp.1.num_batches_tracked"]),
    "openselfsup_classifier": ("backbone.", [], both("head.fc_cls")),
    "vissl": ("_feature_blocks.", [], []),
    "byol_pytorch": ("net.", ["+online_encoder.net.", "~target_encoder.net."],
                     both("net.fc", "online_encoder.net.fc", "online_encoder.projector.0", "online_encoder.projector.3",
                          "target_encoder.net.fc", "target_encoder.projector.0", "online_predictor.0")),
}  # fmt: skip


@pytest.fixture(scope="module")
def state():
    keras.utils.set_random_seed(0)
    rng = np.random.default_rng(0)
    state = to_torchvision(build_backbone("resnet18", width=0.125))
    return {name: rng.uniform(0.5, 1.5, value.shape).astype(np.float32) for name, value in state.items()}


def with_counters(state, prefix, shift=0):
    """Returns a ResNet's arrays and its norms' counters below a prefix."""
    arrays = {prefix + name: value + shift for name, value in state.items()}
    counters = [name.replace("running_mean", "num_batches_tracked") for name in arrays if "running_mean" in name]
    return arrays | {name: np.array(3) for name in counters}


def checkpoint(state, layout):
    prefix, elsewhere, others = LAYOUTS[layout]
    content = {name: np.ones(5, np.float32) for name in others if "queue" in name}  # buffers come first
    content |= with_counters(state, prefix)
    for place in elsewhere:
        content |= with_counters(state, place[1:], shift=1 if place[0] == "~" else 0)
    return content | {name: np.ones(5, np.float32) for name in others}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_is_recognised_and_other_keys_listed(state, layout):
    content = checkpoint(state, layout)
    prefix, elsewhere, others = LAYOUTS[layout]
    assert find_prefix(content) == prefix
    copies = {name for place in elsewhere for name in with_counters(state, place[1:])}
    assert set(dropped_keys(content)) == set(others) | copies


@pytest.mark.parametrize("layout", ["moco_v2", "openselfsup_byol"])
def test_import_uses_the_right_weights_and_reports_them(state, layout, tmp_path, capsys):
    np.savez(tmp_path / "weights.npz", **checkpoint(state, layout))
    assert main(["import", str(tmp_path / "weights.npz"), "--output", str(tmp_path / "b.keras")]) == 0
    printed = capsys.readouterr().out
    prefix, _, others = LAYOUTS[layout]
    assert f"resnet18, width 0.125: {len(state)} arrays matched (named {prefix}…), none missing" in printed
    for name in others:
        assert f"dropped: {name}\n" in printed
    received = to_torchvision(load_backbone(tmp_path / "b.keras"))
    for name, value in state.items():
        np.testing.assert_array_equal(received[name], value)


def test_network_with_numbered_children_gets_its_names(state, tmp_path):
    numbers = {"conv1": "0", "bn1": "1", "layer1": "4", "layer2": "5", "layer3": "6", "layer4": "7"}
    content = with_counters(state, "encoder.")
    for name, number in numbers.items():
        content = {key.replace(f"encoder.{name}.", f"encoder.{number}."): value for key, value in content.items()}
    content |= {"projetion.net.0.weight": np.ones(3), "projetion.net.1.running_mean": np.ones(3)}
    assert not any("layer1" in key for key in content) and "encoder.4.0.conv1.weight" in content
    np.savez(tmp_path / "byol.npz", **content)
    read = read_checkpoint(tmp_path / "byol.npz")
    assert find_prefix(read) == "encoder."
    assert dropped_keys(read) == ["projetion.net.0.weight", "projetion.net.1.running_mean"]
    for name, value in state.items():
        np.testing.assert_array_equal(read[f"encoder.{name}"], value)


def test_digest_depends_only_on_the_values(state):
    first, again = from_torchvision(state), from_torchvision(dict(reversed(state.items())))
    assert weights_digest(first) == weights_digest(again)
    again.trainable_variables[0].assign_add(again.trainable_variables[0] * 1e-6 + 1e-6)
    assert weights_digest(first) != weights_digest(again)


def test_digest_depends_on_the_last_array(state):
    backbone = from_torchvision(state)
    before, weights = weights_digest(backbone), backbone.get_weights()
    weights[-1] = weights[-1] + 1
    backbone.set_weights(weights)
    assert weights_digest(backbone) != before


@pytest.mark.parametrize("averaged", ["teacher", "momentum", "target_net", "encoder_k", "module.ema"])
def test_averaged_encoder_is_skipped(state, averaged):
    both = {f"{averaged}.{name}": value + 1 for name, value in state.items()}
    both |= {f"student.{name}": value for name, value in state.items()}
    assert find_prefix(both) == "student."


def test_import_refuses_a_file_with_other_weights(state, tmp_path, monkeypatch, capsys):
    file = tmp_path / "weights.safetensors"
    write_safetensors(state, file)
    save = ResNetBackbone.save

    def save_others(self, path):
        other = ResNetBackbone.from_config(self.get_config())
        save(other, path)

    monkeypatch.setattr(ResNetBackbone, "save", save_others)
    assert str(tmp_path / "b.keras") in refused(capsys, file, code=1)


def test_repeated_module_is_one_and_two_networks_are_refused(state):
    twice = {f"{prefix}{name}": value for prefix in ("backbone.", "encoder_q.0.") for name, value in state.items()}
    assert find_prefix(twice) == "backbone."
    twice["encoder_q.0.layer1.0.conv1.weight"] = twice["encoder_q.0.layer1.0.conv1.weight"] + 1
    with pytest.raises(UserError) as error:
        find_prefix(twice)
    assert error.value.field == "prefix" and "'backbone.', 'encoder_q.0.'" in error.value.problem


def test_incomplete_backbone_is_refused_and_leaves_nothing(state, tmp_path, capsys):
    content = checkpoint(state, "moco_v2")
    del content["module.encoder_q.layer3.1.bn2.running_var"]
    np.savez(tmp_path / "weights.npz", **content)
    assert main(["import", str(tmp_path / "weights.npz"), "--output", str(tmp_path / "b.keras")]) == 2
    assert "lacks layer3.1.bn2.running_var" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["weights.npz"]


def test_output_is_overwritten_only_with_the_flag(state, tmp_path):
    write_safetensors(state, tmp_path / "weights.safetensors")
    command = ["import", str(tmp_path / "weights.safetensors"), "--output", str(tmp_path / "b.keras")]
    assert [main(command), main(command), main([*command, "--overwrite"])] == [0, 2, 0]
    assert main([*command[:-1], str(tmp_path / "b.h5")]) == 2


def test_objects_in_an_npz_file_are_refused_and_not_run(tmp_path, capsys):
    np.savez(tmp_path / "weights.npz", weights=np.array([Harm(tmp_path / "harmed")], object))
    with pytest.raises(UserError, match=r"weights\.npz"):
        read_checkpoint(tmp_path / "weights.npz")
    assert not (tmp_path / "harmed").exists()


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", b"no zip at all", pickle.dumps({"a": 1})])
def test_invalid_npz_file_gives_one_line(content, tmp_path):
    (tmp_path / "weights.npz").write_bytes(content)
    with pytest.raises(UserError, match=r"weights\.npz"):
        read_checkpoint(tmp_path / "weights.npz")


def test_damaged_npz_file_gives_one_line(state, tmp_path):
    buffer = io.BytesIO()
    np.savez(buffer, **state)
    whole, flipped = buffer.getvalue(), bytearray(buffer.getvalue())
    flipped[len(whole) // 2] ^= 1  # zip keeps a checksum of each array
    for content in (whole[: len(whole) // 2], flipped):
        (tmp_path / "weights.npz").write_bytes(content)
        with pytest.raises(UserError, match=r"weights\.npz"):
            read_checkpoint(tmp_path / "weights.npz")


@pytest.mark.parametrize("name", ["weights.pkl", "weights.h5"])
def test_pickles_are_not_read(name, tmp_path):
    (tmp_path / name).write_bytes(b"x")
    with pytest.raises(UserError, match="pickles"):
        read_checkpoint(tmp_path / name)


def test_torch_file_without_torch_names_the_fix(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    (tmp_path / "weights.pth").write_bytes(b"x")
    with pytest.raises(UserError, match="pip install torch"):
        read_checkpoint(tmp_path / "weights.pth")


def test_torch_files_are_read_as_data(state, tmp_path):
    torch = pytest.importorskip("torch", reason="torch is an extra")
    content = {name: torch.from_numpy(np.array(value)) for name, value in checkpoint(state, "moco_v2").items()}
    file = {"epoch": 200, "arch": "resnet18", "state_dict": content, "optimizer": {"state": {}, "param_groups": [{}]}}
    for name, options in (("new.pth.tar", {}), ("old.pth", {"_use_new_zipfile_serialization": False})):
        torch.save(file, tmp_path / name, **options)
        received = to_torchvision(load_backbone(tmp_path / name))
        for key, value in state.items():
            np.testing.assert_array_equal(received[key], value)


@pytest.mark.parametrize("key", ["state_dict", "model", "online_network_state_dict", None])
def test_torch_files_may_be_nested_and_of_half_precision(key, tmp_path):
    torch = pytest.importorskip("torch", reason="torch is an extra")
    inner = {"conv1.weight": torch.full((2, 3), 1.5, dtype=torch.bfloat16), "name": "resnet"}
    torch.save({key: inner, "epoch": 1, "contrast": {"memory": torch.ones(2)}} if key else inner, tmp_path / "a.pt")
    read = read_checkpoint(tmp_path / "a.pt")
    assert list(read) == ["conv1.weight"] and read["conv1.weight"].dtype == np.float32
    np.testing.assert_array_equal(read["conv1.weight"], np.full((2, 3), 1.5))


def test_torch_file_of_vissl_keeps_the_trunk(tmp_path):
    torch = pytest.importorskip("torch", reason="torch is an extra")
    trunk, heads = {"_feature_blocks.conv1.weight": torch.ones(2, 3)}, {"0.clf.weight": torch.ones(1)}
    content = {"classy_state_dict": {"base_model": {"model": {"trunk": trunk, "heads": heads}}}, "model": {}}
    torch.save(content, tmp_path / "phase799.torch")
    assert list(read_checkpoint(tmp_path / "phase799.torch")) == ["_feature_blocks.conv1.weight"]


@pytest.mark.parametrize("new", [True, False])
def test_command_line_in_a_torch_file_is_data(new, tmp_path):
    torch = pytest.importorskip("torch", reason="torch is an extra")
    options = argparse.Namespace(lr=0.03, milestones=[120, 160], distributed=True)
    content = {"opt": options, "model": {"module.encoder.conv1.weight": torch.ones(2, 3)}, "epoch": 200}
    torch.save(content, tmp_path / "InsDis.pth", _use_new_zipfile_serialization=new)
    assert list(read_checkpoint(tmp_path / "InsDis.pth")) == ["module.encoder.conv1.weight"]
    options.hook = Harm(tmp_path / "harmed")  # code in a Namespace is refused as anywhere else
    torch.save(content, tmp_path / "evil.pth", _use_new_zipfile_serialization=new)
    with pytest.raises(UserError):
        read_checkpoint(tmp_path / "evil.pth")
    assert not (tmp_path / "harmed").exists()


class Harm:
    """Creates a file when it is unpickled."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return open, (self.path, "w")


def test_harmful_pickle_acts_when_unpickled(tmp_path):
    pickle.loads(pickle.dumps(Harm(tmp_path / "harmed"))).close()
    assert (tmp_path / "harmed").exists()


@pytest.mark.parametrize("ending", [".pkl", ".npz", ".safetensors", ".keras", ".pth", ".pt", ".tar", ".ckpt"])
def test_pickle_with_code_is_refused_and_not_run(ending, tmp_path, capsys):
    file = tmp_path / f"evil{ending}"
    file.write_bytes(pickle.dumps({"state_dict": {"conv1.weight": Harm(tmp_path / "harmed")}}))
    assert main(["import", str(file), "--output", str(tmp_path / "b.keras")]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1
    with pytest.raises(UserError, match="evil"):
        load_backbone(file)
    assert [path.name for path in tmp_path.iterdir()] == [file.name]


@pytest.mark.parametrize("new", [True, False])
def test_code_in_a_torch_file_is_refused_and_not_run(new, state, tmp_path, capsys):
    torch = pytest.importorskip("torch", reason="torch is an extra")
    content = {name: torch.from_numpy(value) for name, value in state.items()}
    file = tmp_path / "evil.pth"
    torch.save({"state_dict": content, "x": Harm(tmp_path / "harmed")}, file, _use_new_zipfile_serialization=new)
    assert main(["import", str(file), "--output", str(tmp_path / "b.keras")]) == 2
    assert capsys.readouterr().err.startswith(f"dupr-tf: error: {file} ")
    assert [path.name for path in tmp_path.iterdir()] == [file.name]
    torch.load(file, weights_only=False)  # the refused code would have created it
    assert (tmp_path / "harmed").exists()


@pytest.mark.parametrize("content", ["a list", "a cut file"])
def test_other_torch_files_give_one_line(content, tmp_path):
    torch = pytest.importorskip("torch", reason="torch is an extra")
    torch.save([torch.ones(3)] if content == "a list" else {"a": torch.ones(10_000)}, tmp_path / "a.pth")
    if content == "a cut file":
        (tmp_path / "a.pth").write_bytes((tmp_path / "a.pth").read_bytes()[:10_000])
    with pytest.raises(UserError) as error:
        read_checkpoint(tmp_path / "a.pth")
    assert str(tmp_path / "a.pth") in error.value.problem and "\n" not in str(error.value)


def refused(capsys, file, *flags, code=2):
    """Returns the single line that `import` ends with, after checking that only the input file exists."""
    before = sorted(path.name for path in file.parent.iterdir())
    assert main(["import", str(file), "--output", str(file.parent / "b.keras"), *flags]) == code
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("dupr-tf: error: ")]
    assert sorted(path.name for path in file.parent.iterdir()) == before
    return line


def changed(state, **changes):
    return {**state, **{name.replace("__", "."): value for name, value in changes.items()}}


@pytest.mark.parametrize("change, message", [
    (lambda s: changed(s, layer1__2__conv1__weight=np.ones((8, 8, 3, 3))), r"a basic network of (3, 2, 2, 2) blocks"),
    (lambda s: changed(s, layer2__0__conv1__weight=np.ones((24, 8, 3, 3))), "received (8, 24, 32, 64) in layer1"),
    (lambda s: changed(s, layer2__0__conv1__weight=np.float32(1)), "received (8, 0, 32, 64) in layer1"),
    (lambda s: changed(s, bn1__weight=np.ones((8, 1, 1))), "Expected bn1.weight to be (8,) in Keras' order"),
    (lambda s: changed(s, bn1__weight=np.array(["a"] * 8)), "Expected real numbers in bn1.weight, received <U1"),
    (lambda s: changed(s, bn1__weight=np.ones(8, complex)), "Expected real numbers in bn1.weight, received complex128"),
], ids=["depth", "width", "a number for a kernel", "a norm with axes", "text", "complex"])  # fmt: skip
def test_unsupported_network_gives_one_line(change, message, state, tmp_path, capsys):
    np.savez(tmp_path / "weights.npz", **change(state))
    assert message in refused(capsys, tmp_path / "weights.npz")


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e300], ids=str)
def test_nonfinite_weights_are_named_and_need_a_flag(value, state, tmp_path, capsys):
    file = tmp_path / "weights.npz"
    np.savez(file, **changed(state, bn1__bias=np.full(8, value)))  # 1e300 becomes infinite as a float32
    line = refused(capsys, file)
    assert "bn1.bias contains NaN" in line and "--allow-nonfinite" in line


def test_allowed_nonfinite_weights_are_refused_on_loading(state, tmp_path):
    file, output = tmp_path / "weights.npz", tmp_path / "b.keras"
    np.savez(file, **changed(state, bn1__bias=np.array([np.nan, np.inf, 1, 2, 3, 4, 5, 6])))
    assert main(["import", str(file), "--output", str(output), "--allow-nonfinite"]) == 0
    for path in (file, output):
        with pytest.raises(UserError, match="NaN or infinity"):
            load_backbone(path)
    received = to_torchvision(load_backbone(output, allow_nonfinite=True))["bn1.bias"]
    np.testing.assert_array_equal(received, [np.nan, np.inf, 1, 2, 3, 4, 5, 6])


def test_flipped_bit_is_detected_by_the_manifest(state, tmp_path, capsys):
    file = tmp_path / "weights.safetensors"
    write_safetensors(state, file)
    write_manifest(tmp_path)
    content = bytearray(file.read_bytes())
    content[-3] ^= 1  # the number stays valid: safetensors has no checksum
    file.write_bytes(content)
    line = refused(capsys, file)
    assert str(file) in line and "manifest.json" in line
    (tmp_path / "manifest.json").write_text(json.dumps({"files": {}}))
    assert import_backbone(file, tmp_path / "b.keras").architecture == "resnet18"


def test_full_disk_gives_one_line_and_leaves_nothing(state, tmp_path, capsys):
    file = tmp_path / "weights.safetensors"
    write_safetensors(state, file)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, hard))  # the kernel refuses longer files, as a full disk does
    try:
        line = refused(capsys, file, code=1)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert str(tmp_path / "b.keras") in line


def test_unwritable_folder_gives_one_line(state, tmp_path, capsys):
    write_safetensors(state, tmp_path / "weights.safetensors")
    (tmp_path / "file").write_text("")
    command = ["import", str(tmp_path / "weights.safetensors"), "--output", str(tmp_path / "file" / "b.keras")]
    assert main(command) == 1
    assert str(tmp_path / "file") in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize("content", ['{"name": "app", "files": ["a.js"]}', "[1, 2]", '{"files": {"a.js": "1f"}}'])
def test_manifest_of_another_program_is_ignored(state, tmp_path, content):
    write_safetensors(state, tmp_path / "backbone.safetensors")
    (tmp_path / "manifest.json").write_text(content)
    load_backbone(tmp_path / "backbone.safetensors")
    (tmp_path / "manifest.json").write_text(json.dumps({"files": {"backbone.safetensors": "0" * 64}}))
    (tmp_path / "manifest.json").write_text(json.dumps({"files": {"backbone.safetensors": "0" * 64, "other": "0x"}}))
    assert "is damaged or was changed" in refusal(load_backbone, tmp_path / "backbone.safetensors").problem


def test_networks_that_share_their_first_layers_are_told_apart(state):
    later = {name: value + (1 if name.startswith("layer4") else 0) for name, value in state.items()}
    networks = {f"modelStudent.backbone.{name}": value for name, value in state.items()}
    for averaged in ("modelTeacher", "EMAModel"):
        assert find_prefix(networks | {f"{averaged}.{k}": v for k, v in later.items()}) == "modelStudent.backbone."
    error = refusal(find_prefix, networks | {f"other.{k}": v for k, v in later.items()})
    assert error.fields == ("prefix",) and "'other.'" in error.problem


def test_types_that_numpy_lacks_are_refused(state, tmp_path):
    np.savez(tmp_path / "a.npz", **{**state, "conv1.weight": np.zeros(state["conv1.weight"].shape, ml_dtypes.bfloat16)})
    assert "conv1.weight" in refusal(load_backbone, tmp_path / "a.npz").problem
    half = {name: value.astype(ml_dtypes.bfloat16) for name, value in state.items()}
    save_file(half, tmp_path / "half.safetensors")  # a type that NumPy gets from ml_dtypes
    load_backbone(tmp_path / "half.safetensors")
    header = b'{"a":{"dtype":"F8_E4M3","shape":[1],"data_offsets":[0,1]}}'
    (tmp_path / "a.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + b"\0")
    assert "a.safetensors" in refusal(load_backbone, tmp_path / "a.safetensors").problem


def test_import_by_a_prefix_without_its_dot_drops_only_others(state, tmp_path):
    both = {f"module.{part}.{name}": value for part in ("encoder_q", "encoder_k") for name, value in state.items()}
    write_safetensors(both, tmp_path / "both.safetensors")
    done = import_backbone(tmp_path / "both.safetensors", tmp_path / "out.keras", "module.encoder_q")
    assert done.matched == len(state) and set(done.dropped) == {name for name in both if "encoder_k" in name}


def test_prefix_needs_no_final_dot(state):
    both = {f"module.encoder_{part}.{name}": value for part in "qk" for name, value in state.items()}
    for prefix in ("module.encoder_k", "module.encoder_k."):
        assert from_torchvision(both, prefix).architecture == "resnet18"
    error = refusal(from_torchvision, both, "encoder")
    assert error.field == "--prefix" and "module.encoder_q." in error.fix
