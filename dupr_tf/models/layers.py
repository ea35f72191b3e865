"""Keras' convolution and batch norm with faster kernels, and the batch-norm modes for training detectors.

Keras 3 no longer uses TensorFlow's fused batch norm, and TensorFlow's kernel gradient of a convolution is slow on CPUs.
"""

import keras
import tensorflow as tf

from dupr_tf.errors import UserError
from dupr_tf.ops.convolution import convolve_1x1, convolve_3x3


@keras.saving.register_keras_serializable("dupr_tf")
class TrainedConv2D(keras.layers.Conv2D):
    """Keras' `Conv2D` with the kernel gradients of `ops.convolution`.

    They are for 3×3 kernels of stride 1 and "same" padding, and for 1×1 kernels of a larger stride. Arguments are those
    of `keras.layers.Conv2D`. The output features are the same.
    """

    def convolution_op(self, inputs, kernel):
        simple = (self.dilation_rate, self.groups, self.data_format) == ((1, 1), 1, "channels_last")
        if simple and (self.kernel_size, self.strides, self.padding) == ((3, 3), (1, 1), "same"):
            return convolve_3x3(inputs, kernel)
        if simple and self.kernel_size == (1, 1) and self.strides[0] == self.strides[1] > 1:
            return convolve_1x1(inputs, kernel, self.strides[0])
        return super().convolution_op(inputs, kernel)


@keras.saving.register_keras_serializable("dupr_tf")
class FusedBatchNormalization(keras.layers.BatchNormalization):
    """Keras' `BatchNormalization` with batch statistics from one fused pass over the last axis of (B, H, W, C).

    Keras computes moments and normalises in separate passes, which takes a quarter of a ResNet's step on a CPU. As in
    PyTorch, the moving variance is the unbiased one. Inference, masks, `synchronized`, frozen layers, another axis,
    float64, and layers without scale or offset use Keras' own code.

    Arguments are those of `keras.layers.BatchNormalization`.
    """

    def call(self, inputs, training=None, mask=None):
        plain = self.axis in (-1, 3) and self.scale and self.center and self.compute_dtype != "float64"
        fused = training and self.trainable and not self.synchronized and mask is None and inputs.shape.rank == 4
        if not (plain and fused):
            return super().call(inputs, training=training, mask=mask)
        inputs = tf.cast(inputs, self.compute_dtype)
        outputs, mean, variance, *_ = tf.raw_ops.FusedBatchNormV3(
            x=inputs,
            scale=tf.cast(self.gamma, tf.float32),
            offset=tf.cast(self.beta, tf.float32),
            mean=tf.constant([], tf.float32),
            variance=tf.constant([], tf.float32),
            epsilon=self.epsilon,
            is_training=True,
        )
        for moving, batch in ((self.moving_mean, mean), (self.moving_variance, variance)):
            moving.assign(moving * self.momentum + tf.cast(batch, moving.dtype) * (1.0 - self.momentum))
        return outputs


NORMS = ("train", "sync", "frozen")


def norm_layers(model):
    """Lists every batch normalisation of a model once, including those in nested models and layers."""
    layers = [layer for layer in model._flatten_layers() if isinstance(layer, keras.layers.BatchNormalization)]
    return list({id(layer): layer for layer in layers}.values())


def set_norm(model, norm):
    """Sets how a model's batch normalisation trains, as in `detector.norm`. Call it before compiling the model.

    Args:
        model: a Keras model or layer that contains batch normalisation.
        norm: "train" uses the statistics of each device. "sync" uses those of all devices of a strategy together.
            "frozen" keeps moving statistics and parameters fixed. Layers that the caller froze stay frozen in
            every mode.

    Raises:
        UserError: an unknown mode.
    """
    if norm not in NORMS:
        raise UserError("detector.norm", f"Expected one of {', '.join(NORMS)}, received {norm!r}.")
    for layer in norm_layers(model):
        layer.synchronized = norm == "sync"
        if norm == "frozen":
            layer.trainable = False
