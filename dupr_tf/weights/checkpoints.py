"""Weight files of other tools, read as data: safetensors, NumPy's npz, and PyTorch's own where torch is installed."""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np

from dupr_tf.weights.torch_io import read_safetensors

TORCH_ENDINGS = (".pth", ".pt", ".tar", ".ckpt")
ENDINGS = (".safetensors", ".npz", *TORCH_ENDINGS)
# Where training code keeps the weights among epoch, optimiser and arguments.
_INNER = ("state_dict", "model_state_dict", "model", "network", "net")


def read_checkpoint(path):
    """Return `{name: array}` of a weight file.

    Nothing in the file is run: npz files with objects in them are refused, and PyTorch's files go through
    `torch.load(weights_only=True)`. detectron2's pickles cannot be read safely, so they are not read.

    Args:
        path: a `.safetensors`, `.npz`, `.pth`, `.pt`, `.tar` or `.ckpt` file. PyTorch's may be nested, such as
            `{"epoch": 200, "state_dict": {…}}`.

    Raises:
        ValueError: in one line, for another kind of file, a damaged one, or one with code in it.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"Expected a weight file, received {path}: no such file. Fix: the path.")
    if path.suffix == ".safetensors":
        return read_safetensors(path)[0]
    if path.suffix == ".npz":
        return _read_npz(path)
    if path.suffix in TORCH_ENDINGS:
        return _read_torch(path)
    raise ValueError(
        f"Expected one of {', '.join(ENDINGS)}, received {path}. "
        "Fix: convert it first; pickles (.pkl) can run code and are not read here."
    )


def _read_npz(path):
    try:
        with np.load(path, allow_pickle=False) as file:
            return {name: file[name] for name in file.files}
    except (ValueError, OSError, EOFError, KeyError, zipfile.BadZipFile, AttributeError) as error:
        raise ValueError(
            f"Expected an npz file of plain arrays, received {path} ({_short(error)}). "
            "Fix: copy it again; object arrays are not read."
        ) from None


def _read_torch(path):
    try:
        import torch
    except ImportError:
        raise ValueError(
            f"Expected PyTorch to be installed for reading {path}, received none. "
            "Fix: pip install torch, or save the state dict as .safetensors or .npz where PyTorch is."
        ) from None
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch lets through whatever unpickling, zipfile and its own reader raise
        raise ValueError(
            f"Expected a PyTorch file of tensors, received {path} ({_short(error)}). "
            "Fix: copy it again; files that hold more than tensors and plain values are refused."
        ) from None
    for name in _INNER:
        if isinstance(content, dict) and isinstance(content.get(name), dict):
            content = content[name]
            break
    if not isinstance(content, dict):
        raise ValueError(f"Expected a dictionary of tensors, received {path} with a {type(content).__name__}.")
    # `float`: NumPy has no bfloat16.
    return {name: value.float().numpy(force=True) for name, value in content.items() if isinstance(value, torch.Tensor)}


def _short(error):
    return " ".join(str(error).split())[:120]
