"""What a plan counts from shapes, against the operations and collectives of the very graph that a step runs."""

import json
import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf

from dupr_tf.config import parse_config
from dupr_tf.planning.counting import SOME_IMAGES, count
from dupr_tf.planning.measuring import noise_pairs
from dupr_tf.training.checkpoints import RunCheckpoints, state_of
from dupr_tf.training.dry_run import predicted_memory
from dupr_tf.training.pretrain import compiled_model
from tests.planning.tiny_config import TINY

ONE_GROUP = parse_config({
    **TINY.model_dump(exclude_none=True), "train": {"batch_size": 4, "micro_batches": 1, "epochs": 2},
})  # fmt: skip


@pytest.fixture(scope="module")
def model():
    return compiled_model(ONE_GROUP, SOME_IMAGES)


@pytest.mark.slow
def test_operations_are_those_of_the_graph(model):
    """Convolutions and products of a traced step, of which none is left out and none is counted twice."""
    pairs = {name: tf.convert_to_tensor(rows) for name, rows in noise_pairs(ONE_GROUP).items()}
    graph = tf.function(model.train_step).get_concrete_function(pairs).graph
    used = [op for op in graph.get_operations() if any(output.consumers() for output in op.outputs)]
    assert sum(map(operations, used)) == sum(count(ONE_GROUP, 1, gpu=False).flops.values())


def operations(op):
    """Floating-point operations of a node: two for each multiplication of a convolution or a product."""
    if op.type == "MatMul":
        common = op.inputs[0].shape[0 if op.get_attr("transpose_a") else 1]
        return 2 * op.outputs[0].shape.num_elements() * common
    if op.type == "Conv2D":
        return 2 * op.outputs[0].shape.num_elements() * int(np.prod(op.inputs[1].shape[:3]))
    if op.type == "Conv2DBackpropInput":
        return 2 * op.inputs[2].shape.num_elements() * int(np.prod(op.inputs[1].shape[:3]))
    if op.type == "Conv2DBackpropFilter":
        return 2 * op.inputs[2].shape.num_elements() * int(np.prod(op.outputs[0].shape[:3]))
    return 0


@pytest.mark.slow
def test_traffic_is_what_two_replicas_exchange():
    command = [sys.executable, "-m", "tests.planning.replica_traffic"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout)
    reduced, gathered = found["counted"]
    assert found["views"] == gathered["views of the keys"] == 4 * 8 * 32 * 32 * 3
    assert found["gathered"] == sum(gathered.values())
    assert found["reduced"] == sum(reduced.values())


def test_memory_weights_banks_and_the_checkpoint_on_the_disk(model, tmp_path):
    counts, alone = count(TINY, 2, gpu=False), predicted_memory(model, TINY)
    assert counts.memory == predicted_memory(model, TINY, 2) and counts.memory["memory banks"] == alone["memory banks"]
    assert 2 * counts.memory["views of a batch"] == alone["views of a batch"]
    assert counts.memory["views gathered and shuffled"] == 2 * 4 * 8 * 32 * 32 * 3
    assert counts.weights == sum(int(np.prod(v.shape)) for v in model.query_encoder.trainable_variables)
    assert counts.bank_numbers == 3 * 96 * 16
    path = RunCheckpoints(model, tmp_path).save()
    written = sum(file.stat().st_size for file in tmp_path.glob(f"{path.name}.data*"))
    names = sum(len(name) for name in state_of(model))  # which TensorFlow writes beside the numbers, several times
    assert counts.checkpoint <= written <= counts.checkpoint + 10 * names
