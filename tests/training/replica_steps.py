"""Prints as JSON the steps of optimisers on one and on two replicas: python -m tests.training.replica_steps.

It runs in a separate process, because logical devices are set before TensorFlow starts.
"""

import json

import keras
import numpy as np
import tensorflow as tf

from dupr_tf.training.optimizers import CoupledSGD, LossScaling
from tests.training.devices import use_logical_devices


def weights_after_a_step(strategy, gradients, scaled=False, **settings):
    """Returns the weights, from 0, after a step at rate 1 with a row of gradients for each replica."""
    with strategy.scope():
        variable = keras.Variable(np.zeros(2, np.float32), name="weights")
        optimizer = CoupledSGD(1.0, 0.0, 0.0, **settings)
        optimizer = LossScaling(optimizer, initial_scale=1.0, dynamic_growth_steps=100) if scaled else optimizer
        optimizer.build([variable])
    rows = tf.constant(gradients, tf.float32)

    @tf.function
    def step():
        def apply():
            context = tf.distribute.get_replica_context()
            optimizer.apply([rows[context.replica_id_in_sync_group]], [variable])

        strategy.run(apply)

    step()
    return variable.numpy().tolist()


if __name__ == "__main__":
    use_logical_devices(2)
    one, two = tf.distribute.get_strategy(), tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
    rows, large, clip = [[3.0, 0.0], [0.0, 4.0]], float("inf"), {"global_clipnorm": 1.0}
    weights = {
        "clipped on one": weights_after_a_step(one, [[3.0, 4.0]], **clip),
        "clipped on two": weights_after_a_step(two, rows, **clip),
        "below the limit": weights_after_a_step(two, [[0.3, 0.0], [0.0, 0.4]], **clip),
        "scaled": weights_after_a_step(two, rows, scaled=True),
        "overflow on the first": weights_after_a_step(two, [[large, 0.0], rows[1]], scaled=True),
        "overflow on the second": weights_after_a_step(two, [rows[0], [0.0, large]], scaled=True),
        "both": weights_after_a_step(two, rows, scaled=True, **clip),
    }
    print(json.dumps(weights))
