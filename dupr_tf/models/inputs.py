"""Checks the inputs of `DUPR`: the backbone, the settings and the batches."""

from __future__ import annotations

import keras
import tensorflow as tf

from dupr_tf.errors import UserError
from dupr_tf.ops.photometric import PRESETS

NORMALIZATIONS = (keras.layers.Rescaling, keras.layers.Normalization)
FIELDS = ("view_1", "view_2", "boxes_1", "boxes_2", "flipped_1", "flipped_2", "valid")
MAKE_PAIRS = (
    "Make pairs of views from a folder of images: "
    "`with dupr_tf.data.pipeline.view_pairs(paths, config, 0, steps, bad) as pairs: "
    "model.fit(dupr_tf.training.feed.feed(pairs))`. scripts/pretrain.py is a whole example."
)


def check_backbone(backbone):
    """Raises UserError if a backbone normalises its images, because `DUPR` gives it normalised views."""
    first = [layer for layer in backbone.layers if isinstance(layer, NORMALIZATIONS) and _reads_input(layer, backbone)]
    if getattr(backbone, "include_normalization", False) or first:
        raise UserError(
            "backbone",
            f"`{backbone.name}` normalises its images, and DUPR normalises the views before it.",
            "Build it without that layer: include_normalization=False for build_backbone and load_backbone.",
        )


def _reads_input(layer, backbone):
    return any(tensor is layer.input for tensor in backbone.inputs)


def check_settings(terms, short_form, momentum, momentum_schedule, total_steps, photometric, micro_batches, seed):
    """Raises UserError for wrong arguments of `DUPR`, alone, together, or in the current strategy scope."""
    if terms is not None and short_form:
        raise UserError("terms", f"Both terms and {', '.join(short_form)} are given.", "Give one of the two.")
    if momentum_schedule not in ("constant", "cosine") or (momentum_schedule == "cosine" and not total_steps):
        problem = f"Expected 'constant', or 'cosine' with total_steps, received {momentum_schedule!r}."
        raise UserError("momentum_schedule", problem)
    if not 0 <= momentum < 1:
        raise UserError("momentum", f"Expected 0 or more and less than 1, received {momentum!r}.", "Use 0.999.")
    if photometric not in PRESETS:
        raise UserError("photometric", f"Expected {' or '.join(PRESETS)}, received {photometric!r}.", "Use moco_v2.")
    if not 0 <= seed < 2**31:  # larger numbers and signs would reach into the names of the streams
        raise UserError("seed", f"Expected 0 or more and less than 2**31, received {seed!r}.", "Use 0.")
    replicas = tf.distribute.get_strategy().num_replicas_in_sync
    if micro_batches < 1 or micro_batches % replicas:
        problem = f"Expected a multiple of the {replicas} replicas, received {micro_batches}."
        raise UserError("micro_batches", problem, f"Pass {replicas * max(1, micro_batches // replicas)}.")


def check_batch(data, terms, groups, training=False):
    """Checks a batch that Keras passes to a step.

    Args:
        data: a `ViewPair` of this replica's b pairs, or a tuple of it and two None, as `train_on_batch` passes it.
        terms: terms of the model, whose `fields` the batch must have.
        groups: batch-norm groups that the b pairs are divided into.
        training: a group then needs two pairs, because one image is not a batch to normalise by.

    Returns:
        The batch as a dictionary of tensors.

    Raises:
        UserError: the batch is no dictionary of view pairs, lacks a field, or cannot be divided into the groups. Or its
            fields have no fixed shape or different numbers of rows, or its views another dtype or size.
    """
    batch, *others = keras.utils.unpack_x_y_sample_weight(data)
    if not isinstance(batch, dict) or any(other is not None for other in others):
        problem = f"Expected batches that are dictionaries of view pairs, received {_described(data)}."
        raise UserError("data", problem, MAKE_PAIRS)
    wanted = [*FIELDS, *(name for term in terms for name in term.fields)]
    missing = [name for name in wanted if name not in batch]
    if missing:
        problem = f"The batch lacks {', '.join(missing)}; it has {', '.join(batch)}."
        raise UserError("data", problem, MAKE_PAIRS)
    batch = {name: tf.convert_to_tensor(value) for name, value in batch.items()}
    for name in ("view_1", "view_2"):
        _check_view(name, batch[name])
    count = batch["view_1"].shape[0]
    others = [name for name in wanted if not batch[name].shape.rank or batch[name].shape[0] != count]
    if others:
        shapes = ", ".join(f"{name} has the shape {batch[name].shape}" for name in others)
        raise UserError("data", f"view_1 has {count} rows, but {shapes}.", MAKE_PAIRS)
    if training and count < 2 * groups:
        problem = f"A batch of {count} pairs leaves fewer than two for each of {groups} batch-norm groups."
        raise UserError("micro_batches", problem, f"Use batches of {2 * groups} pairs or more, or fewer groups.")
    if count % groups:
        raise UserError(
            "micro_batches",
            f"A batch of {count} pairs cannot be divided into {groups} batch-norm groups.",
            f"Use batches of a multiple of {groups} pairs, or another micro_batches.",
        )
    return batch


def _check_view(name, view):
    if view.dtype != tf.uint8:
        raise UserError(
            name,
            f"Expected uint8 pixels in 0 to 255, received {view.dtype.name}.",
            "Pass views before any normalisation, or tf.cast(tf.round(255 * views), tf.uint8) for floats in 0 to 1.",
        )
    if view.shape.rank != 4 or view.shape[-1] != 3:
        raise UserError(name, f"Expected views of shape (b, height, width, 3), received {view.shape}.", MAKE_PAIRS)
    if any(side is not None and side % 32 for side in view.shape[1:3]):
        raise UserError(name, f"Expected sides that are multiples of 32, received {view.shape}.", "Use 224 px.")
    if None in view.shape:
        raise UserError(
            name,
            f"Expected views of a fixed shape, received {view.shape}: the last batch may not be full.",
            "Use dataset.batch(size, drop_remainder=True).",
        )


def _described(data):
    """Names a value by its type, and by its shape if it has one."""
    kind, shape = "tensor" if tf.is_tensor(data) else type(data).__name__, getattr(data, "shape", None)
    return f"a {kind}" + ("" if shape is None else f" of shape {shape}")
