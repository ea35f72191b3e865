"""Copies backbones with all their settings, and pairs a copy's layers and variables with the original's.

The config of a backbone may not describe it completely. Attributes set on it, frozen layers and the outputs of its
levels are therefore copied here.
"""

from __future__ import annotations

import keras

from dupr_tf.errors import UserError
from dupr_tf.models.resnet import pyramid_tensors
from dupr_tf.text import one_line

HALF = ("float16", "bfloat16")


def clone_backbone(backbone, dtype=None):
    """Copies a backbone: its layers with their settings, its weights and its levels.

    Args:
        backbone: a functional Keras model with `pyramid_outputs` or `pyramid_level_inputs`.
        dtype: policy of all layers of the copy. Default: that of each layer.

    Returns:
        A plain functional model with `pyramid_outputs` and its own variables. Frozen layers stay frozen.

    Raises:
        UserError: a layer whose `get_config` does not describe it.
    """

    def copy(layer):
        return type(layer).from_config(layer.get_config() | ({} if dtype is None else {"dtype": dtype}))

    try:
        twin = _split(keras.models.clone_model(_merged(backbone), clone_function=copy, recursive=True))
        for original, variable in variable_pairs(backbone, twin):
            variable.assign(original)
    except (NotImplementedError, TypeError, ValueError) as error:
        raise UserError(
            "backbone",
            f"`{backbone.name}` cannot be copied for the key encoder ({one_line(error, 200)}).",
            "Give each custom layer class a get_config with all arguments of its __init__.",
        ) from error
    return twin


def in_full_precision(backbone):
    """Returns the backbone, or a copy in float32 if any of its layers computes in half precision."""
    if not any(layer.compute_dtype in HALF for layer in backbone._flatten_layers()):
        return backbone
    if is_plain(backbone):
        return clone_backbone(backbone, "float32")
    twin = type(backbone).from_config({**backbone.get_config(), "dtype": "float32"})
    twin.set_weights(backbone.get_weights())
    return twin


def layer_pairs(original, copy):
    """Pairs the layers of a model with those of its copy, outer layers first.

    Layers are paired by their names. Layers inside a layer get automatic names, so they are paired by their order.

    Args:
        original: a layer or model.
        copy: another one with the same layers. It may lack layers that are named.

    Returns:
        [(layer of `original`, layer of `copy`)].
    """
    ours, theirs = (part._flatten_layers(include_self=False, recursive=False) for part in (original, copy))
    by_name = {layer.name: layer for layer in theirs}
    if len(by_name) == len(theirs) and by_name.keys() <= {layer.name for layer in ours}:
        inner = [(layer, by_name[layer.name]) for layer in ours if layer.name in by_name]
    else:
        inner = list(zip(ours, theirs, strict=True))
    return [(original, copy), *(pair for one, other in inner for pair in layer_pairs(one, other))]


def variable_pairs(original, copy):
    """Pairs variables as `layer_pairs` pairs layers. Returns [(variable of `original`, variable of `copy`)]."""
    layers = layer_pairs(original, copy)
    return [pair for one, other in layers for pair in zip(_own_variables(one), _own_variables(other), strict=True)]


def freeze_like(original, copy):
    """Freezes those layers of a copy that are frozen in the original. No variable of the copy is trained.

    A batch norm uses batch statistics only while its layer is trainable, so `copy.trainable = False` would be wrong.
    """
    for one, other in layer_pairs(original, copy):
        other.trainable = one.trainable
    for variable in copy.variables:
        variable.trainable = False


def serialize_backbone(backbone):
    """Returns the config of a backbone for `restore_backbone`, with its levels and the names of frozen layers."""
    model = _merged(backbone) if is_plain(backbone) else backbone
    frozen = [layer.name for layer in backbone.layers if not layer.trainable]
    return {"model": keras.saving.serialize_keras_object(model), "frozen": frozen}


def restore_backbone(config):
    """Creates the backbone that `serialize_backbone` described.

    Raises:
        UserError: the config of an earlier version, in whose files the variables were ordered differently.
    """
    if "frozen" not in config:
        raise UserError(
            "file",
            "An earlier version of dupr_tf saved this DUPR or Encoder, and its weights no longer fit.",
            "Load the backbone.keras of its run, or load the file with that version and save `model.backbone`.",
        )
    model = keras.saving.deserialize_keras_object(config["model"])
    backbone = _split(model) if is_plain(model) else model
    for name in config["frozen"]:
        backbone.get_layer(name).trainable = False
    return backbone


def is_plain(backbone):
    """Returns True if a model is no subclass. Its config and its file then lack the attributes that were set on it."""
    return type(backbone) in (keras.Model, keras.models.Sequential) or type(backbone).__name__ == "Functional"


def _merged(backbone):
    """Returns a model from the backbone's input to its output and its levels, as one nest."""
    inputs = backbone.input if len(backbone.inputs) == 1 else backbone.inputs
    outputs = {"output": backbone.output, "levels": pyramid_tensors(backbone)}
    return keras.Model(inputs, outputs, name=backbone.name)


def _split(merged):
    """Returns the backbone of a model that `_merged` returned."""
    inputs = merged.input if len(merged.inputs) == 1 else merged.inputs
    backbone = keras.Model(inputs, merged.output["output"], name=merged.name)
    backbone.pyramid_outputs = dict(merged.output["levels"])
    return backbone


def _own_variables(layer):
    """Lists the variables of a layer without those of its sublayers. Freezing does not change the order."""
    seeds = [generator.state for generator in layer._seed_generators]
    return [*layer._trainable_variables, *layer._non_trainable_variables, *seeds]
