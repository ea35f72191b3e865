"""Batch normalisation by TensorFlow's fused kernel, which Keras 3 no longer uses."""

import keras
import tensorflow as tf


@keras.saving.register_keras_serializable("dupr_tf")
class FusedBatchNormalization(keras.layers.BatchNormalization):
    """Keras' `BatchNormalization` with batch statistics from one fused pass over the last axis of (B, H, W, C).

    Keras computes moments and normalises in separate passes, a quarter of a ResNet's step on a CPU. The moving variance
    is the unbiased one, as PyTorch's is. Inference, masks, `synchronized` and frozen layers are Keras' own.

    Arguments are those of `keras.layers.BatchNormalization`.
    """

    def call(self, inputs, training=None, mask=None):
        fused = training and self.trainable and not self.synchronized and mask is None and inputs.shape.rank == 4
        if not fused:
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
