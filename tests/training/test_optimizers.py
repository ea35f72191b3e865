"""Tests of optimisers: each variable's learning rate and decay, and their results without any factors."""

import json
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf

from dupr_tf.config import parse_config
from dupr_tf.errors import UserError
from dupr_tf.training.optimizers import AdamW, AfterChange, Cosine, CoupledSGD, Milestones, build_schedule

ROOT = Path(__file__).parents[2]
GRADIENTS = [np.array([0.3, -0.2, 0.5], np.float32) * (step + 1) for step in range(4)]


def variables(*names):
    with keras.name_scope("part"):
        return [keras.Variable(np.array([1.0, -2.0, 3.0], np.float32), name=name) for name in names]


def trained(optimizer, *names):
    """Returns {name: value} after the steps of GRADIENTS."""
    trained = variables(*names)
    optimizer.build(trained)
    step = tf.function(lambda gradient: optimizer.apply([gradient] * len(trained)), autograph=False)
    for gradient in GRADIENTS:
        step(tf.constant(gradient))
    return {variable.name: variable.numpy() for variable in trained}


def sgd_by_hand(rate, decay):
    value, velocity = np.array([1.0, -2.0, 3.0]), np.zeros(3)
    for gradient in GRADIENTS:
        velocity = 0.9 * velocity + gradient + decay * value
        value = value - rate * velocity
    return value


def adam_by_hand(rate, decay):
    """`decay` is per step: learning rate times weight decay."""
    value, m, v = np.array([1.0, -2.0, 3.0]), np.zeros(3), np.zeros(3)
    for step, gradient in enumerate(GRADIENTS, 1):
        value = value - decay * value
        m, v = 0.9 * m + 0.1 * gradient, 0.999 * v + 0.001 * gradient**2
        value = value - rate * (m / (1 - 0.9**step)) / (np.sqrt(v / (1 - 0.999**step)) + 1e-7)
    return value


FACTORS = {"rate_factors": {"part/slow": 0.25}, "decay_factors": {"part/bare": 0.0, "part/slow": 2.0}}


def test_sgd_applies_rate_and_decay_factors_by_variable():
    values = trained(CoupledSGD(0.1, 0.9, 0.01, **FACTORS), "plain", "slow", "bare")
    expected = {"plain": (0.1, 0.01), "slow": (0.025, 0.02), "bare": (0.1, 0.0)}
    for name, arguments in expected.items():
        np.testing.assert_allclose(values[name], sgd_by_hand(*arguments), rtol=1e-5)


def test_adamw_applies_rate_and_decay_factors_by_variable():
    values = trained(AdamW(0.1, 0.3, **FACTORS), "plain", "slow", "bare")
    expected = {"plain": (0.1, 0.03), "slow": (0.025, 0.06), "bare": (0.1, 0.0)}
    for name, arguments in expected.items():
        np.testing.assert_allclose(values[name], adam_by_hand(*arguments), rtol=1e-4)


def test_adamw_without_factors_is_that_of_keras():
    ours = trained(AdamW(0.1, 0.3, global_clipnorm=0.5), "plain", "other")
    theirs = trained(keras.optimizers.AdamW(0.1, weight_decay=0.3, global_clipnorm=0.5), "plain", "other")
    for name in ours:  # Keras rounds 1 - 0.999 in another way
        np.testing.assert_allclose(ours[name], theirs[name], rtol=1e-5)


def test_adamw_refuses_amsgrad():
    with pytest.raises(UserError) as error:
        AdamW(amsgrad=True)
    assert error.value.field == "amsgrad"


@pytest.mark.parametrize("kind", [CoupledSGD, AdamW])
def test_optimizer_with_factors_survives_its_config(kind):
    again = kind.from_config(kind(0.1, **FACTORS).get_config())
    assert (again.rate_factors, again.decay_factors) == (FACTORS["rate_factors"], FACTORS["decay_factors"])


@pytest.mark.parametrize("schedule", [
    Cosine(0.3, 50, hold_steps=10, warmup_steps=7), Milestones(0.3, (20, 40), warmup_steps=7),
    AfterChange(Cosine(0.3, 50, hold_steps=10), 12, factor=0.5, warmup_steps=7),
])  # fmt: skip
def test_schedules_survive_their_config(schedule):
    again = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(schedule))
    rates = [[float(one(step)) for step in range(50)] for one in (schedule, again)]
    assert rates[0] == rates[1] and len(set(rates[0])) > 7


@pytest.mark.parametrize(("settings", "falls"), [({"milestones": [1.5, 2]}, [12, 16]), ({"milestone_steps": [5]}, [5])])
def test_milestones_are_steps_or_parts_of_epochs(settings, falls):
    config = parse_config({"optimizer": {"learning_rate": 1.0, "schedule": "milestones", **settings}})
    rates = [float(build_schedule(config, 8, 24)(step)) for step in range(24)]
    assert [step for step in range(1, 24) if rates[step] < rates[step - 1]] == falls


@pytest.mark.parametrize("names", [("other",), ("slow", "slow")])
def test_factors_of_no_variable_or_of_several_are_refused(names):
    with pytest.raises(UserError) as error:
        CoupledSGD(0.1, rate_factors={"part/slow": 0.5}).build(variables(*names))
    assert error.value.field == "rate_factors" and "part/slow" in error.value.problem


@pytest.mark.parametrize("optimizer", [CoupledSGD(0.1, 0.9, 0.01), AdamW(0.1, 0.3)])
def test_optimizer_computes_nothing_large_before_its_gradient(optimizer):
    graph = step_graph(optimizer)
    waiting = {graph.inputs[0].op.name}  # names of the operations that need the gradient, in the order of the graph
    for operation in graph.get_operations():
        needed = [*(tensor.op for tensor in operation.inputs), *operation.control_inputs]
        if any(one.name in waiting for one in needed):
            waiting.add(operation.name)
    early = [one.type for one in graph.get_operations() if one.name not in waiting and _has_shape(one, [3])]
    assert set(early) <= {"ReadVariableOp"}


def test_clipping_stores_no_squares_of_a_variables_size():
    graph = step_graph(CoupledSGD(0.1, 0.9, 0.01, global_clipnorm=0.5))
    assert "L2Loss" in {one.type for one in graph.get_operations()}
    assert not [one for one in graph.get_operations() if one.type == "Square" and _has_shape(one, [3])]


@pytest.mark.parametrize("broken", [np.nan, np.inf])
def test_clipping_spreads_what_is_not_finite(broken):
    optimizer, trained = CoupledSGD(0.1, global_clipnorm=0.5), variables("plain", "other")
    optimizer.build(trained)
    optimizer.apply([tf.constant([broken, 0.0, 0.0]), tf.ones(3)])
    assert not np.isfinite(trained[1].numpy()).any()


def test_replicas_clip_and_skip_as_one_device():
    code = [sys.executable, "-m", "tests.training.replica_steps"]
    done = subprocess.run(code, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    weights = json.loads(done.stdout)
    expected = {
        "clipped on one": [-0.6, -0.8], "clipped on two": [-0.6, -0.8], "below the limit": [-0.3, -0.4],
        "scaled": [-3, -4], "overflow on the first": [0, 0], "overflow on the second": [0, 0], "both": [-0.6, -0.8],
    }  # fmt: skip
    assert weights == {name: pytest.approx(values, rel=1e-5) for name, values in expected.items()}


@pytest.mark.parametrize("optimizer", [CoupledSGD, AdamW])
def test_decay_of_keras_is_refused(optimizer):
    with pytest.raises(UserError) as error:
        optimizer(0.1, weight_decay=0.1)
    assert error.value.field == "weight_decay" and "coupled_decay" in error.value.fix


def step_graph(optimizer):
    """Returns the graph of a step on one variable of shape (3,)."""
    (variable,) = variables("plain")
    optimizer.build([variable])
    step = tf.function(lambda gradient: optimizer.apply([gradient], [variable]), autograph=False)
    return step.get_concrete_function(tf.TensorSpec([3])).graph


def _has_shape(operation, shape):
    return any(tensor.shape.as_list() == shape for tensor in operation.outputs if tensor.shape.rank is not None)
