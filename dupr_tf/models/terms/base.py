"""The base class of the terms of the loss, with all that the training step needs from a term."""

from __future__ import annotations

from typing import Any

import keras
import tensorflow as tf

from dupr_tf.config.terms import LEVELS, TERMS, check_unique_names
from dupr_tf.errors import UserError
from dupr_tf.models.cost import Cost
from dupr_tf.ops import gather


class Term(keras.layers.Layer):
    """A term of the loss (DUPR eq. 2). `DUPR.train_step` calls the methods below in their order.

    Both encoders build a projector of the term. The key encoder's is the moving average of the query encoder's. A
    predictor (attribute `predictor`, None by default) exists on the query side only and is trained.

    Args:
        level: level of the features it reads, "P2" to "P5".
        weight: factor in the loss, above 0.
        name: unique among the terms of a model. It identifies the term in logs, checkpoints and random draws.

    Attributes:
        needs_keys: True if the term compares with keys of the other view. If False, the key encoder is not needed.
        symmetric: True if it also compares queries of view 2 with keys of view 1. Its loss is the mean of both.
        fields: names of further batch fields that `compare` and `share` read, such as labels.
        columns: names in the result of `compare`.
        key_dtypes: nest of dtypes, one for each tensor that `embed` returns.

    Raises:
        UserError: an unknown level, or a weight that is not above 0.
    """

    needs_keys = True
    symmetric = False
    fields: tuple[str, ...] = ()
    columns: tuple[str, ...] = ("loss",)
    key_dtypes: Any = tf.float32
    predictor: keras.layers.Layer | None = None

    def __init__(self, level="P5", weight=1.0, name=None, **kwargs):
        super().__init__(name=name, **kwargs)
        if level not in LEVELS:
            raise UserError("level", f"Expected one of {', '.join(LEVELS)}, received {level!r}.")
        if not weight > 0:
            raise UserError("weight", f"Expected a number above 0, received {weight!r}.", "Leave the term out instead.")
        self.level, self.weight = level, float(weight)
        self.built = True

    def create_memory(self, seed):
        """Creates the term's state between steps, such as a memory bank. Default: none.

        Args:
            seed: integer seed of the initial values.
        """

    def make_projector(self, channels):
        """Builds a new projector for features with `channels` channels. It is called once for each encoder."""
        raise NotImplementedError

    def embed(self, features, boxes, flipped, projector):
        """Embeds the images of a batch.

        Args:
            features: (b, H/s, W/s, channels) of the term's level.
            boxes: (b, 4) float32 `(y1, x1, y2, x2)`, the overlap in pixels of this view.
            flipped: (b,) bool, this view is mirrored left-right.
            projector: this encoder's projector, from `make_projector`, to be called on features. In training it uses
                batch statistics, in evaluation moving ones.

        Returns:
            A nest of tensors whose first axis is the images.
        """
        raise NotImplementedError

    def share(self, batch):
        """Computes the weight of each image in the term's means.

        Args:
            batch: this replica's rows, before they are split into batch-norm groups.

        Returns:
            (b,) float32 that sums to 1 over all replicas, or all 0 if no row of the global batch counts.
        """
        rows = batch["valid"].shape[0]
        return tf.fill([rows], 1.0 / (rows * gather.replica_count()))

    def recall(self):
        """Reads the term's state once, before the groups of a step. Default: None."""
        return None

    def compare(self, queries, keys, memory, fields):
        """Compares the queries of a batch-norm group with their keys.

        Args:
            queries: result of `embed` and the predictor. Gradients flow to it.
            keys: result of `embed` for the other view, or None if `needs_keys` is False.
            memory: result of `recall`.
            fields: {name: (b, ...)} for each name in `self.fields`.

        Returns:
            {column: (b,) float32} for every name in `self.columns`. "loss" is minimised.
        """
        raise NotImplementedError

    def remember(self, keys, valid, seed):
        """Stores the keys of a step, after the optimiser. Default: stores nothing.

        Args:
            keys: keys of view 2 of the global batch, the same on every replica.
            valid: (B,) bool, True if the two views of the image overlap enough.
            seed: (2,) int64, the seed of this term and step.
        """

    def describe(self, keys):
        """Returns {name: () float32} to log about the keys of view 2. Default: empty."""
        return {}

    def cost(self, channels, images, block_keys=None):
        """Estimates what the term adds to a step.

        Args:
            channels: channels of the features it reads.
            images: images in a batch-norm group.
            block_keys: see `info_nce`. Default: chosen for this machine.

        Returns:
            `Cost`; all 0 unless the term overrides this method.
        """
        return Cost()

    def get_config(self):
        return {**super().get_config(), "level": self.level, "weight": self.weight}


def build_terms(terms, dtype=None):
    """Builds the terms of a model.

    Args:
        terms: `Term` objects, or dictionaries of a `kind` (see `dupr_tf.config.terms.TERMS`) and its arguments.
        dtype: policy of the terms that are given as dictionaries. Default: Keras' global policy.

    Raises:
        UserError: no term, an unknown kind or argument, or two terms of one name.
    """
    built = []
    for term in terms:
        if isinstance(term, Term):
            built.append(term)
            continue
        arguments = dict(term)
        kind = arguments.pop("kind", None)
        schema = TERMS.check(kind).facts["schema"]
        unknown = [name for name in arguments if name not in schema.model_fields]
        if unknown:
            allowed = ", ".join(name for name in schema.model_fields if name != "kind")
            raise UserError("terms", f"{kind} has no {', '.join(unknown)}.", f"It has {allowed}.")
        built.append(TERMS.load(kind)(**arguments, dtype=dtype))
    if not built:
        raise UserError("terms", "The list of terms is empty.", "Give at least one.")
    check_unique_names([term.name for term in built])
    return built
