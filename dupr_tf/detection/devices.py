"""Loss scaling for detectors that train on the devices of a `tf.distribute` strategy."""

from __future__ import annotations

import keras
import tensorflow as tf


@keras.saving.register_keras_serializable("dupr_tf")
class DeviceShare(keras.losses.Loss):
    """Divides a summed loss by the number of devices of the strategy, because Keras adds up their gradients.

    Args:
        loss: a Keras loss with the reduction "sum".
    """

    def __init__(self, loss, name=None):
        super().__init__(name=name or loss.name, reduction="sum")
        self.loss = loss

    def __call__(self, y_true, y_pred, sample_weight=None):
        return self.loss(y_true, y_pred, sample_weight) / tf.distribute.get_strategy().num_replicas_in_sync
