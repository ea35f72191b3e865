"""Tests both forms of RoIAlign against hand-made cases and the float64 definition."""

import functools
import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from dupr_tf import ops
from dupr_tf.data.views import intersect_views
from dupr_tf.weights.formats import installed
from tests import oracles

FEW = settings(max_examples=8, deadline=None, derandomize=True, database=None)
FORMS = {"separable": ops.roi_align, "reference": ops.roi_align_reference}
# crop_and_resize has no XLA kernel, so the reference form is not compiled.
WAYS = [(form, mode) for form in FORMS for mode in ("eager", "graph")] + [("separable", "xla")]
every_way = pytest.mark.parametrize(("form", "mode"), WAYS)
# It runs as a separate program, because PyTorch and TensorFlow in one process can crash.
TORCHVISION = """
import numpy as np, torch, torchvision
given = np.load("given.npz")
features = torch.tensor(given["features"].transpose(0, 3, 1, 2), requires_grad=True)
boxes = [torch.tensor(of_image[:, [1, 0, 3, 2]]) for of_image in given["boxes"]]
pooled = torchvision.ops.roi_align(features, boxes, 5, 1 / 16, int(given["ratio"]), aligned=True)
pooled.backward(torch.tensor(given["upstream"].reshape(-1, 5, 5, 3).transpose(0, 3, 1, 2)))
np.savez("theirs.npz", pooled=pooled.detach().numpy(), gradient=features.grad.numpy())
"""


@functools.cache
def function(form, mode, output_size, spatial_scale, sampling_ratio):
    """Returns a function that is traced once for each static setting, so that examples do not trace again."""

    def call(features, boxes, flipped):
        return FORMS[form](features, boxes, output_size, spatial_scale, sampling_ratio, flipped)

    return call if mode == "eager" else tf.function(call, jit_compile=mode == "xla")


def align(
    form,
    mode,
    features,
    boxes,
    output_size,
    spatial_scale=1.0,
    sampling_ratio=1,
    flipped=None,
    dtype="float32",
):
    call = function(form, mode, output_size, spatial_scale, sampling_ratio)
    flipped = None if flipped is None else tf.constant(flipped, tf.bool)
    return call(tf.constant(features, dtype), tf.constant(boxes, tf.float32), flipped).numpy()


def ramp(height, width):
    """Cell (i, j) holds the input coordinates of its centre, (i + 0.5, j + 0.5)."""
    rows, columns = np.meshgrid(np.arange(height) + 0.5, np.arange(width) + 0.5, indexing="ij")
    return np.stack([rows, columns], -1)


# --- by hand -----------------------------------------------------------------------------------------


@every_way
@pytest.mark.parametrize("sampling_ratio", [1, 2])
def test_ramp_gives_bin_centres(form, mode, sampling_ratio):
    features, boxes = np.stack([ramp(8, 8)] * 2), [[1.0, 2.0, 7.0, 5.0], [1.0, 2.0, 7.0, 5.0]]
    out = align(form, mode, features, boxes, 3, sampling_ratio=sampling_ratio, flipped=[False, True])
    assert out.shape == (2, 3, 3, 2)
    np.testing.assert_allclose(out[:, :, 1, 0], [[2, 4, 6]] * 2, atol=1e-5)
    np.testing.assert_allclose(out[:, 1, :, 1], [[2.5, 3.5, 4.5], [4.5, 3.5, 2.5]], atol=1e-5)


@every_way
def test_whole_view_at_its_own_resolution_is_the_feature_map(form, mode):
    features = np.random.default_rng(0).normal(size=(1, 7, 7, 2))
    out = align(form, mode, features, [[0, 0, 224, 224]], 7, 1 / 32)
    np.testing.assert_allclose(out, features, atol=1e-5)


@every_way
def test_border_samples_take_the_border_cell(form, mode):
    out = align(form, mode, ramp(4, 4)[None], [[0.0, 0.0, 4.0, 4.0]], 16)
    expected = [0.5, 0.5, *np.arange(0.625, 3.5, 0.25), 3.5, 3.5]
    np.testing.assert_allclose(out[0, :, 0, 0], expected, atol=1e-5)
    np.testing.assert_allclose(out[0, 0, :, 1], expected, atol=1e-5)


@every_way
def test_samples_more_than_a_cell_outside_are_zero(form, mode):
    # Centres of bins, in cells. Rows: -2, -0.9, 0.2 and 1.3. Columns: 2.5, 3.6, 4.7 and 5.8.
    out = align(form, mode, ramp(4, 4)[None], [[-2.05, 2.45, 2.35, 6.85]], 4)
    expected = np.zeros((4, 4, 2))
    expected[1:, :2] = np.stack(np.meshgrid([0.5, 0.7, 1.8], [3.0, 3.5], indexing="ij"), -1)
    np.testing.assert_allclose(out[0], expected, atol=1e-5)


@every_way
def test_box_of_no_area_reads_its_point(form, mode):
    out = align(form, mode, ramp(4, 4)[None], [[2.0, 1.25, 2.0, 1.25]], 2)
    np.testing.assert_allclose(out, np.broadcast_to([2.0, 1.25], (1, 2, 2, 2)), atol=1e-5)


@every_way
def test_rectangular_grid_has_rows_and_columns(form, mode):
    features = np.random.default_rng(1).normal(size=(1, 6, 5, 2))
    box = [[8.0, 4.0, 90.0, 77.0]]
    out = align(form, mode, features, box, (2, 5), 1 / 16, 2, [True])
    assert out.shape == (1, 2, 5, 2)
    expected = oracles.roi_align(features, box, (2, 5), 1 / 16, 2, [True])
    np.testing.assert_allclose(out, expected, atol=1e-5)


# --- against the definition --------------------------------------------------------------------------


@st.composite
def cases(draw):
    """Draws features [2, H, W, 2] and boxes [2, 3, 4].

    Corners lie on, across, inside or far outside the borders.
    """
    height, width = draw(st.sampled_from([(7, 9), (1, 4)]))
    rng = np.random.default_rng(draw(st.integers(0, 2**16)))
    edge = st.one_of(st.sampled_from([0, 1000]), st.integers(-600, 1600))
    boxes = np.array([[[draw(edge) for _ in range(4)] for _ in range(3)] for _ in range(2)]) / 1000
    corners = np.sort(boxes.reshape(2, 3, 2, 2), axis=2).reshape(2, 3, 4)
    boxes = np.float32(corners * np.tile([height, width], 2) * 16) + np.float32(0.011)  # off the jump one cell outside
    flipped = [draw(st.booleans()), draw(st.booleans())]
    return rng.normal(size=(2, height, width, 2)).astype(np.float32), boxes, flipped


@every_way
@pytest.mark.parametrize(("output_size", "sampling_ratio"), [(7, 1), (3, 2)])
@FEW
@given(case=cases())
def test_equals_the_definition(form, mode, output_size, sampling_ratio, case):
    features, boxes, flipped = case
    out = align(form, mode, features, boxes, output_size, 1 / 16, sampling_ratio, flipped)
    expected = oracles.roi_align(features, boxes, output_size, 1 / 16, sampling_ratio, flipped)
    assert out.shape == (2, 3, output_size, output_size, 2)
    np.testing.assert_allclose(out, expected, atol=1e-5)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("sampling_ratio", [1, 3])
def test_values_and_gradients_equal_those_of_torchvision(form, sampling_ratio, tmp_path):
    if not installed("torchvision"):
        pytest.skip("torchvision is not installed")
    rng = np.random.default_rng(6)
    features = rng.normal(size=(2, 9, 7, 3)).astype(np.float32)
    first = rng.uniform(-60, 140, (2, 40, 2))  # the map shows 144 x 112 px
    boxes = np.concatenate([first, first + rng.uniform(0, 150, (2, 40, 2))], -1).astype(np.float32)
    upstream = rng.normal(size=(2, 40, 5, 5, 3)).astype(np.float32)
    variable = tf.Variable(features)
    with tf.GradientTape() as tape:
        out = FORMS[form](variable, boxes, 5, 1 / 16, sampling_ratio)
    gradient = tape.gradient(out, variable, upstream)
    np.savez(tmp_path / "given.npz", features=features, boxes=boxes, upstream=upstream, ratio=sampling_ratio)
    subprocess.run([sys.executable, "-c", TORCHVISION], cwd=tmp_path, check=True)
    theirs = np.load(tmp_path / "theirs.npz")
    expected = theirs["pooled"].transpose(0, 2, 3, 1).reshape(upstream.shape)
    assert np.any(np.all(expected == 0, axis=-1)) and np.any(expected != 0)  # some samples lie far outside
    np.testing.assert_allclose(out, expected, atol=2e-5)
    np.testing.assert_allclose(gradient, theirs["gradient"].transpose(0, 2, 3, 1), atol=2e-4)


@every_way
def test_single_box_equals_the_first_of_several(form, mode):
    rng = np.random.default_rng(2)
    features = rng.normal(size=(3, 5, 5, 2))
    boxes = np.sort(rng.uniform(0, 80, (3, 2, 2)), axis=1).reshape(3, 4)
    flipped = [True, False, True]
    single = align(form, mode, features, boxes, 4, 1 / 16, 1, flipped)
    several = align(form, mode, features, boxes[:, None], 4, 1 / 16, 1, flipped)
    np.testing.assert_array_equal(single, several[:, 0])
    np.testing.assert_array_equal(
        align(form, mode, features, boxes, 4, 1 / 16),
        align(form, mode, features, boxes, 4, 1 / 16, 1, [False] * 3),
    )


# --- gradient, dtypes, shapes ------------------------------------------------------------------------


@every_way
def test_gradient_is_the_adjoint_of_the_definition(form, mode):
    rng = np.random.default_rng(3)
    features, other = rng.normal(size=(2, 1, 6, 6, 2))
    boxes, upstream = [[0.0, 10.0, 96.0, 170.0]], rng.normal(size=(1, 4, 4, 2))  # its right end is outside
    call = function(form, mode, 4, 1 / 16, 2)
    variable = tf.Variable(features, dtype=tf.float32)
    with tf.GradientTape() as tape:
        out = call(variable, tf.constant(boxes), tf.constant([True]))
        scalar = tf.reduce_sum(out * tf.constant(upstream, tf.float32))
    gradient = tape.gradient(scalar, variable).numpy()
    # RoIAlign is linear in the features: <gradient, other> = <upstream, RoIAlign(other)> for any other map.
    expected = np.sum(upstream * oracles.roi_align(other, boxes, 4, 1 / 16, 2, [True]))
    assert np.sum(gradient * other) == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@every_way
def test_half_precision_features_keep_dtype_and_place(form, mode, dtype):
    # At 400 px bfloat16 holds even numbers only. A box cast to it would be a quarter of a P2 cell off.
    features = np.random.default_rng(5).integers(0, 2, (1, 8, 112, 2))
    box = [[3.0, 333.0, 27.0, 411.0]]
    out = align(form, mode, features, box, 7, 1 / 4, dtype=dtype)
    assert out.dtype == tf.as_dtype(dtype).as_numpy_dtype
    np.testing.assert_allclose(out.astype(np.float64), oracles.roi_align(features, box, 7, 1 / 4), atol=0.01)


@pytest.mark.parametrize("form", FORMS)
def test_unknown_shapes_are_accepted(form):
    signature = [
        tf.TensorSpec([None, None, None, 2], tf.float32),
        tf.TensorSpec([None, None, 4], tf.float32),
        tf.TensorSpec([None], tf.bool),
    ]
    call = tf.function(lambda f, b, flip: FORMS[form](f, b, 3, 1 / 8, 2, flip), input_signature=signature)
    rng = np.random.default_rng(4)
    for height, width, number in ((5, 3, 1), (2, 8, 4)):
        features = rng.normal(size=(2, height, width, 2)).astype(np.float32)
        corners = np.sort(rng.uniform(0, 1, (2, number, 2, 2)), axis=2)
        boxes = np.float32(corners * [8 * height, 8 * width]).reshape(2, number, 4)
        out = call(features, boxes, [False, True])
        expected = oracles.roi_align(features, boxes, 3, 1 / 8, 2, [False, True])
        np.testing.assert_allclose(out, expected, atol=1e-5)


# --- the purpose: the same place in both views -------------------------------------------------------


@pytest.mark.parametrize("flipped_1", [False, True])
@pytest.mark.parametrize("flipped_2", [False, True])
def test_patches_of_two_views_show_the_same_place(flipped_1, flipped_2):
    crops = np.array([[[20.0, 10.0, 180.0, 330.0]], [[60.0, 100.0, 460.0, 420.0]]])
    flips = flipped_1, flipped_2
    cells = ramp(14, 14)[None] / 14  # 0..1 within the view
    boxes = intersect_views(*crops, *np.array(flips)[:, None], 224)
    assert boxes[2][0]
    patches = []
    for crop, flip, box in zip(crops[:, 0], flips, boxes[:2], strict=True):
        shown = cells[:, :, ::-1] if flip else cells
        source = crop[:2] + shown * (crop[2:] - crop[:2])  # each cell encodes its place in the source
        patches.append(ops.roi_align(tf.constant(source, tf.float32), box, 4, 1 / 16, 1, tf.constant([flip])))
    np.testing.assert_allclose(patches[0], patches[1], atol=1e-3)
    # The overlap is (60, 100, 180, 330). Its four columns have their centres at 100 + 230 (j + 1/2) / 4.
    np.testing.assert_allclose(patches[0][0, 0, :, 1], [128.75, 186.25, 243.75, 301.25], atol=1e-3)
    np.testing.assert_allclose(patches[0][0, :, 0, 0], [75.0, 105.0, 135.0, 165.0], atol=1e-3)


def test_box_of_nan_gives_nan():
    boxes = tf.constant([[np.nan] * 4, [0.0, 0.0, 4.0, 4.0]])
    samples = ops.roi_align(tf.ones([2, 4, 4, 3]), boxes, 2).numpy()
    assert np.isnan(samples[0]).all() and (samples[1] == 1.0).all()
