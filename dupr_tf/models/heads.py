"""Projection heads: they map features to L2-normalised embeddings (docs/method.md, Heads). None has batch norm."""

from __future__ import annotations

import keras
import tensorflow as tf

from dupr_tf.errors import UserError


@keras.saving.register_keras_serializable("dupr_tf")
class ProjectionHead(keras.layers.Layer):
    """Applies Dense(hidden) -> ReLU -> Dense(dim) -> L2 norm over the last axis.

    `kind="linear"` drops the hidden layer. On (B, C) input this is the image head (MoCo v2). On (B, S, S, C) it is the
    patch head, because a dense layer on the last axis is a 1x1 convolution (DUPR eqs. 3 and 4).

    Args:
        dim: width of the embedding.
        kind: "mlp" or "linear" (MoCo v1). The hidden layer is as wide as the input.

    Raises:
        UserError: an unknown kind.
    """

    def __init__(self, dim, kind="mlp", **kwargs):
        super().__init__(**kwargs)
        if kind not in ("mlp", "linear"):
            raise UserError("head", f"Expected 'mlp' or 'linear', received {kind!r}.", "The paper uses 'mlp'.")
        self.dim, self.kind = int(dim), kind

    def build(self, input_shape):
        width = input_shape[-1]
        self.hidden = None
        if self.kind == "mlp":
            self.hidden = _dense(width, width, "relu", "hidden", self.dtype_policy)
            self.hidden.build(input_shape)
        self.output_layer = _dense(self.dim, width, None, "output", self.dtype_policy)
        self.output_layer.build(input_shape)
        self.built = True

    def call(self, features):
        """Maps (..., C) features to (..., dim) float32 embeddings of unit length."""
        x = features if self.hidden is None else self.hidden(features)
        return tf.math.l2_normalize(tf.cast(self.output_layer(x), tf.float32), axis=-1)

    def compute_output_shape(self, input_shape):
        return (*input_shape[:-1], self.dim)

    def get_config(self):
        return {**super().get_config(), "dim": self.dim, "kind": self.kind}


def _dense(units, fan_in, activation, name, dtype):
    """Creates a dense layer initialised as in PyTorch: weights and biases uniform within 1 / sqrt(fan_in)."""
    limit = fan_in**-0.5
    return keras.layers.Dense(
        units,
        activation=activation,
        kernel_initializer=keras.initializers.RandomUniform(-limit, limit),
        bias_initializer=keras.initializers.RandomUniform(-limit, limit),
        name=name,
        dtype=dtype,
    )
