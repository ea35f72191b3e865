"""Compares counts from shapes with the operations and collectives of a step's graph, and with published counts."""

import json
import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf

from dupr_tf.config import parse_config
from dupr_tf.forecast.counts import SOME_IMAGES, count, step_flops, step_traffic
from dupr_tf.forecast.measure import noise_pairs
from dupr_tf.models import DUPR, ResNetBackbone, build_backbone
from dupr_tf.training.checkpoints import RunCheckpoints, state_of
from dupr_tf.training.pretrain import compiled_model
from tests.forecast.tiny_config import TINY

ONE_GROUP = parse_config({
    **TINY.model_dump(exclude_none=True), "train": {"batch_size": 4, "micro_batches": 1, "epochs": 2},
})  # fmt: skip


@pytest.fixture(scope="module")
def model():
    return compiled_model(ONE_GROUP, SOME_IMAGES)


@pytest.mark.slow
def test_operations_equal_those_of_the_graph(model):
    """Counts convolutions and products of a traced step: none is missing, and none is counted twice."""
    pairs = {name: tf.convert_to_tensor(rows) for name, rows in noise_pairs(ONE_GROUP).items()}
    graph = tf.function(model.train_step).get_concrete_function(pairs).graph
    used = [op for op in graph.get_operations() if any(output.consumers() for output in op.outputs)]
    assert sum(map(operations, used)) == sum(count(ONE_GROUP, 1, gpu=False).flops.values())


def operations(op):
    """Returns floating-point operations of a node: two for each multiplication of a convolution or a product."""
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
def test_traffic_equals_exchange_of_two_replicas():
    command = [sys.executable, "-m", "tests.forecast.replica_traffic"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    traffic = json.loads(done.stdout)
    reduced, gathered = traffic["counted"]
    assert traffic["views"] == gathered["views of the keys"] == 4 * 8 * 32 * 32 * 3
    assert traffic["gathered"] == sum(gathered.values())
    assert traffic["reduced"] == sum(reduced.values())


def test_memory_weights_banks_and_checkpoint_equal_the_model(model, tmp_path):
    counts, alone = count(TINY, 2, gpu=False), count(TINY, 1, gpu=False).memory
    assert count(TINY, 2, gpu=False, model=model) == counts
    assert counts.memory["memory banks"] == alone["memory banks"]
    assert 2 * counts.memory["views of a batch"] == alone["views of a batch"]
    assert counts.memory["views gathered and shuffled"] == 2 * 4 * 8 * 32 * 32 * 3
    assert counts.weights == sum(int(np.prod(v.shape)) for v in model.query_encoder.trainable_variables)
    assert counts.bank_numbers == 3 * 96 * 16
    path = RunCheckpoints(model, tmp_path).save()
    written = sum(file.stat().st_size for file in tmp_path.glob(f"{path.name}.data*"))
    names = sum(len(name) for name in state_of(model))  # TensorFlow also writes these, several times
    assert counts.checkpoint <= written <= counts.checkpoint + 10 * names


def build(architecture, **settings):
    return DUPR(build_backbone(architecture), bank_size=512, **settings)


@pytest.mark.parametrize(
    ("architecture", "multiplications"),
    [("resnet18", 1.814e9), pytest.param("resnet50", 4.087e9, marks=pytest.mark.slow)],
)
def test_convolutions_equal_published_counts(architecture, multiplications):
    """torchvision's table has 1.814 and 4.089 GFLOPS for 224 px, with the classifier's 0.0005 and 0.002."""
    counted = step_flops(build(architecture), 224, batch=1)["convolutions"]
    stem = 112 * 112 * 64 * 7 * 7 * 3
    assert counted == pytest.approx(2 * (4 * multiplications - stem), rel=1e-3)


def test_heads_and_losses_equal_a_count_by_hand():
    only_p5 = build("resnet18", image_weights=(0, 0, 0, 1), patch_weights=(0, 0, 0, 1), roi_sizes=(8, 4, 2, 3))
    counted = step_flops(only_p5, 96, batch=5)
    head = 2 * (512 * 512 + 512 * 128)
    assert counted["heads"] == 5 * 4 * (1 + 9) * head
    assert counted["losses"] == 5 * (1 + 9) * 2 * (2 * 512 + 1) * 128


def test_term_without_keys_has_no_key_pass_and_sends_none(monkeypatch):
    model = build("resnet18", image_weights=(0, 0, 0, 1), patch_weights=(0, 0, 0, 0))

    def costs():
        return step_flops(model, 96, batch=5)["heads"], step_traffic(model, 96, batch=5)["gathered"]["keys"]

    flops, sent = costs()
    monkeypatch.setattr(type(model.terms[0]), "needs_keys", False)
    assert sent == 5 * 4 * 128 and costs() == (flops * 3 // 4, 0)


def test_activations_are_of_a_group_in_its_precision(model):
    counts = count(TINY, 1, gpu=False, model=model)
    assert counts.memory["activations of 4 images"] == 4 * counts.activations
    half = TINY.model_copy(update={"train": TINY.train.model_copy(update={"precision": "bfloat16"})})
    assert 2 * count(half, 1, gpu=False, model=model).activations == counts.activations


def test_backbone_without_cost_counts_zero(monkeypatch):
    monkeypatch.delattr(ResNetBackbone, "cost")
    counts = count(TINY, 1, gpu=False)
    assert counts.flops["convolutions"] == counts.activations == 0 < counts.flops["heads"]
