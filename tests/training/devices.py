"""Runs the command line on logical devices of the CPU: python -m tests.training.devices N ARGUMENTS."""

import sys

import tensorflow as tf
from tensorflow.python.distribute.collective_all_reduce_strategy import CollectiveAllReduceExtended

from dupr_tf.cli import main


def use_logical_devices(count: int) -> None:
    """Splits the CPU into so many devices. Call it before TensorFlow starts, in a separate process."""
    cpu = tf.config.list_physical_devices("CPU")[0]
    tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * count)
    # With several workers, TensorFlow uses all GPUs of each, but one CPU even if it was split.
    CollectiveAllReduceExtended._initialize_local_devices = lambda _self, _resolver, worker: (
        tuple(f"{worker}/device:CPU:{i}" for i in range(count)),
        "CPU",
    )


if __name__ == "__main__":
    use_logical_devices(int(sys.argv[1]))
    sys.exit(main(sys.argv[2:]))
