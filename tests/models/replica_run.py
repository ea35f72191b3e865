"""Takes DUPR steps by `fit` on logical devices and saves the results.

    python -m tests.models.replica_run FOLDER KIND,DEVICES,GROUPS,STEPS …

Each run leaves FOLDER/KIND,DEVICES,GROUPS,STEPS.npz. KIND is one of:

- float32
- recipe: with all terms of DUPR
- terms: with terms of other methods
- coarse: half as many groups of the same images
- plain, float16: without photometrics
- overflow: as float16, with infinite gradients on the last replica
- nan: as plain, but the last image of the batch before the last makes the loss NaN on the last replica

Logical devices are set before TensorFlow starts, and one process holds one strategy. Therefore all runs of a process
have one device, or all have the same number.
"""

import sys
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf

from dupr_tf.models import DUPR
from dupr_tf.training.distribution import scope
from dupr_tf.training.optimizers import CoupledSGD
from tests.models import other_terms
from tests.models.random_batches import GROUP, batches
from tests.models.test_golden import CHANNELS, TinyBackbone


class Overflowing(DUPR):
    """A DUPR whose gradients are infinite on the last replica only."""

    def query_gradients(self, *inputs):
        gradients, logs = super().query_gradients(*inputs)
        context = tf.distribute.get_replica_context()
        last = context.replica_id_in_sync_group == context.num_replicas_in_sync - 1
        return [g + tf.where(last, float("inf"), 0.0) for g in gradients], logs


def make_model(kind, groups):
    """Returns a compiled DUPR with few terms, with those of the recipe, or with those of other methods."""
    keras.utils.set_random_seed(1)
    half = kind in ("float16", "overflow")
    policy = "mixed_float16" if half else "float32"
    keras.config.set_dtype_policy(policy)  # policy of the heads
    if kind == "terms":
        return other_terms.make_model(groups, photometric="moco_v2")
    weights = {"image_weights": (0, 0, 0, 1), "patch_weights": (0, 0, 0, 0)}
    if kind != "overflow":
        weights = {"image_weights": (0, 0.4, 0, 1), "patch_weights": (0, 0, 1, 0)}
    model = (Overflowing if kind == "overflow" else DUPR)(
        TinyBackbone(CHANNELS, dtype=policy), **({} if kind == "recipe" else weights),
        roi_sizes=(16, 8, 4, 2), embedding_dim=16, bank_size=163, momentum=0.9,
        micro_batches=groups // 2 if kind == "coarse" else groups,
        photometric="moco_v2" if kind in ("float32", "recipe", "coarse") else "none",
    )  # fmt: skip
    optimizer = CoupledSGD(1e-3)
    model.compile(keras.optimizers.LossScaleOptimizer(optimizer) if half else optimizer, jit_compile=False)
    model.optimizer.build(model.query_variables)
    return model


def make_batches(kind, groups, steps):
    if kind == "terms":
        return list(other_terms.labelled_batches(steps))
    elements = list(batches(steps, GROUP * groups))
    if kind == "nan":
        poisoned = {**elements[0], "boxes_1": elements[0]["boxes_1"].copy(), "valid": np.ones(GROUP * groups, bool)}
        poisoned["boxes_1"][-1] = np.nan
        elements.insert(-1, poisoned)
    return elements


def train(strategy, kind, groups, steps):
    """Returns the logs of each step and the state at the end."""
    keras.utils.clear_session()
    with scope(strategy):
        model = make_model(kind, groups)
    before = _flat(model.query_variables)
    elements = make_batches(kind, groups, steps)
    # `fit` splits a *batch* over the replicas, so the rows are batched here.
    data = tf.data.Dataset.from_tensor_slices({k: np.concatenate([e[k] for e in elements]) for k in elements[0]})
    data = data.batch(len(elements[0]["valid"]), drop_remainder=True)
    losses = []
    record = keras.callbacks.LambdaCallback(
        on_train_batch_end=lambda batch, logs: losses.append({k: float(logs[k]) for k in sorted(logs)})
    )
    model.fit(data, epochs=1, verbose=0, callbacks=[record])
    results = {"names": np.array(list(losses[0])), "losses": np.array([list(entry.values()) for entry in losses])}
    results |= {"replicas_agree": np.array(_replicas_agree(model))}
    results |= {f"bank_{name}": bank.keys.numpy() for name, bank in model.banks.items()}
    results |= {f"state {name}": np.asarray(variable) for name, variable in model.named_variables().items()}
    results["weights"], results["key_weights"] = _flat(model.query_variables), _flat(model.key_variables)
    results["moved"] = np.abs(results["weights"] - before).max()
    scaled = isinstance(model.optimizer, keras.optimizers.LossScaleOptimizer)
    results["loss_scale"] = np.array(model.optimizer.dynamic_scale.numpy() if scaled else 1.0)
    return results


def main(folder, *names):
    runs = [(kind, *map(int, numbers)) for kind, *numbers in (name.split(",") for name in names)]
    devices = max(run[1] for run in runs)
    cpu = tf.config.list_physical_devices("CPU")[0]
    tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * devices)
    mirrored = tf.distribute.MirroredStrategy([f"CPU:{i}" for i in range(devices)]) if devices > 1 else None
    for name, (kind, own_devices, groups, steps) in zip(names, runs, strict=True):
        assert own_devices in (1, devices)
        np.savez(Path(folder) / name, **train(mirrored if own_devices > 1 else None, kind, groups, steps))


def _flat(variables):
    return np.concatenate([v.numpy().ravel() for v in variables])


def _replicas_agree(model):
    """Compares every replica's copy of every bank, pointer and parameter; returns true if all are equal bit for bit."""
    variables = [v for bank in model.banks.values() for v in bank.variables]
    for variable in variables + model.query_variables + model.key_variables:
        copies = [c.numpy() for c in getattr(variable.value, "values", [variable.value])]
        if any((copy != copies[0]).any() for copy in copies):
            return False
    return True


if __name__ == "__main__":
    main(*sys.argv[1:])
