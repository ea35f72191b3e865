"""A few DUPR steps by `fit` on N logical devices: python -m tests.models.replica_run DEVICES GROUPS STEPS OUTPUT.npz.

Run in a process of its own: logical devices are set before TensorFlow starts, and one process holds one strategy.
"""

import sys

import keras
import numpy as np
import tensorflow as tf

from dupr_tf.models import DUPR, build_backbone
from dupr_tf.training.distribution import scope
from dupr_tf.training.optimizers import CoupledSGD

# Groups of four and P5 maps of 2 x 2: statistics over two numbers would turn rounding errors into other signs.
BATCH, SIZE = 16, 64


def batches(steps):
    """Batches that are a function of the step; some pairs are invalid."""
    random = np.random.default_rng(0)
    for _ in range(steps):
        corner = random.uniform(0, 16, (2, BATCH, 2))
        boxes = np.concatenate([corner, corner + random.uniform(32, 48, (2, BATCH, 2))], -1).astype(np.float32)
        yield {
            "view_1": random.integers(0, 256, (BATCH, SIZE, SIZE, 3), np.uint8),
            "view_2": random.integers(0, 256, (BATCH, SIZE, SIZE, 3), np.uint8),
            "boxes_1": boxes[0],
            "boxes_2": boxes[1],
            "flipped_1": random.random(BATCH) < 0.5,
            "flipped_2": random.random(BATCH) < 0.5,
            "valid": random.random(BATCH) < 0.8,
            "index": np.arange(BATCH),
        }


def main(devices, groups, steps, output, momentum=0.9):
    cpu = tf.config.list_physical_devices("CPU")[0]
    tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * devices)
    names = [f"CPU:{i}" for i in range(devices)]
    strategy = tf.distribute.MirroredStrategy(names) if devices > 1 else None
    with scope(strategy):
        keras.utils.set_random_seed(1)
        model = DUPR(
            build_backbone("resnet18", width=0.125),
            roi_sizes=(16, 8, 4, 2), embedding_dim=16, bank_size=83, momentum=momentum, micro_batches=groups,
        )  # fmt: skip
        model.compile(optimizer=CoupledSGD(1e-3), jit_compile=False)
        model.optimizer.build(model.query_variables)
    elements = list(batches(steps))
    data = tf.data.Dataset.from_tensor_slices({k: np.stack([e[k] for e in elements]) for k in elements[0]})
    # `fit` splits a *batch* over the replicas, so the rows are batched here.
    data = data.unbatch().batch(BATCH, drop_remainder=True)
    losses = []
    record = keras.callbacks.LambdaCallback(
        on_train_batch_end=lambda batch, logs: losses.append([float(logs[k]) for k in sorted(logs)])
    )
    model.fit(data, epochs=1, verbose=0, callbacks=[record])
    results = {"losses": np.array(losses), "replicas_agree": np.array(_replicas_agree(model))}
    results |= {f"bank_{name}": bank.keys.numpy() for name, bank in model.banks.items()}
    results["weights"] = np.concatenate([v.numpy().ravel() for v in model.query_variables])
    results["key_weights"] = np.concatenate([v.numpy().ravel() for v in model.key_variables])
    np.savez(output, **results)


def _replicas_agree(model):
    """Whether every replica's copy of every bank, pointer and parameter is the same, bit for bit."""
    variables = [v for bank in model.banks.values() for v in bank.variables]
    for variable in variables + model.query_variables + model.key_variables:
        copies = [c.numpy() for c in getattr(variable.value, "values", [variable.value])]
        if any((copy != copies[0]).any() for copy in copies):
            return False
    return True


if __name__ == "__main__":
    main(*map(int, sys.argv[1:4]), sys.argv[4])
