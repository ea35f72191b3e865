"""Reads weight files of other tools as data: safetensors, NumPy's npz, and PyTorch's files if torch is installed."""

from __future__ import annotations

import argparse
import re
import zipfile

import numpy as np

from dupr_tf.errors import UserError
from dupr_tf.text import one_line
from dupr_tf.weights.archives import check_archive
from dupr_tf.weights.paths import checkpoint_file
from dupr_tf.weights.torch_io import read_safetensors

# Keys under which training code saves the weights, beside epoch, optimiser and arguments.
_INNER = ("state_dict", "model_state_dict", "model", "network", "net", "online_network_state_dict")
_VISSL = ("classy_state_dict", "base_model", "model", "trunk")  # where VISSL keeps the backbone
# `nn.Sequential(*resnet.children())` numbers what torchvision names; 2, 3 and 8 (ReLU, pooling) hold no weights.
_CHILDREN = {"0": "conv1", "1": "bn1", "4": "layer1", "5": "layer2", "6": "layer3", "7": "layer4"}


def read_checkpoint(path):
    """Return `{name: array}` of a weight file.

    Nothing in the file is executed. npz files with objects in them are rejected, and PyTorch's files are read by
    `torch.load(weights_only=True)`. detectron2's pickles cannot be read safely, so they are not supported.

    Args:
        path: a `.safetensors`, `.npz`, `.pth`, `.pt`, `.tar`, `.ckpt` or `.torch` file. PyTorch's may be nested, such
            as `{"epoch": 200, "state_dict": {…}}`.

    Returns:
        `{name: array}`, with torchvision's names where the file numbers a ResNet's children (`4.0.conv1.weight`).

    Raises:
        UserError: for an unsupported kind of file, a damaged one, or one that contains code.
    """
    path = checkpoint_file(path)
    if path.suffix == ".safetensors":
        return name_children(read_safetensors(path)[0])
    if path.suffix == ".npz":
        return name_children(_read_npz(path))
    return name_children(_read_torch(path))


def name_children(state):
    """Give a ResNet saved as `nn.Sequential(*resnet.children())` torchvision's names; other names do not change."""
    starts = {key.removesuffix("4.0.conv1.weight") for key in state if key.endswith("4.0.conv1.weight")}
    starts = {start for start in starts if {f"{start}0.weight", f"{start}1.running_mean"} <= state.keys()}
    pattern = re.compile(f"({'|'.join(map(re.escape, starts))})([0-9])[.](.+)")
    named = {}
    for key, value in state.items():
        match = pattern.fullmatch(key) if starts else None
        child = _CHILDREN.get(match[2]) if match else None
        named[f"{match[1]}{child}.{match[3]}" if child else key] = value
    return named


def _read_npz(path):
    check_archive(path)
    try:
        with np.load(path, allow_pickle=False) as file:
            return {name: file[name] for name in file.files}
    except (ValueError, OSError, EOFError, KeyError, zipfile.BadZipFile, AttributeError) as error:
        raise UserError(
            None,
            f"{path} is not an npz file of plain arrays ({one_line(error, 120)}).",
            "Copy it again; arrays of objects are not read.",
        ) from None


def _read_torch(path):
    try:
        import torch
    except ImportError:
        raise UserError(
            None,
            f"Reading {path} needs PyTorch, which is not installed.",
            "Run: pip install torch. Or save the state dict as .safetensors or .npz where PyTorch is installed.",
        ) from None
    try:
        # PyContrast saves its command line too, as a Namespace, which only holds values.
        with torch.serialization.safe_globals([argparse.Namespace]):
            return _tensors(torch.load(path, map_location="cpu", weights_only=True), torch)
    except Exception as error:  # torch passes on any error of unpickling, zipfile and its own reader
        raise UserError(
            None,
            f"{path} is not a PyTorch file of tensors ({one_line(error, 120)}).",
            "Copy it again; files that hold more than tensors and plain values are not read.",
        ) from None


def _inner(content):
    """Return the dictionary in the content of a file that holds the weights."""
    state = content
    for name in _VISSL:
        state = state.get(name) if isinstance(state, dict) else None
    if isinstance(state, dict):
        return state
    return next((content[name] for name in _INNER if isinstance(content.get(name), dict)), content)


def _tensors(content, torch):
    """Return `{name: array}` of the result of `torch.load`, from its `state_dict` or the like."""
    if not isinstance(content, dict):
        raise TypeError(f"it holds a {type(content).__name__}")
    content = _inner(content)
    tensors = {name: value for name, value in content.items() if isinstance(value, torch.Tensor)}
    return {str(name): value.float().numpy(force=True) for name, value in tensors.items()}  # NumPy has no bfloat16
