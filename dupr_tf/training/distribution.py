"""Chooses the devices of a run (one device, the whole machine or several workers), and the use of XLA."""

from __future__ import annotations

import contextlib

import tensorflow as tf
from tensorflow.python.framework import config  # the public API lacks the opposite of `enable_op_determinism`

from dupr_tf.errors import UserError


def choose_strategy(setting: str = "auto"):
    """Creates the strategy of a run on this machine, or None for one device. Call it before any computation.

    Args:
        setting: `train.strategy`.

    Raises:
        UserError: the strategy is mirrored, but there is one device.
    """
    devices = local_devices()
    if setting == "mirrored" and len(devices) < 2:
        raise UserError("train.strategy", "mirrored needs several devices, and there is one.", "Use auto.")
    return tf.distribute.MirroredStrategy(devices) if setting != "one" and len(devices) > 1 else None


def local_devices() -> list[str]:
    """Lists the GPUs of this machine. Without a GPU, lists its CPU, or the logical devices it was split into."""
    gpus = tf.config.list_physical_devices("GPU")
    if gpus:
        return [f"GPU:{i}" for i in range(len(gpus))]
    (cpu, *_) = tf.config.list_physical_devices("CPU")
    return [f"CPU:{i}" for i in range(len(tf.config.get_logical_device_configuration(cpu) or [None]))]


def is_multi_worker(strategy) -> bool:
    return isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy)


@contextlib.contextmanager
def deterministic_ops():
    """Makes operations on CPUs bit-identical in every run, inside this context. Some operations lose their threads.

    By default, the threads of the gradient of `tf.image.crop_and_resize` add into the same pixels without a lock, and
    lose summands. Nothing changes on a GPU, where some operations have no deterministic form and would fail.
    """
    if config.is_op_determinism_enabled() or tf.config.list_physical_devices("GPU"):
        yield
        return
    tf.config.experimental.enable_op_determinism()
    try:
        yield
    finally:
        config.disable_op_determinism()


def scope(strategy):
    """Returns the strategy's scope; a context that does nothing for None."""
    return contextlib.nullcontext() if strategy is None else strategy.scope()


def replicas(strategy) -> int:
    return 1 if strategy is None else strategy.num_replicas_in_sync


def distribute(strategy, batches: tf.data.Dataset):
    """Creates the dataset for `fit` from whole batches. With several workers it has this worker's rows only.

    The rows go to the worker's devices in order. Keras would split a plain dataset among the workers again.

    Args:
        strategy: strategy of the run.
        batches: with several workers, this worker's rows of every batch.
    """
    if not is_multi_worker(strategy):
        return batches

    def device_batches(context):
        devices = context.num_replicas_in_sync // context.num_input_pipelines
        (rows,) = {spec.shape[0] for spec in batches.element_spec.values()}
        return batches.rebatch(rows // devices, drop_remainder=True)

    return strategy.distribute_datasets_from_function(device_batches)


def choose_jit(setting: str, replicas: int) -> tuple[bool, str]:
    """Decides if XLA compiles the step, and returns the decision and the reason.

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
