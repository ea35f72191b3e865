"""Measures what several replicas of a step exchange and hold, on logical devices of one processor."""

from __future__ import annotations

import keras
import tensorflow as tf

from dupr_tf.models import DUPR
from dupr_tf.ops import gather
from dupr_tf.training.distribution import scope
from dupr_tf.training.optimizers import CoupledSGD

SIDE, BATCH, GROUPS, BANK = 64, 64, 8, 4096
STAGES = {"P2": 8, "P3": 16, "P4": 32, "P5": 64}


@keras.saving.register_keras_serializable("dupr_tf_benchmarks")
class TinyBackbone(keras.Model):
    """Five convolutions with batch norm: so little work that the cost of the exchange is visible."""

    def __init__(self, name="tiny"):
        images = x = keras.Input((SIDE, SIDE, 3), name="images")
        for stage, filters in {"P1": 8, **STAGES}.items():
            x = keras.layers.Conv2D(filters, 3, strides=2, padding="same", use_bias=False, name=stage)(x)
            x = keras.layers.BatchNormalization(name=f"{stage}_norm")(x)
            x = keras.layers.Activation("relu", name=f"{stage}_out")(x)
        super().__init__(inputs=images, outputs=x, name=name)
        self.pyramid_level_inputs = {level: f"{level}_out" for level in STAGES}

    def get_config(self):
        return {"name": self.name}


def works(replicas: int) -> dict:
    """Returns {name: function that does the work once on all replicas}. The process must not have had another strategy.

    Args:
        replicas: logical devices that share `BATCH` images.
    """
    cpu = tf.config.list_physical_devices("CPU")[0]
    tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * replicas)
    names = [f"CPU:{i}" for i in range(replicas)]
    strategy = tf.distribute.MirroredStrategy(names) if replicas > 1 else tf.distribute.get_strategy()
    with scope(strategy):
        model = DUPR(TinyBackbone(), image_weights=(0, 0, 0, 1), patch_weights=(0, 0, 0, 1), roi_sizes=(8, 4, 4, 2),
                     bank_size=BANK, photometric="none", micro_batches=GROUPS)  # fmt: skip
        model.compile(CoupledSGD(1e-3), jit_compile=False)
        model.optimizer.build(model.query_variables)
    pairs = _spread(strategy, _pairs(BATCH // replicas))
    numbers = sum(v.shape.num_elements() for v in model.query_variables)
    keys = {name: tf.math.l2_normalize(tf.random.stateless_normal([BATCH, 128], [1, 2]), -1) for name in model.banks}

    def gathered(pairs):  # `encode_keys` gathers views and boxes before encoding, and keys after it
        cells = tf.reshape(tf.cast(pairs["view_2"], tf.float32), [BATCH // replicas, -1])[:, : 5 * 128]
        return [gather.all_gather(tf.cast(x, tf.float32)) for x in (pairs["view_2"], pairs["boxes_2"], cells)]

    def summed(pairs):
        return gather.global_sum(tf.fill([numbers], tf.reduce_sum(pairs["boxes_1"])))

    def enqueued(pairs):
        for name, bank in model.banks.items():
            bank.enqueue(keys[name])
        return tf.constant(0)

    parts = {"step": model.train_step, "gathering": gathered, "summing gradients": summed, "banks": enqueued}
    return {name: _on_all(strategy, part, pairs) for name, part in parts.items()}


def _on_all(strategy, part, pairs):
    compiled = tf.function(lambda pairs: strategy.run(part, (pairs,)), autograph=False)

    def once():
        results = tf.nest.flatten(strategy.experimental_local_results(compiled(pairs)))
        return [result.numpy() for result in results]  # waits for all replicas

    return once


def _spread(strategy, rows):
    return {name: strategy.experimental_distribute_values_from_function(lambda _, value=value: tf.identity(value))
            for name, value in rows.items()}  # fmt: skip


def _pairs(rows):
    views = tf.cast(tf.random.stateless_uniform([rows, SIDE, SIDE, 3], [0, 1], 0, 255, tf.int32), tf.uint8)
    boxes = tf.tile([[4.0, 4.0, 60.0, 60.0]], [rows, 1])
    return {
        "view_1": views, "view_2": views, "boxes_1": boxes, "boxes_2": boxes, "flipped_1": tf.zeros([rows], tf.bool),
        "flipped_2": tf.zeros([rows], tf.bool), "valid": tf.ones([rows], tf.bool), "index": tf.range(rows),
    }  # fmt: skip
