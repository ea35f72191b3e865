"""Converts ResNets to and from torchvision's state dict, and its safetensors files.

The arrays are float32 in torch's axis order, so `torchvision.models.resnet50().load_state_dict(state, strict=False)`
takes them; only `fc` is then missing. No pickle is read or written here.
"""

import logging
import re
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from dupr_tf.errors import UserError
from dupr_tf.models.resnet import ARCHITECTURES, STAGE_WIDTHS, build_backbone, stage_channels
from dupr_tf.text import listed
from dupr_tf.weights.names import keras_variable, to_keras_layout, torch_arrays, weight_names

logger = logging.getLogger(__name__)

# Names of the backbone itself; all other entries of a checkpoint are heads and queues.
_BACKBONE = re.compile(r"(conv1|bn1|layer\d+)\.")
_COUNTER = ".num_batches_tracked"
# Names of averaged encoders in checkpoints: MoCo's keys, BYOL's target, a teacher.
_AVERAGED = re.compile(r"(^|[._])(encoder_k|k|key|target|target_net|teacher|momentum|ema)([._]|$)")
_CAPITAL = re.compile(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])")  # where a word of modelTeacher begins


def to_torchvision(model):
    """Return the weights of a `ResNetBackbone` as `{torchvision's name: float32 array}`, without `fc`.

    A backbone built with `include_normalization=True` normalises before these weights. Other tools must normalise the
    images themselves.
    """
    return torch_arrays(model, "torchvision")


def from_torchvision(state, prefix=None, include_normalization=False, name=None, allow_nonfinite=False):
    """Build a `ResNetBackbone` from a torchvision state dict; its arrays determine depth and width.

    Args:
        state: `{name: array}`, torchvision's names; any type that `numpy.asarray` accepts.
        prefix: only keys with this prefix are used, for example `"module.encoder_q."` for MoCo's checkpoints.
            Default: detected, see `find_prefix`.
        include_normalization: as in `ResNetBackbone`.
        name: name of the model. Default: the architecture's.
        allow_nonfinite: accept NaN and infinity too, which are an error otherwise.

    Returns:
        The backbone; all its arrays are from `state`. Heads (`fc` and the like) and keys outside `prefix` are dropped.
            The log gives the number of matched arrays and lists dropped ones. `num_batches_tracked` is ignored.

    Raises:
        UserError: names the keys that are missing, unknown, of another shape, or not finite.
    """
    prefix = find_prefix(state) if prefix is None else _whole_prefix(state, prefix)
    state, dropped = _select(state, prefix)
    architecture, width = infer_architecture(state)
    _check_keys(state, architecture)
    backbone = build_backbone(architecture, width=width, include_normalization=include_normalization, name=name)
    for row in weight_names(architecture):
        variable = keras_variable(backbone, row.keras)
        value = _checked(state[row.torchvision], row, tuple(variable.shape), allow_nonfinite)
        variable.assign(value)
    logger.info(
        "Matched all %d arrays of a %s, named %s", len(state), architecture, f"{prefix}…" if prefix else "plainly"
    )
    if dropped:
        logger.info("Dropped %d keys that are not the backbone's: %s", len(dropped), ", ".join(dropped))
    return backbone


def find_prefix(state):
    """Return the prefix of a ResNet's names in a state dict: "", "backbone.", "module.encoder_q.", …

    An encoder that is an average of another (MoCo's keys, BYOL's target) is skipped. This suffices for checkpoints of
    MoCo, PyContrast, SwAV, DenseCL, BYOL and OpenSelfSup, torchvision and timm.

    Raises:
        UserError: if there is no ResNet, or several with different weights.
    """
    ending = "layer1.0.conv1.weight"
    prefixes = [key.removesuffix(ending) for key in state if key.endswith(ending)]
    prefixes = [prefix for prefix in prefixes if not prefix or prefix.endswith(".")]
    spoken = {prefix: _CAPITAL.sub("_", prefix).lower() for prefix in prefixes}
    prefixes = [prefix for prefix in prefixes if not _AVERAGED.search(spoken[prefix])] or prefixes
    if not prefixes:
        _require(state, ["conv1.weight", ending])
    first, *others = prefixes
    own = _select(state, first)[0]
    for other in others:  # the same module may be registered twice
        its = _select(state, other)[0]
        if own.keys() != its.keys() or not all(_same(own[name], its[name]) for name in own):
            names = listed([repr(prefix) for prefix in prefixes])
            raise UserError(
                "prefix", f"There are several ResNets with different weights: {names}.", "Pass one of them."
            )
    return first


def _same(a, b):
    """Return whether two arrays have the same bits; NaN equals NaN."""
    a, b = np.asarray(a), np.asarray(b)
    return (a.dtype, a.shape) == (b.dtype, b.shape) and a.tobytes() == b.tobytes()


def dropped_keys(state, prefix=None):
    """Return the keys that `from_torchvision` drops: heads, and those outside `prefix`."""
    return _select(state, find_prefix(state) if prefix is None else _whole_prefix(state, prefix))[1]


def infer_architecture(state):
    """Return `(architecture, width)` of a torchvision state dict, from its names and its arrays' shapes."""
    _require(state, ["conv1.weight", "layer1.0.conv1.weight"])
    depths = tuple(_depth(state, stage) for stage in (1, 2, 3, 4))
    block = "bottleneck" if "layer1.0.conv3.weight" in state else "basic"
    for architecture, layout in ARCHITECTURES.items():
        if layout == (block, depths):
            return architecture, _width(state)
    raise UserError(
        None,
        f"Expected one of {', '.join(ARCHITECTURES)}, received a {block} network of {depths} blocks.",
        "Use a torchvision ResNet; a missing key makes a stage look shorter.",
    )


def write_safetensors(state, path, metadata=None):
    """Write `{name: array}` as a safetensors file that both torch's and NumPy's readers open."""
    arrays = {name: np.ascontiguousarray(value) for name, value in state.items()}
    content = save(arrays, metadata={"format": "pt", **(metadata or {})})
    Path(path).write_bytes(content)  # `save_file` would hide it from other users


def read_safetensors(path):
    """Return `({name: array}, {metadata})` of a safetensors file.

    Raises:
        UserError: if the file is truncated or is no safetensors file.
    """
    try:
        with safe_open(str(path), framework="numpy") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, dict(file.metadata() or {})  # noqa: SIM118
    except (SafetensorError, TypeError, AttributeError) as error:  # the last for a type that NumPy lacks
        raise UserError(
            None, f"{path} is not a safetensors file of float arrays ({error}).", "Copy it again."
        ) from None


def _whole_prefix(state, prefix):
    """Return a given prefix with its final dot. Raise UserError if no weights of a ResNet have it."""
    whole = prefix if not prefix or prefix.endswith(".") else f"{prefix}."
    if not _select(state, whole)[0]:
        stems = [key for key in state if key.endswith("conv1.weight") and "layer" not in key]
        known = sorted({key.removesuffix("conv1.weight") for key in stems} - {""})
        fix = f"Choose from {', '.join(map(repr, known))}." if known else "Leave it out."
        raise UserError("--prefix", f"No weights of a ResNet begin with {prefix}.", fix)
    return whole


def _select(state, prefix):
    """Split a state dict into the backbone's entries, without their prefix, and the unused names."""
    kept, dropped = {}, []
    for key, value in state.items():
        name = key.removeprefix(prefix)
        if not key.startswith(prefix) or not _BACKBONE.match(name):
            dropped.append(key)
        elif not name.endswith(_COUNTER):
            kept[name] = value
    return kept, dropped


def _check_keys(state, architecture):
    names = [row.torchvision for row in weight_names(architecture)]
    _require(state, names)
    unknown = sorted(set(state) - set(names))
    if unknown:
        raise UserError(
            None,
            f"Expected only the weights of a {architecture}, received also {listed(unknown)}.",
            "Use a plain torchvision ResNet (no ResNeXt, no extra norms), or remove these keys.",
        )


def _require(state, names):
    missing = [name for name in names if name not in state]
    if missing:
        raise UserError(
            None,
            f"The state dict lacks {listed(missing)} of torchvision's ResNet "
            f"(it has {listed(sorted(state)) or 'nothing'}).",
            "Use the checkpoint of a ResNet.",
        )


def _checked(value, row, shape, allow_nonfinite):
    """Return the array of one row of the table, float32 and in Keras' order."""
    name, value = row.torchvision, np.asarray(value)
    if value.dtype.kind in "cmMOSU" or value.dtype.type is np.void:  # complex numbers, times, objects, text, raw bytes
        raise UserError(
            None, f"Expected real numbers in {name}, received {value.dtype}.", "Use a checkpoint of weights."
        )
    if value.ndim == (4 if row.is_kernel else 1):
        with np.errstate(over="ignore"):  # too large values become infinite and are rejected below
            value = to_keras_layout(value.astype(np.float32), row.is_kernel)
    if value.shape != shape:
        raise UserError(
            None,
            f"Expected {name} to be {shape} in Keras' order, received {value.shape}.",
            "Use a plain torchvision ResNet, no wide or grouped variant; a width scales all stages.",
        )
    if not (allow_nonfinite or np.isfinite(value).all()):
        raise UserError(
            None,
            f"{name} contains NaN or infinity.",
            "Use a sound checkpoint, or import it with --allow-nonfinite.",
        )
    return value


def _depth(state, stage):
    """Return the number of blocks in `layer<stage>`: one more than its highest block number."""
    blocks = [int(key.split(".")[1]) for key in state if re.match(rf"layer{stage}\.\d+\.", key)]
    return max(blocks, default=-1) + 1


def _width(state):
    """Return the width that gives the four stages their channels: 1 for the usual ones, else from the widest stage."""
    keys = [f"layer{stage}.0.conv1.weight" for stage in (1, 2, 3, 4)]
    _require(state, keys)
    channels = tuple((np.shape(state[key]) or (0,))[0] for key in keys)
    lowest = max((count - 4) / base if count > 8 else 0.0 for count, base in zip(channels, STAGE_WIDTHS, strict=True))
    highest = min((count + 4) / base for count, base in zip(channels, STAGE_WIDTHS, strict=True))
    for width in (channels[-1] / STAGE_WIDTHS[-1], (lowest + highest) / 2):
        if width > 0 and stage_channels(width) == channels:
            return width
    raise UserError(
        None,
        f"Expected channels of {STAGE_WIDTHS} times one width, received {channels} in layer1..layer4.",
        "Use a network whose stages double in width.",
    )
