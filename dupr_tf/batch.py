"""ViewPair: what the data side hands to the model side, one batch of pairs of views.

Boxes are `(y1, x1, y2, x2)` in pixels of the view, after its flip.
"""

from __future__ import annotations

from typing import TypedDict

import tensorflow as tf

from dupr_tf.errors import UserError

SEE = "See dupr_tf.batch for the fields of a batch."


class ViewPair(TypedDict):
    """One batch; B pairs of square views of side `size`."""

    view_1: tf.Tensor  # (B, size, size, 3) uint8 RGB, geometry applied, colours untouched
    view_2: tf.Tensor  # (B, size, size, 3) uint8
    boxes_1: tf.Tensor  # (B, 4) float32, the overlap in view_1
    boxes_2: tf.Tensor  # (B, 4) float32, the overlap in view_2
    flipped_1: tf.Tensor  # (B,) bool, view_1 is mirrored left-right
    flipped_2: tf.Tensor  # (B,) bool
    valid: tf.Tensor  # (B,) bool, the views overlap enough for a patch loss
    index: tf.Tensor  # (B,) int64, position of the image in the source


def view_pair_spec(batch_size: int, size: int) -> dict[str, tf.TensorSpec]:
    """The element spec of a pre-training dataset, for `tf.data` checks and for building a model.

    Args:
        batch_size: pairs in a batch.
        size: side of a view, px.
    """
    shapes = {
        "view_1": ((size, size, 3), tf.uint8),
        "view_2": ((size, size, 3), tf.uint8),
        "boxes_1": ((4,), tf.float32),
        "boxes_2": ((4,), tf.float32),
        "flipped_1": ((), tf.bool),
        "flipped_2": ((), tf.bool),
        "valid": ((), tf.bool),
        "index": ((), tf.int64),
    }
    return {name: tf.TensorSpec((batch_size, *shape), dtype) for name, (shape, dtype) in shapes.items()}


def check_view_pairs(dataset: tf.data.Dataset, batch_size: int, size: int) -> tf.data.Dataset:
    """Returns a dataset of ViewPair batches as it is.

    Raises:
        UserError: its elements are not what `view_pair_spec` says; every field that differs is named.
    """
    expected, received = view_pair_spec(batch_size, size), dataset.element_spec
    if not isinstance(received, dict):
        raise UserError("dataset", f"Expected a dict of {', '.join(expected)}, received {received}.", SEE)
    wrong = [f"{name} {received.get(name)}" for name in expected if not _fits(received.get(name), expected[name])] + [
        f"{name} (unknown)" for name in received if name not in expected
    ]
    if wrong:
        raise UserError("dataset", f"Expected ViewPair batches, received {'; '.join(wrong)}.", SEE)
    return dataset


def _fits(received, expected) -> bool:
    return isinstance(received, tf.TensorSpec) and (received.shape, received.dtype) == (expected.shape, expected.dtype)
