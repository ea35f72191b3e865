"""The one table of weight names: Keras (ours, which are KerasHub's) ↔ torchvision ↔ detectron2.

Nothing else in the package spells out a foreign name. Kernels are the only arrays that change shape on the
way: Keras keeps (height, width, in, out), torch keeps (out, in, height, width). Importing this needs no
    TensorFlow.
"""

from typing import NamedTuple

import numpy as np

LAYOUTS = ("keras", "torchvision", "detectron2")

# Variable of a Keras BatchNormalization -> its name in torch.
BATCH_NORM = {
    "gamma": "weight",
    "beta": "bias",
    "moving_mean": "running_mean",
    "moving_variance": "running_var",
}


class WeightName(NamedTuple):
    """One array's three names. `keras` is `"<layer>/<variable>"`; a kernel is transposed between them."""

    keras: str
    torchvision: str
    detectron2: str
    is_kernel: bool


def weight_names(architecture):
    """Every array of an architecture, in torchvision's order: a kernel and four of its norm, again and again.

    Args:
        architecture: one of the names `dupr_tf.models.resnet.ARCHITECTURES` lists.

    Returns:
        A tuple of `WeightName`; 265 of them for `resnet50`.
    """
    rows = []
    for keras, torch_conv, torch_norm, detectron2 in _convolutions(architecture):
        kernel = WeightName(f"{keras}_conv/kernel", f"{torch_conv}.weight", f"{detectron2}.weight", True)
        rows.append(kernel)
        for ours, theirs in BATCH_NORM.items():
            norm = f"{detectron2}.norm.{theirs}"
            rows.append(WeightName(f"{keras}_bn/{ours}", f"{torch_norm}.{theirs}", norm, False))
    return tuple(rows)


def translation(architecture, source, target):
    """Return `{name in source: name in target}` for two of `keras`, `torchvision`, `detectron2`."""
    for layout in (source, target):
        if layout not in LAYOUTS:
            raise ValueError(f"Expected one of {', '.join(LAYOUTS)}, received {layout!r}. Fix: choose one of them.")
    return {getattr(row, source): getattr(row, target) for row in weight_names(architecture)}


def to_torch_layout(array, is_kernel):
    """(height, width, in, out) → (out, in, height, width) for a kernel; any other array as it is."""
    return np.ascontiguousarray(np.transpose(array, (3, 2, 0, 1)) if is_kernel else array)


def to_keras_layout(array, is_kernel):
    """(out, in, height, width) → (height, width, in, out) for a kernel; any other array as it is."""
    return np.ascontiguousarray(np.transpose(array, (2, 3, 1, 0)) if is_kernel else array)


def torch_arrays(backbone, layout):
    """Return `{name in layout: float32 array in torch's axis order}` of a `ResNetBackbone`."""
    if layout not in ("torchvision", "detectron2"):
        raise ValueError(f"Expected torchvision or detectron2, received {layout!r}. Fix: choose one of them.")
    arrays = {}
    for row in weight_names(_architecture_of(backbone)):
        value = np.asarray(keras_variable(backbone, row.keras), dtype=np.float32)
        arrays[getattr(row, layout)] = to_torch_layout(value, row.is_kernel)
    return arrays


def keras_variable(backbone, name):
    """Return the variable of a `ResNetBackbone` that the table calls `"<layer>/<variable>"`."""
    layer, variable = name.split("/")
    return getattr(backbone.get_layer(layer), variable)


def _architecture_of(backbone):
    architecture = getattr(backbone, "architecture", None)
    if architecture is None:
        raise ValueError(
            f"Expected a ResNetBackbone, received `{backbone.name}` ({type(backbone).__name__}). "
            "Fix: only this package's ResNets have torch names; write other models as keras or saved_model."
        )
    return architecture


def _convolutions(architecture):
    """Yield (Keras prefix, torchvision convolution, torchvision norm, detectron2 prefix), in order."""
    from dupr_tf.models.resnet import block_and_depths  # here, so that reading the table loads no TensorFlow

    block, depths = block_and_depths(architecture)
    yield "conv1", "conv1", "bn1", "stem.conv1"
    for stage, depth in enumerate(depths):
        for index in range(depth):
            keras = f"stack{stage}_block{index}"
            torch = f"layer{stage + 1}.{index}"
            detectron2 = f"res{stage + 2}.{index}"
            for i in range(1, 3 if block == "basic" else 4):
                yield f"{keras}_{i}", f"{torch}.conv{i}", f"{torch}.bn{i}", f"{detectron2}.conv{i}"
            if index == 0 and (stage > 0 or block == "bottleneck"):
                yield f"{keras}_0", f"{torch}.downsample.0", f"{torch}.downsample.1", f"{detectron2}.shortcut"
