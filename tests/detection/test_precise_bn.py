"""Compares precise batch norm with its definition, the mean of the statistics of the batches."""

import keras
import numpy as np
import pytest

from dupr_tf.detection.precise_bn import measure_norms
from dupr_tf.errors import UserError
from dupr_tf.models.layers import FusedBatchNormalization, norm_layers, set_norm


def model():
    keras.utils.set_random_seed(0)
    layers = [FusedBatchNormalization(momentum=0.9, name="a"), keras.layers.ReLU(), FusedBatchNormalization(name="b")]
    made = keras.Sequential([keras.Input((4, 4, 3)), *layers])
    made.get_layer("a").gamma.assign([0.5, 2.0, 1.5])
    made.get_layer("a").beta.assign([0.1, -0.2, 0.3])
    return made


def batches(count=3):
    rng = np.random.default_rng(1)
    return [rng.normal(i, 1 + i, (2 + i, 4, 4, 3)).astype(np.float32) for i in range(count)]  # of different sizes


def statistics(batch):
    rows = batch.reshape(-1, batch.shape[-1]).astype(np.float64)
    return rows.mean(0), rows.var(0, ddof=1)


def test_statistics_are_means_over_the_batches():
    made = model()
    assert measure_norms(made, batches()) == 3
    first = [statistics(batch) for batch in batches()]
    hidden = []
    for batch in batches():  # the second norm's input is normalised by the first with the batch's statistics
        rows = batch.reshape(-1, 3).astype(np.float64)
        normal = (rows - rows.mean(0)) / np.sqrt(rows.var(0) + made.get_layer("a").epsilon)
        shifted = normal * np.array([0.5, 2.0, 1.5]) + np.array([0.1, -0.2, 0.3])
        hidden.append(statistics(np.maximum(shifted, 0)))
    for name, found in (("a", first), ("b", hidden)):
        means, variances = zip(*found, strict=True)
        np.testing.assert_allclose(made.get_layer(name).moving_mean, np.mean(means, 0), rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(made.get_layer(name).moving_variance, np.mean(variances, 0), rtol=1e-4)


def test_other_variables_and_frozen_norms_stay_unchanged():
    made = model()
    set_norm(made, "frozen")
    made.get_layer("b").trainable = True
    before = [w.numpy() for w in made.trainable_variables], made.get_layer("a").moving_mean.numpy()
    measure_norms(made, batches())
    for weight, old in zip(made.trainable_variables, before[0], strict=True):
        np.testing.assert_array_equal(weight, old)
    np.testing.assert_array_equal(made.get_layer("a").moving_mean, before[1])
    assert np.abs(made.get_layer("b").moving_mean.numpy()).max() > 0
    assert [layer.momentum for layer in norm_layers(made)] == [0.9, 0.99]


@pytest.mark.parametrize("norm", ["train", "sync", "frozen"])
def test_layers_frozen_by_the_caller_stay_frozen(norm):
    made = model()
    made.get_layer("a").trainable = False
    set_norm(made, norm)
    assert [layer.trainable for layer in norm_layers(made)] == [False, norm != "frozen"]


def test_measuring_norms_without_batches_is_refused():
    made = model()
    with pytest.raises(UserError) as error:
        measure_norms(made, [])
    assert error.value.field == "batches"
    assert [layer.momentum for layer in norm_layers(made)] == [0.9, 0.99]
    set_norm(made, "frozen")
    assert measure_norms(made, []) == 0
    with pytest.raises(UserError) as error:
        set_norm(made, "half")
    assert error.value.field == "detector.norm" and "'half'" in error.value.problem
