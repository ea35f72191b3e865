"""Checks the inputs of `DUPR`: the backbone, the settings and the batches."""

from __future__ import annotations

import keras
import tensorflow as tf

from dupr_tf.errors import UserError

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


def check_settings(terms, short_form, momentum_schedule, total_steps, micro_batches):
    """Raises UserError if arguments of `DUPR` contradict each other or the replicas of the current strategy scope."""
    if terms is not None and short_form:
        raise UserError("terms", f"Both terms and {', '.join(short_form)} are given.", "Give one of the two.")
    if momentum_schedule not in ("constant", "cosine") or (momentum_schedule == "cosine" and not total_steps):
        problem = f"Expected 'constant', or 'cosine' with total_steps, received {momentum_schedule!r}."
        raise UserError("momentum_schedule", problem)
    replicas = tf.distribute.get_strategy().num_replicas_in_sync
    if micro_batches < 1 or micro_batches % replicas:
        problem = f"Expected a multiple of the {replicas} replicas, received {micro_batches}."
        raise UserError("micro_batches", problem, f"Pass {replicas * max(1, micro_batches // replicas)}.")


def check_batch(data, terms, groups):
    """Checks a batch that Keras passes to a step.

    Args:
        data: a `ViewPair` of this replica's b pairs, or a tuple of it and two None, as `train_on_batch` passes it.
        terms: terms of the model, whose `fields` the batch must have.
        groups: batch-norm groups that the b pairs are divided into.

    Returns:
        The batch as a dictionary of tensors.

    Raises:
        UserError: the batch is no dictionary of view pairs, lacks a field, has no fixed size or views of another
            dtype, or cannot be divided into the groups.
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
