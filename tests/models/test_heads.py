"""Tests of the projection heads: their initial values, and unit-length embeddings in every precision."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from dupr_tf.errors import UserError
from dupr_tf.models import ProjectionHead


def built(kind="mlp", channels=400, dim=300, dtype="float32"):
    keras.utils.set_random_seed(0)
    head = ProjectionHead(dim, kind, dtype=dtype)
    head.build((None, channels))
    return head


def test_heads_start_as_linear_layers_of_pytorch():
    """Kernels and biases are uniform within 1 / sqrt(fan_in)."""
    head, limit = built(), 400**-0.5
    assert [tuple(v.shape) for v in head.variables] == [(400, 400), (400,), (400, 300), (300,)]
    for variable in head.variables:
        values = variable.numpy()
        assert 0.95 * limit < np.abs(values).max() <= limit
        assert np.std(values) == pytest.approx(limit / 3**0.5, rel=0.1)


def test_linear_head_has_one_layer():
    assert [tuple(v.shape) for v in built("linear").variables] == [(400, 300), (300,)]


@pytest.mark.parametrize("dtype", ["float32", "mixed_bfloat16", "mixed_float16"])
def test_embeddings_are_float32_of_unit_length(dtype):
    features = tf.random.stateless_normal([2, 3, 3, 400], [1, 2])
    embeddings = built(dtype=dtype)(features)
    assert embeddings.dtype == tf.float32
    np.testing.assert_allclose(np.linalg.norm(embeddings, axis=-1), 1.0, atol=1e-6)


def test_unknown_kind_of_head_is_refused():
    with pytest.raises(UserError) as error:
        ProjectionHead(8, "deep")
    assert error.value.field == "head"
