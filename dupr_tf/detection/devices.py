"""What Keras leaves to a detector that trains on the devices of a `tf.distribute` strategy."""

from __future__ import annotations

import keras
import tensorflow as tf


class BuiltBeforeFit:
    """For a Keras model with every variable made by `compile`: spares `fit` its own way of making them.

    Under a strategy Keras runs the model on symbols first, on the mean of the batches of all devices, and takes the
    whole batch, boxes and all, for what the model takes.
    """

    def _maybe_symbolic_build(self, iterator=None, data_batch=None):
        """Nothing is left to build."""


@keras.saving.register_keras_serializable("dupr_tf")
class DeviceShare(keras.losses.Loss):
    """A loss that is a sum, divided by the devices of the strategy: Keras adds their gradients up.

    Args:
        loss: a Keras loss with the reduction "sum".
    """

    def __init__(self, loss, name=None):
        super().__init__(name=name or loss.name, reduction="sum")
        self.loss = loss

    def __call__(self, y_true, y_pred, sample_weight=None):
        return self.loss(y_true, y_pred, sample_weight) / tf.distribute.get_strategy().num_replicas_in_sync
