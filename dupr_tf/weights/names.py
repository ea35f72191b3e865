"""Defines the table of weight names: Keras (ours) ↔ torchvision (same as timm's) ↔ detectron2 ↔ KerasHub.

No other module in the package contains a foreign name. Only kernels differ in layout. Keras and KerasHub use
`(height, width, in, out)`; torch uses `(out, in, height, width)`. Importing this needs no TensorFlow.
"""

from typing import NamedTuple

import numpy as np

from dupr_tf.errors import RunFailed, UserError

LAYOUTS = ("keras", "torchvision", "detectron2", "kerashub")
TORCH_ORDER = ("torchvision", "detectron2")  # layouts whose kernels are (out, in, height, width)

# Variable of a Keras BatchNormalization -> its name in torch.
BATCH_NORM = {
    "gamma": "weight",
    "beta": "bias",
    "moving_mean": "running_mean",
    "moving_variance": "running_var",
}


class WeightName(NamedTuple):
    """The four names of an array. `keras` and `kerashub` are `"<layer>/<variable>"`; torch's kernels are transposed."""

    keras: str
    torchvision: str
    detectron2: str
    is_kernel: bool
    kerashub: str


def weight_names(architecture):
    """Return every array of an architecture in torchvision's order: kernel, then four of its norm, repeated.

    Args:
        architecture: a name in `dupr_tf.models.resnet.ARCHITECTURES`.

    Returns:
        A tuple of `WeightName`; 265 of them for `resnet50`.
    """
    rows = []
    for keras, torch_conv, torch_norm, detectron2 in _convolutions(architecture):
        kernel = f"{keras}_conv/kernel"  # KerasHub's layers have the same names as ours
        rows.append(WeightName(kernel, f"{torch_conv}.weight", f"{detectron2}.weight", True, kernel))
        for ours, theirs in BATCH_NORM.items():
            norm = f"{keras}_bn/{ours}"
            rows.append(WeightName(norm, f"{torch_norm}.{theirs}", f"{detectron2}.norm.{theirs}", False, norm))
    return tuple(rows)


def to_torch_layout(array, is_kernel):
    """Map a kernel from `(height, width, in, out)` to `(out, in, height, width)`; other arrays do not change."""
    return np.ascontiguousarray(np.transpose(array, (3, 2, 0, 1)) if is_kernel else array)


def to_keras_layout(array, is_kernel):
    """Map a kernel from `(out, in, height, width)` to `(height, width, in, out)`; other arrays do not change."""
    return np.ascontiguousarray(np.transpose(array, (2, 3, 1, 0)) if is_kernel else array)


def named_arrays(model, layout):
    """Return `{name in layout: float32 array in the layout's axis order}` of a ResNet.

    Args:
        model: a `ResNetBackbone`.
        layout: one of `LAYOUTS`.

    Raises:
        UserError: for a model that is not a `ResNetBackbone`.
        RunFailed: names the tensors that only the table or only the model has.
    """
    _check_layout(layout)
    arrays = {}
    for row, variable in _mapped(model, architecture_of(model), "keras"):
        value = np.asarray(variable, dtype=np.float32)
        arrays[getattr(row, layout)] = to_torch_layout(value, row.is_kernel and layout in TORCH_ORDER)
    return arrays


def torch_arrays(backbone, layout):
    """Return `{name in layout: float32 array in torch's axis order}` of a `ResNetBackbone`."""
    if layout not in TORCH_ORDER:
        raise UserError("layout", f"Expected torchvision or detectron2, received {layout!r}.")
    return named_arrays(backbone, layout)


def assign_arrays(model, architecture, arrays, layout, target="keras"):
    """Set the weights of a model from `arrays`; every variable must get one, and no array may be left over.

    Args:
        model: a `ResNetBackbone`, or with `target="kerashub"` KerasHub's.
        architecture: its row in `ARCHITECTURES`.
        arrays: `{name in layout: array}`.
        layout: layout of the names and axis order of `arrays`.
        target: layout of the model's layer names, `keras` or `kerashub`.

    Raises:
        RunFailed: names the tensors that are missing or left over.
    """
    _check_layout(layout)
    pairs = _mapped(model, architecture, target)
    names = [getattr(row, layout) for row, _ in pairs]
    _refuse_gaps(model, [name for name in names if name not in arrays], sorted(set(arrays) - set(names)))
    for row, variable in pairs:
        value = np.asarray(arrays[getattr(row, layout)], dtype=np.float32)
        variable.assign(to_keras_layout(value, row.is_kernel and layout in TORCH_ORDER))


def keras_variable(backbone, name):
    """Return the variable of a `ResNetBackbone` that the table calls `"<layer>/<variable>"`."""
    layer, variable = name.split("/")
    return getattr(backbone.get_layer(layer), variable)


def _mapped(model, architecture, layout):
    """Return `[(row, variable)]` of a Keras model, which must have exactly the rows of the table."""
    rows, layers = weight_names(architecture), {layer.name for layer in model.layers}
    missing = [getattr(row, layout) for row in rows if getattr(row, layout).split("/")[0] not in layers]
    pairs = [] if missing else [(row, keras_variable(model, getattr(row, layout))) for row in rows]
    ids = {id(variable) for _, variable in pairs}
    unmapped = [] if missing else [variable.path for variable in model.variables if id(variable) not in ids]
    _refuse_gaps(model, missing, unmapped)
    return pairs


def _refuse_gaps(model, missing, unmapped):
    if missing or unmapped:
        raise RunFailed(
            f"The tensors of `{model.name}` are not those of the table of names: {len(missing)} are missing "
            f"({', '.join(missing[:3]) or 'none'}) and {len(unmapped)} have no name "
            f"({', '.join(unmapped[:3]) or 'none'}). Use an unchanged ResNetBackbone, without further layers."
        )


def _check_layout(layout):
    if layout not in LAYOUTS:
        raise UserError("layout", f"Expected one of {', '.join(LAYOUTS)}, received {layout!r}.")


def architecture_of(backbone):
    """Return the architecture of a `ResNetBackbone`; reject any other model."""
    architecture = getattr(backbone, "architecture", None)
    if architecture is None:
        raise UserError(
            "backbone",
            f"Expected a ResNetBackbone, received `{backbone.name}` ({type(backbone).__name__}).",
            "Only this package's ResNets have torch names; write other models as keras or saved_model.",
        )
    return architecture


def _convolutions(architecture):
    """Yield (Keras prefix, torchvision convolution, torchvision norm, detectron2 prefix), in order."""
    from dupr_tf.models.resnet import block_and_depths  # imported here, so that reading the table loads no TensorFlow

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
