"""Necks: they turn a backbone into the maps that proposals and heads read."""

from __future__ import annotations

import keras

from dupr_tf.errors import UserError
from dupr_tf.models.layers import FusedBatchNormalization
from dupr_tf.models.resnet import LEVELS, pyramid

STRIDES = (4, 8, 16, 32, 64)  # strides of P2 to P6


@keras.saving.register_keras_serializable("dupr_tf")
class PyramidNeck(keras.layers.Layer):
    """Feature Pyramid Network (Lin et al., 2017) of R-CNNs, with inputs P2 to P5 and outputs P2 to P6.

    It has 1×1 lateral convolutions, nearest-neighbour upsampling, sum, and 3×3 output convolutions. P6 is every second
    cell of P5 (detectron2's LastLevelMaxPool). Kernels start as Caffe2's Xavier fill.

    Args:
        channels: channels of every output level.
        norm: batch normalisation after the lateral and the output convolutions, which then have no bias.
    """

    def __init__(self, channels, norm=True, **kwargs):
        super().__init__(**kwargs)
        self.channels, self.norm = channels, norm
        self.lateral = [self._conv(1, f"lateral_{level}") for level in LEVELS]
        self.output_convs = [self._conv(3, f"output_{level}") for level in LEVELS]

    def _conv(self, kernel, name):
        conv = keras.layers.Conv2D(
            self.channels,
            kernel,
            padding="same",
            use_bias=not self.norm,
            kernel_initializer="lecun_uniform",
            name=f"{name}_conv",
        )
        norms = [FusedBatchNormalization(momentum=0.9, epsilon=1e-5, name=f"{name}_bn")] if self.norm else []
        return keras.Sequential([conv, *norms], name=name)

    def build(self, input_shape):
        for level, lateral, output in zip(LEVELS, self.lateral, self.output_convs, strict=True):
            lateral.build((None, None, None, input_shape[level][-1]))
            output.build((None, None, None, self.channels))

    def call(self, levels, training=False):
        merged, outputs = None, []
        for level, lateral, output in reversed(list(zip(LEVELS, self.lateral, self.output_convs, strict=True))):
            maps = lateral(levels[level], training=training)
            merged = maps if merged is None else maps + _doubled(merged)
            outputs.insert(0, output(merged, training=training))
        return [*outputs, outputs[-1][:, ::2, ::2]]

    def get_config(self):
        return {**super().get_config(), "channels": self.channels, "norm": self.norm}


def split_at_p4(backbone):
    """Splits a backbone at P4: returns models up to P4 and from P4 to P5. They share its layers.

    Args:
        backbone: a functional model with P4 and P5 by name (`pyramid_level_inputs` or `pyramid_outputs`). P5 must be
            computed from P4 alone, as in a ResNet. Its last stage must have stride 2 and take maps of 14×14.

    Raises:
        UserError: P5 is not computed from P4 alone.
    """
    levels = pyramid(backbone, ("P4", "P5")).output
    try:
        stage = keras.Model(levels["P4"], levels["P5"], name=f"{backbone.name}_res5")
    except ValueError as error:
        raise UserError(
            "backbone", f"{backbone.name} does not compute P5 from P4 alone.", "Use detector.neck: fpn."
        ) from error
    return pyramid(backbone, ("P4",)), stage


def _doubled(features):
    """Upsamples by 2 with nearest neighbours."""
    return keras.ops.repeat(keras.ops.repeat(features, 2, axis=1), 2, axis=2)
