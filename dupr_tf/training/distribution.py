"""Where and how a run computes: on one device or on all GPUs of the machine, compiled by XLA or not."""

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


def choose_jit(setting: str, replicas: int) -> tuple[bool, str]:
    """Whether XLA compiles the step, and why.

    Args:
        setting: `train.jit`.
        replicas: devices that train together.
    """
    if replicas > 1:
        return False, f"{replicas} devices exchange keys, which XLA does not compile"
    if setting != "auto":
        return setting == "on", f"train.jit is {setting}"
    if tf.config.list_logical_devices("GPU"):
        return True, "one GPU"
    return False, "on a CPU, oneDNN's convolutions are faster than XLA's"
