"""Tests `intersect_views` and `box_in_view` against hand-made cases and the oracle."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dupr_tf.data.views import box_in_view, intersect_views
from tests import oracles

FEW = settings(max_examples=25, deadline=None, derandomize=True, database=None)
VIEW = 224


def intersect(crop_1, crop_2, flipped_1, flipped_2, **options):
    return intersect_views(crop_1, crop_2, np.array(flipped_1), np.array(flipped_2), VIEW, **options)


def test_literal_pairs():
    crop_1 = [[0, 0, 224, 224]] * 4 + [[10, 20, 122, 468]]
    crop_2 = [[0, 112, 224, 336]] * 4 + [[66, 244, 290, 300]]
    flipped_1 = [False, True, False, True, False]
    flipped_2 = [False, False, True, True, True]
    boxes_1, boxes_2, valid = intersect(crop_1, crop_2, flipped_1, flipped_2)
    right, left = [0, 112, 224, 224], [0, 0, 224, 112]
    # Row 4: overlap (66, 244, 122, 300). View 1 has y doubled, x halved; view 2 y kept, x times 4, flipped.
    np.testing.assert_allclose(boxes_1, [right, left, right, left, [112, 112, 224, 140]], atol=1e-4)
    np.testing.assert_allclose(boxes_2, [left, left, right, right, [0, 0, 56, 224]], atol=1e-4)
    np.testing.assert_array_equal(valid, [True, True, True, True, False])  # 28 px wide in view 1
    assert boxes_1.dtype == boxes_2.dtype == np.float32
    assert valid.dtype == bool


def test_flip_of_an_overlap_off_the_middle():
    boxes_1, boxes_2, _ = intersect([[0, 0, 224, 224]], [[50, 100, 162, 212]], [True], [False])
    np.testing.assert_allclose(boxes_1, [[50, 12, 162, 124]], atol=1e-4)
    np.testing.assert_allclose(boxes_2, [[0, 0, 224, 224]], atol=1e-4)


def test_crops_without_overlap_are_invalid_whole_views():
    crop_2 = [[0, 100, 100, 200], [100, 0, 200, 100], [300, 300, 400, 400]]
    no = [False, True, False]
    boxes_1, boxes_2, valid = intersect([[0, 0, 100, 100]] * 3, crop_2, no, no)
    for boxes in (boxes_1, boxes_2):
        np.testing.assert_array_equal(boxes, [[0, 0, VIEW, VIEW]] * 3)
    assert not valid.any()


@pytest.mark.parametrize("axis", [0, 1])
def test_overlap_of_exactly_one_p5_cell_is_valid(axis):
    # A seventh of the crop is 32 px of the view. The division must not lose it to rounding.
    sides = np.arange(7.0, 700.0, 7.0)
    crop_1 = np.zeros((len(sides), 4))
    crop_1[:, 2:] = sides[:, None]
    crop_2 = crop_1.copy()
    crop_2[:, [axis, axis + 2]] += (sides * 6 / 7)[:, None]
    no = np.zeros(len(sides), bool)
    assert intersect(crop_1, crop_2, no, no)[2].all()
    crop_2[:, [axis, axis + 2]] += (sides / 1000)[:, None]  # 0.2 px less
    assert not intersect(crop_1, crop_2, no, no)[2].any()
    assert intersect(crop_1, crop_2, no, no, min_overlap=31.0)[2].all()


def test_validity_needs_both_views():
    crop_1, crop_2 = [[0, 0, 112, 112]], [[92, 0, 316, 224]]  # 20 source rows: 40 px of view 1, 20 px of view 2
    for one, other in ((crop_1, crop_2), (crop_2, crop_1)):
        assert not intersect(one, other, [False], [False])[2].any()
        assert intersect(one, other, [False], [False], min_overlap=20.0)[2].all()


@st.composite
def pairs(draw):
    def crop():
        y0, x0 = draw(st.integers(0, 300)), draw(st.integers(0, 300))
        return [y0, x0, y0 + draw(st.integers(16, 400)), x0 + draw(st.integers(16, 400))]

    flips = [[draw(st.booleans()) for _ in range(6)] for _ in range(2)]
    return [[crop() for _ in range(6)] for _ in range(2)], flips


@FEW
@given(pair=pairs())
def test_agrees_with_the_oracle(pair):
    (crop_1, crop_2), (flipped_1, flipped_2) = pair
    expected_1, expected_2, expected_valid = oracles.intersect_views(crop_1, crop_2, flipped_1, flipped_2, VIEW)
    boxes_1, boxes_2, valid = intersect(crop_1, crop_2, flipped_1, flipped_2)
    exists = ~np.isnan(expected_1[:, 0])
    for boxes, expected in ((boxes_1, expected_1), (boxes_2, expected_2)):
        np.testing.assert_allclose(boxes[exists], expected[exists], rtol=1e-5, atol=1e-4)
        assert np.all(boxes[~exists] == [0, 0, VIEW, VIEW])
    both = np.concatenate([expected_1, expected_2], axis=1)
    sides = np.min(both[:, [2, 3, 6, 7]] - both[:, [0, 1, 4, 5]], axis=1)
    clear = ~(np.abs(sides - 32) < 0.01)  # at the threshold itself, rounding may decide
    np.testing.assert_array_equal(valid[clear], expected_valid[clear])


@pytest.mark.parametrize("flipped", [False, True])
def test_box_outside_the_crop_lies_outside_the_view(flipped):
    box, crop = (30.0, 10.0, 90.0, 60.0), (40, 20, 80, 100)
    found = box_in_view(np.array(box), np.array(crop), np.array(flipped), VIEW)
    np.testing.assert_allclose(found, oracles.to_view(box, crop, flipped, VIEW))
    np.testing.assert_allclose(found[[0, 2]], [-56, 280])
    np.testing.assert_allclose(found[[1, 3]], [112, 252] if flipped else [-28, 112])


def test_leading_axes_and_single_pairs_agree():
    crop_1 = np.array([[[0, 0, 224, 224], [5, 7, 205, 157]]])
    crop_2 = np.array([[[30, 60, 300, 300], [100, 20, 180, 150]]])
    flipped_1, flipped_2 = np.array([[True, False]]), np.array([[True, True]])
    batch = intersect(crop_1, crop_2, flipped_1, flipped_2)
    for k in range(2):
        single = intersect(crop_1[0, k], crop_2[0, k], flipped_1[0, k], flipped_2[0, k])
        for whole, part in zip(batch, single, strict=True):
            np.testing.assert_array_equal(whole[0, k], part)
