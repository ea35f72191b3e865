"""DUPR steps by `fit` on N logical devices: python -m tests.models.replica_run DEVICES GROUPS STEPS OUTPUT.npz [KIND].

KIND is float32 (the default), coarse: half as many groups of the same images, or one without photometrics: plain,
float16, overflow: float16 where the last replica's gradients are infinite, or nan: a batch before the last whose last
image, on the last replica, makes the loss NaN.

Run in a process of its own: logical devices are set before TensorFlow starts, and one process holds one strategy.
"""

import sys

import keras
import numpy as np
import tensorflow as tf

from dupr_tf.models import DUPR
from dupr_tf.training.distribution import scope
from dupr_tf.training.optimizers import CoupledSGD
from tests.models.test_golden import CHANNELS, TinyBackbone

# Groups of four and P5 maps of 2 x 2: statistics over two numbers would turn rounding errors into other signs.
GROUP, SIZE = 4, 64  # SIZE is what TinyBackbone takes


class Overflowing(DUPR):
    """A DUPR whose gradients are infinite on the last replica alone."""

    def query_gradients(self, *inputs):
        gradients, logs = super().query_gradients(*inputs)
        context = tf.distribute.get_replica_context()
        last = context.replica_id_in_sync_group == context.num_replicas_in_sync - 1
        return [g + tf.where(last, float("inf"), 0.0) for g in gradients], logs


def batches(steps, batch):
    """Batches that are a function of the step; some pairs are invalid."""
    random = np.random.default_rng(0)
    for _ in range(steps):
        corner = random.uniform(0, 16, (2, batch, 2))
        boxes = np.concatenate([corner, corner + random.uniform(32, 48, (2, batch, 2))], -1).astype(np.float32)
        yield {
            "view_1": random.integers(0, 256, (batch, SIZE, SIZE, 3), np.uint8),
            "view_2": random.integers(0, 256, (batch, SIZE, SIZE, 3), np.uint8),
            "boxes_1": boxes[0],
            "boxes_2": boxes[1],
            "flipped_1": random.random(batch) < 0.5,
            "flipped_2": random.random(batch) < 0.5,
            "valid": random.random(batch) < 0.8,
            "index": np.arange(batch),
        }


def main(devices, groups, steps, output, kind="float32"):
    cpu = tf.config.list_physical_devices("CPU")[0]
    tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * devices)
    names = [f"CPU:{i}" for i in range(devices)]
    strategy = tf.distribute.MirroredStrategy(names) if devices > 1 else None
    half, batch = kind in ("float16", "overflow"), GROUP * groups
    policy = "mixed_float16" if half else "float32"
    keras.config.set_dtype_policy(policy)  # of the heads
    with scope(strategy):
        keras.utils.set_random_seed(1)
        model = (Overflowing if kind == "overflow" else DUPR)(
            TinyBackbone(CHANNELS, dtype=policy),
            roi_sizes=(16, 8, 4, 2), embedding_dim=16, bank_size=163, momentum=0.9,
            micro_batches=groups // 2 if kind == "coarse" else groups,
            photometric="moco_v2" if kind in ("float32", "coarse") else "none",
        )  # fmt: skip
        optimizer = CoupledSGD(1e-3)
        model.compile(keras.optimizers.LossScaleOptimizer(optimizer) if half else optimizer, jit_compile=False)
        model.optimizer.build(model.query_variables)
    before = _flat(model.query_variables)
    elements = list(batches(steps, batch))
    if kind == "nan":
        poisoned = {**elements[0], "boxes_1": elements[0]["boxes_1"].copy(), "valid": np.ones(batch, bool)}
        poisoned["boxes_1"][-1] = np.nan
        elements.insert(-1, poisoned)
    data = tf.data.Dataset.from_tensor_slices({k: np.stack([e[k] for e in elements]) for k in elements[0]})
    # `fit` splits a *batch* over the replicas, so the rows are batched here.
    data = data.unbatch().batch(batch, drop_remainder=True)
    losses = []
    record = keras.callbacks.LambdaCallback(
        on_train_batch_end=lambda batch, logs: losses.append({k: float(logs[k]) for k in sorted(logs)})
    )
    model.fit(data, epochs=1, verbose=0, callbacks=[record])
    results = {"names": np.array(list(losses[0])), "losses": np.array([list(entry.values()) for entry in losses])}
    results |= {"replicas_agree": np.array(_replicas_agree(model))}
    results |= {f"bank_{name}": bank.keys.numpy() for name, bank in model.banks.items()}
    results["weights"], results["key_weights"] = _flat(model.query_variables), _flat(model.key_variables)
    results["moved"] = np.abs(results["weights"] - before).max()
    results["loss_scale"] = np.array(model.optimizer.dynamic_scale.numpy() if half else 1.0)
    np.savez(output, **results)


def _flat(variables):
    return np.concatenate([v.numpy().ravel() for v in variables])


def _replicas_agree(model):
    """Whether every replica's copy of every bank, pointer and parameter is the same, bit for bit."""
    variables = [v for bank in model.banks.values() for v in bank.variables]
    for variable in variables + model.query_variables + model.key_variables:
        copies = [c.numpy() for c in getattr(variable.value, "values", [variable.value])]
        if any((copy != copies[0]).any() for copy in copies):
            return False
    return True


if __name__ == "__main__":
    main(*map(int, sys.argv[1:4]), *sys.argv[4:])
