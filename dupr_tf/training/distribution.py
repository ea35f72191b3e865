"""Where a run computes: one device, or all GPUs of the machine."""

from __future__ import annotations

import contextlib

import tensorflow as tf


def choose_strategy():
    """`MirroredStrategy` where there are several GPUs, else None."""
    gpus = tf.config.list_physical_devices("GPU")
    return tf.distribute.MirroredStrategy() if len(gpus) > 1 else None


def scope(strategy):
    """The strategy's scope; nothing for None."""
    return contextlib.nullcontext() if strategy is None else strategy.scope()


def replicas(strategy) -> int:
    return 1 if strategy is None else strategy.num_replicas_in_sync
