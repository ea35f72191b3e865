"""Runs the command line on logical devices of the CPU: python -m tests.training.devices N ARGUMENTS."""

import sys

import tensorflow as tf

from dupr_tf.cli import main
from dupr_tf.training import dry_run, pretrain


def use_logical_devices(count: int) -> None:
    """Makes a run see so many devices; before TensorFlow starts, in a process of its own."""
    cpu = tf.config.list_physical_devices("CPU")[0]
    tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * count)
    names = [f"CPU:{i}" for i in range(count)]
    for module in (pretrain, dry_run):
        module.choose_strategy = lambda: tf.distribute.MirroredStrategy(names) if count > 1 else None


if __name__ == "__main__":
    use_logical_devices(int(sys.argv[1]))
    sys.exit(main(sys.argv[2:]))
