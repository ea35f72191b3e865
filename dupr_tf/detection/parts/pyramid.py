"""The feature pyramid of all detectors."""

from __future__ import annotations

import keras

from dupr_tf.models.layers import FusedBatchNormalization


@keras.saving.register_keras_serializable("dupr_tf")
class FeaturePyramid(keras.layers.Layer):
    """Feature Pyramid Network (Lin et al., 2017) of RetinaNet, with inputs P3 to P5 and outputs P3 to P7.

    It has 1×1 lateral convolutions, nearest-neighbour upsampling, sum, and 3×3 output convolutions. P6 and P7 are
    convolutions of stride 2. Kernels start as Caffe2's Xavier fill.

    Args:
        channels: channels of every output level.
        norm: batch normalisation after the lateral and output convolutions, which then have no bias.
    """

    LEVELS, CONVS = ("P3", "P4", "P5"), True  # input levels; P6 and P7 are convolutions

    def __init__(self, channels, norm=True, **kwargs):
        super().__init__(**kwargs)
        self.channels, self.norm = channels, norm
        self.lateral = {level: self._conv(1, f"lateral_{level}", norm=norm) for level in self.LEVELS}
        self.output_convs = {level: self._conv(3, f"output_{level}", norm=norm) for level in self.LEVELS}
        if self.CONVS:  # no normalisation here: at P7 a small image has four cells
            self.p6, self.p7 = (self._conv(3, name, strides=2) for name in ("P6", "P7"))

    def _conv(self, kernel, name, strides=1, norm=False):
        conv = keras.layers.Conv2D(
            self.channels,
            kernel,
            strides,
            padding="same",
            use_bias=not norm,
            kernel_initializer="lecun_uniform",
            name=f"{name}_conv",
        )
        norms = [FusedBatchNormalization(momentum=0.9, epsilon=1e-5, name=f"{name}_bn")] if norm else []
        return keras.Sequential([conv, *norms], name=name)

    def build(self, input_shape):
        for level in self.LEVELS:
            self.lateral[level].build((None, None, None, input_shape[level][-1]))
            self.output_convs[level].build((None, None, None, self.channels))
        if self.CONVS:
            self.p6.build((None, None, None, input_shape["P5"][-1]))
            self.p7.build((None, None, None, self.channels))

    def call(self, inputs, training=False):
        merged, outputs = None, []
        for level in reversed(self.LEVELS):
            maps = self.lateral[level](inputs[level], training=training)  # (B, h, w, channels)
            merged = maps if merged is None else maps + _upsample(merged)
            outputs.insert(0, self.output_convs[level](merged, training=training))
        if not self.CONVS:
            return [*outputs, outputs[-1][:, ::2, ::2]]
        p6 = self.p6(inputs["P5"])
        return [*outputs, p6, self.p7(keras.ops.relu(p6))]

    def get_config(self):
        return {**super().get_config(), "channels": self.channels, "norm": self.norm}


@keras.saving.register_keras_serializable("dupr_tf")
class PyramidNeck(FeaturePyramid):
    """The pyramid of R-CNNs, with inputs P2 to P5 and outputs P2 to P6; saved weights have its name in their paths.

    P6 is every second cell of P5 (detectron2's LastLevelMaxPool).
    """

    LEVELS, CONVS = ("P2", "P3", "P4", "P5"), False


def _upsample(features):
    """Upsamples by 2 with nearest neighbours."""
    return keras.ops.repeat(keras.ops.repeat(features, 2, axis=1), 2, axis=2)
