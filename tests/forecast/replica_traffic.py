"""Prints as JSON what two replicas of a step exchange: python -m tests.forecast.replica_traffic.

It runs in a separate process, because logical devices are set before TensorFlow starts. The step is traced, not run.
"""

import json

import tensorflow as tf

from dupr_tf.forecast.counts import count
from dupr_tf.forecast.measure import noise_pairs
from dupr_tf.training.distribution import scope
from dupr_tf.training.pretrain import compiled_model
from tests.forecast.tiny_config import TINY

SCALARS = 64  # a collective of fewer numbers carries only sums of losses


def main():
    cpu = tf.config.list_physical_devices("CPU")[0]
    tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
    strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
    gathered = []
    gather = tf.distribute.ReplicaContext.all_gather

    def noting(context, value, axis, options=None):
        gathered.append(value.shape.num_elements() * value.dtype.size)  # called once for each replica
        return gather(context, value, axis, options)

    tf.distribute.ReplicaContext.all_gather = noting
    with scope(strategy):
        model = compiled_model(TINY, 1000, replicas=2)
    batch = noise_pairs(TINY)
    half = {name: tf.convert_to_tensor(rows[: len(rows) // 2]) for name, rows in batch.items()}
    each = {name: strategy.experimental_distribute_values_from_function(lambda _, rows=rows: tf.identity(rows))
            for name, rows in half.items()}  # fmt: skip
    graph = tf.function(lambda pairs: strategy.run(model.train_step, (pairs,))).get_concrete_function(each).graph
    sums = [op.inputs[0] for op in graph.get_operations()
            if op.type == "CollectiveReduceV2" and op.device.endswith("CPU:0")]  # fmt: skip
    reduced = [x.shape.num_elements() * x.dtype.size for x in sums if x.shape.num_elements() > SCALARS]
    counts = count(TINY, 2, gpu=False)
    print(json.dumps({
        "gathered": sum(gathered), "views": 2 * max(gathered),
        "reduced": sum(reduced), "counted": [counts.reduced, counts.gathered],
    }))  # fmt: skip


if __name__ == "__main__":
    main()
