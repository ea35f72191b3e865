"""Takes a few steps on two workers of one device, and on one process of two: python -m tests.training.worker_steps.

Prints a JSON line for each process: losses as hex, and the sha256 of bank and weights. The processes are forks of one
that has imported TensorFlow and computes nothing.
"""

import hashlib
import json
import os
import sys
import traceback

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ["OPENBLAS_NUM_THREADS"] = "1"  # a process that forks must have no threads

import keras
import numpy as np
import tensorflow as tf

from dupr_tf.models import DUPR
from dupr_tf.models.multi_worker import MultiWorkerDUPR
from dupr_tf.training.cluster import read_cluster
from dupr_tf.training.distribution import choose_strategy, distribute, is_multi_worker, scope
from dupr_tf.training.optimizers import CoupledSGD
from dupr_tf.training.workers import build_strategy
from tests.models.random_batches import GROUP, batches
from tests.models.test_golden import STAGES, TinyBackbone
from tests.training.cluster import free_ports, tf_config
from tests.training.devices import use_logical_devices

STEPS, GROUPS = 3, 2


def run(devices: int) -> dict:
    use_logical_devices(devices)
    cluster = read_cluster(os.environ)
    strategy = build_strategy(cluster) if cluster else choose_strategy("auto")
    keras.utils.set_random_seed(1)
    with scope(strategy):
        model = (MultiWorkerDUPR if is_multi_worker(strategy) else DUPR)(
            TinyBackbone(dict.fromkeys(STAGES, 4)),
            image_weights=(0, 0, 0, 0), patch_weights=(0, 0, 0, 1), roi_sizes=(16, 8, 4, 2), embedding_dim=8,
            bank_size=70, momentum=0.9, micro_batches=GROUPS, photometric="none",
        )  # fmt: skip
        model.compile(CoupledSGD(1e-2), jit_compile=False)
        model.optimizer.build(model.query_variables)
    elements, losses = list(batches(STEPS, GROUP * GROUPS)), []

    index, workers = (cluster.index, len(cluster.addresses)) if cluster else (0, 1)
    rows = GROUP * GROUPS // workers
    part = {k: np.stack([e[k][index * rows : (index + 1) * rows] for e in elements]) for k in elements[0]}
    own_rows = tf.data.Dataset.from_tensor_slices(part).unbatch().batch(rows, drop_remainder=True)

    record = keras.callbacks.LambdaCallback(on_train_batch_end=lambda _, logs: losses.append(float(logs["loss"])))
    data = distribute(strategy, own_rows)
    model.fit(data, epochs=1, steps_per_epoch=STEPS, verbose=0, shuffle=False, callbacks=[record])
    (bank,) = model.banks.values()
    weights = np.concatenate([v.numpy().ravel() for v in model.query_variables])
    digests = [hashlib.sha256(values.tobytes()).hexdigest() for values in (bank.keys.numpy(), weights)]
    return {"losses": [loss.hex() for loss in losses], "bank": digests[0], "weights": digests[1]}


def forked(devices: int, config: str | None) -> int:
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        os.environ.pop("TF_CONFIG", None)
        if config:
            os.environ["TF_CONFIG"] = config
        print(json.dumps(run(devices)), flush=True)
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    ports = free_ports(2)
    children = [forked(1, tf_config(ports, index)) for index in (0, 1)] + [forked(2, None)]
    sys.exit(any([os.waitpid(child, 0)[1] for child in children]))
