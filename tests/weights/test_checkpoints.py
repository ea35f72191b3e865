"""Checkpoints of other tools: the real key names of each, random tensors; and files that must not be believed."""

import io
import pickle
import sys

import keras
import numpy as np
import pytest

from dupr_tf.cli import main
from dupr_tf.models.resnet import build_backbone, pyramid
from dupr_tf.weights.checkpoints import read_checkpoint
from dupr_tf.weights.loading import load_backbone
from dupr_tf.weights.torch_io import find_prefix, from_torchvision, to_torchvision, write_safetensors

IMAGES = np.random.default_rng(0).normal(size=(1, 64, 64, 3)).astype(np.float32)
# (names before the ResNet's own, other keys): what each public release or training script writes.
LAYOUTS = {
    "torchvision": ("", ["fc.weight", "fc.bias"]),
    "timm": ("", ["fc.weight", "fc.bias"]),
    "moco_v1": ("module.encoder_q.", ["module.encoder_q.fc.weight", "module.queue", "module.queue_ptr"]),
    "moco_v2": ("module.encoder_q.", ["module.encoder_q.fc.0.weight", "module.encoder_q.fc.2.bias", "module.queue"]),
    "insdis": ("module.encoder.", ["module.encoder.fc.weight", "module.head.0.weight"]),
    "pirl": ("module.encoder.", ["module.head.0.weight", "module.head_jig.fc1.weight", "module.head_jig.fc2.bias"]),
    "swav": ("module.", ["module.projection_head.0.weight", "module.projection_head.1.running_var",
                         "module.prototypes.weight"]),
    "densecl": ("encoder_q.0.", ["encoder_q.1.mlp.0.weight", "queue", "queue2", "queue2_ptr"]),
    "byol": ("online_net.0.", ["online_net.1.fc0.weight", "head.predictor.fc0.bias"]),
    "openselfsup": ("backbone.", ["neck.mlp.0.weight", "head.fc_cls.weight"]),
}  # fmt: skip
AVERAGED = {
    "moco_v1": "module.encoder_k.",
    "moco_v2": "module.encoder_k.",
    "densecl": "encoder_k.0.",
    "byol": "target_net.0.",
}


@pytest.fixture(scope="module")
def state():
    keras.utils.set_random_seed(0)
    return to_torchvision(build_backbone("resnet18", width=0.125))


def checkpoint(state, layout):
    prefix, others = LAYOUTS[layout]
    content = {prefix + name: value for name, value in state.items()}
    content |= {f"{prefix}bn1.num_batches_tracked": np.array([3])}
    if layout in AVERAGED:
        content = {AVERAGED[layout] + name: value + 1 for name, value in state.items()} | content
    return content | {name: np.ones(5, np.float32) for name in others}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_is_recognised_and_gives_its_features(state, layout, tmp_path, capsys):
    content = checkpoint(state, layout)
    assert find_prefix(content) == LAYOUTS[layout][0]
    np.savez(tmp_path / "weights.npz", **content)
    assert main(["import", str(tmp_path / "weights.npz"), "--output", str(tmp_path / "b.keras")]) == 0
    printed = capsys.readouterr().out
    assert f"resnet18, width 0.125: {len(state)} arrays" in printed
    for name in LAYOUTS[layout][1]:
        assert f"left behind: {name}\n" in printed
    expected = pyramid(from_torchvision(state))(IMAGES)
    for file in ("b.keras", "weights.npz"):  # what `finetune --weights` reads
        for level, value in pyramid(load_backbone(tmp_path / file))(IMAGES).items():
            np.testing.assert_array_equal(value, expected[level])


def test_a_module_registered_twice_is_one_but_two_networks_are_refused(state):
    twice = {f"{prefix}{name}": value for prefix in ("backbone.", "encoder_q.0.") for name, value in state.items()}
    assert find_prefix(twice) == "backbone."
    twice["encoder_q.0.layer1.0.conv1.weight"] = twice["encoder_q.0.layer1.0.conv1.weight"] + 1
    with pytest.raises(ValueError, match=r"'backbone.', 'encoder_q.0.' with different weights"):
        find_prefix(twice)


def test_an_incomplete_backbone_is_refused_and_nothing_is_left(state, tmp_path, capsys):
    content = checkpoint(state, "moco_v2")
    del content["module.encoder_q.layer3.1.bn2.running_var"]
    np.savez(tmp_path / "weights.npz", **content)
    assert main(["import", str(tmp_path / "weights.npz"), "--output", str(tmp_path / "b.keras")]) == 2
    assert "without layer3.1.bn2.running_var" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["weights.npz"]


def test_an_output_is_not_overwritten_unasked(state, tmp_path):
    write_safetensors(state, tmp_path / "weights.safetensors")
    command = ["import", str(tmp_path / "weights.safetensors"), "--output", str(tmp_path / "b.keras")]
    assert [main(command), main(command), main([*command, "--overwrite"])] == [0, 2, 0]
    assert main([*command[:-1], str(tmp_path / "b.h5")]) == 2


def test_objects_in_an_npz_file_are_refused_and_not_run(tmp_path, capsys):
    class Harm:
        def __reduce__(self):
            return exec, (f"open({str(tmp_path / 'harmed')!r}, 'w')",)

    np.savez(tmp_path / "weights.npz", weights=np.array([Harm()], object))
    with pytest.raises(ValueError, match="object arrays are not read"):
        read_checkpoint(tmp_path / "weights.npz")
    assert not (tmp_path / "harmed").exists()


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", b"no zip at all", pickle.dumps({"a": 1})])
def test_what_is_no_npz_file_is_one_line(content, tmp_path):
    (tmp_path / "weights.npz").write_bytes(content)
    with pytest.raises(ValueError, match="an npz file of plain arrays"):
        read_checkpoint(tmp_path / "weights.npz")


def test_a_truncated_npz_file_is_one_line(state, tmp_path):
    buffer = io.BytesIO()
    np.savez(buffer, **state)
    (tmp_path / "weights.npz").write_bytes(buffer.getvalue()[: len(buffer.getvalue()) // 2])
    with pytest.raises(ValueError, match="an npz file of plain arrays"):
        read_checkpoint(tmp_path / "weights.npz")
    damaged = bytearray(buffer.getvalue())
    damaged[len(damaged) // 2] ^= 1  # zip keeps a checksum of each array
    (tmp_path / "weights.npz").write_bytes(damaged)
    with pytest.raises(ValueError, match="an npz file of plain arrays"):
        read_checkpoint(tmp_path / "weights.npz")


@pytest.mark.parametrize("name", ["weights.pkl", "weights.h5"])
def test_pickles_are_not_read(name, tmp_path):
    (tmp_path / name).write_bytes(b"x")
    with pytest.raises(ValueError, match="not read here"):
        read_checkpoint(tmp_path / name)


def test_torch_files_without_torch_say_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    (tmp_path / "weights.pth").write_bytes(b"x")
    with pytest.raises(ValueError, match="Fix: pip install torch"):
        read_checkpoint(tmp_path / "weights.pth")


def test_torch_files_are_read_as_data(state, tmp_path):
    torch = pytest.importorskip("torch", reason="torch is an extra")
    content = {name: torch.from_numpy(value) for name, value in checkpoint(state, "moco_v2").items()}
    torch.save({"epoch": 200, "arch": "resnet18", "state_dict": content}, tmp_path / "weights.pth.tar")
    np.testing.assert_array_equal(load_backbone(tmp_path / "weights.pth.tar").get_weights()[0].shape[-1], 8)
    (tmp_path / "evil.pth").write_bytes(pickle.dumps(print))
    with pytest.raises(ValueError, match="a PyTorch file of tensors"):
        read_checkpoint(tmp_path / "evil.pth")
