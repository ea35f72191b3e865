"""Tests of masks as run lengths: every valid form, every invalid form, and crops of them."""

import collections

import numpy as np
import pytest

from dupr_tf.data.labels.run_lengths import (
    NO_MASK,
    NO_POLYGON,
    OTHER_MASK,
    area_of,
    crop_masks,
    mask_from_pixels,
    mask_of_box,
    pixels_of,
    read_mask,
)

SIZE = (4, 5)
TRIANGLE = [0, 0, 4, 0, 4, 3]


def random_masks():
    rng = np.random.default_rng(0)
    for share in (0, 0.02, 0.5, 0.98, 1):
        for _ in range(20):
            yield rng.random(rng.integers(1, 70, 2)) < share


def test_every_form_of_a_mask_decodes_to_its_pixels():
    for pixels in random_masks():
        counts = collections.Counter()
        flat, size = pixels.T.ravel(), list(pixels.shape)
        edges = np.concatenate([[0], np.flatnonzero(np.diff(flat)) + 1, [flat.size]])
        runs = ([0] if flat[0] else []) + np.diff(edges).tolist()
        packed = mask_from_pixels(pixels)
        for form in (packed, {"size": size, "counts": runs}, {"size": size, "counts": packed.decode()}):
            read = read_mask(form, size, counts)
            if pixels.any():
                np.testing.assert_array_equal(pixels_of(read, size), pixels)
            else:
                assert read is None or area_of(read, size) == 0
        assert not counts


def test_long_runs_survive_the_packing():
    pixels = np.zeros((1024, 2048), bool)
    pixels[100:900, 1000:1100] = True
    packed = mask_from_pixels(pixels)
    assert read_mask({"size": [1024, 2048], "counts": packed}, (1024, 2048), collections.Counter()) == packed
    assert area_of(packed, pixels.shape) == 800 * 100


def test_polygons_are_united():
    read = read_mask([[0, 0, 2, 0, 2, 2, 0, 2], [3, 2, 5, 2, 5, 4, 3, 4]], SIZE, collections.Counter())
    expected = np.zeros(SIZE)
    expected[:2, :2] = expected[2:, 3:] = 1
    np.testing.assert_array_equal(pixels_of(read, SIZE), expected)


@pytest.mark.parametrize(
    ("segmentation", "what"),
    [
        ([[1, 2, 3]], NO_POLYGON),
        ([[1, 2, 3, 4]], NO_POLYGON),  # pycocotools would read it as a box
        ([[1, 2, 3, 4, 5, 6, 7]], NO_POLYGON),
        ([[1, 2, 3, 4, float("nan"), 6]], NO_POLYGON),
        ([[1, 2, 3, 4, float("inf"), 6]], NO_POLYGON),
        ([[1, 2, 3, 4, 10**400, 6]], NO_POLYGON),
        ([["a", 2, 3, 4, 5, 6]], NO_POLYGON),
        ([7], NO_POLYGON),
        ([[[1, 2], [3, 4], [5, 6]]], NO_POLYGON),
        (7, NO_MASK),
        (True, NO_MASK),
        ({"counts": [20]}, NO_MASK),
        ({"size": [4, 5], "counts": [1, 2]}, NO_MASK),  # 3 of 20 pixels: the rest is undefined
        ({"size": [4, 5], "counts": [5, -2, 17]}, NO_MASK),
        ({"size": [4, 5], "counts": [10**400]}, NO_MASK),
        ({"size": [4, 5], "counts": [float("inf")]}, NO_MASK),
        ({"size": [4, 5], "counts": {"a": 1}}, NO_MASK),
        ({"size": [4, 5], "counts": "zzzzzz"}, NO_MASK),
        ({"size": [4, 5], "counts": "P"}, NO_MASK),  # the code announces more, and nothing follows
        ({"size": [4, 5], "counts": "5?P"}, NO_MASK),
        ({"size": [4, 5], "counts": "é"}, NO_MASK),
        ({"size": [5, 4], "counts": [0, 20]}, OTHER_MASK),
        ({"size": [4, 5, 1], "counts": [0, 20]}, OTHER_MASK),
    ],
)
def test_invalid_mask_is_none_and_counted(segmentation, what):
    counts = collections.Counter()
    assert read_mask(segmentation, SIZE, counts) is None
    assert counts == {what: 1}


@pytest.mark.parametrize("segmentation", [None, [], {"size": [4, 5], "counts": [20]}, [[50, 50, 60, 50, 60, 60]]])
def test_mask_without_a_pixel_is_none(segmentation):
    assert read_mask(segmentation, SIZE, collections.Counter()) is None


def test_valid_polygon_counts_despite_an_invalid_one():
    counts = collections.Counter()
    assert area_of(read_mask([TRIANGLE, [1, 2]], SIZE, counts), SIZE) > 0
    assert counts == {NO_POLYGON: 1}


def test_points_far_outside_take_no_time_and_no_memory():
    read = read_mask([[-1e300, -1e300, 1e300, -1e300, 1e300, 1e300, -1e300, 1e300]], SIZE, collections.Counter())
    assert area_of(read, SIZE) == 20


def test_box_becomes_a_mask_of_its_pixels():
    expected = np.zeros(SIZE)
    expected[1:3, 2:5] = 1
    np.testing.assert_array_equal(pixels_of(mask_of_box(np.array([2, 1, 5, 3]), SIZE), SIZE), expected)


def test_crop_of_whole_cells_equals_the_pixels():
    rng = np.random.default_rng(0)
    pixels = rng.random((12, 20)) < 0.5
    (crop,) = crop_masks([mask_from_pixels(pixels)], pixels.shape, [[4, 2, 12, 10]], side=8)
    np.testing.assert_array_equal(crop, pixels[2:10, 4:12])
    (doubled,) = crop_masks([mask_from_pixels(pixels)], pixels.shape, [[4, 2, 12, 10]], side=16)
    np.testing.assert_array_equal(doubled, pixels[2:10, 4:12].repeat(2, 0).repeat(2, 1))


def test_cell_is_one_if_half_of_it_is_covered():
    pixels = np.zeros((4, 8), bool)
    pixels[:, 3:] = True  # The box has two cells: the left one is covered by a quarter, the right one completely.
    packed = [mask_from_pixels(pixels)]
    np.testing.assert_array_equal(crop_masks(packed, (4, 8), [[0, 0, 8, 4]], side=2)[0], [[0, 1]] * 2)
    # From 2 to 4: exactly half.
    np.testing.assert_array_equal(crop_masks(packed, (4, 8), [[2, 0, 4, 4]], side=1)[0], [[1]])
    # From 1.9: slightly less than half.
    np.testing.assert_array_equal(crop_masks(packed, (4, 8), [[1.9, 0, 4, 4]], side=1)[0], [[0]])


def test_crops_agree_with_a_fine_grid():
    """Compares a mask sampled at many points of each cell with the exact areas."""
    rng = np.random.default_rng(1)
    pixels = rng.random((15, 11)) < 0.5
    box, side, fine = np.array([1.3, 2.7, 9.8, 13.1]), 5, 200
    xs, ys = (np.floor(np.linspace(box[i], box[i + 2], side * fine, endpoint=False) + 1e-4).astype(int) for i in (0, 1))
    shares = pixels[ys][:, xs].reshape(side, fine, side, fine).mean((1, 3))
    clear = np.abs(shares - 0.5) > 0.02
    (crop,) = crop_masks([mask_from_pixels(pixels)], pixels.shape, box[None], side)
    np.testing.assert_array_equal(crop[clear], (shares > 0.5)[clear])
    assert clear.sum() > 15


def test_box_of_less_than_a_pixel_at_the_border_is_cropped():
    pixels = np.ones((4, 8), bool)
    for box in ([7.6, 3.6, 8, 4], [0, 0, 0.1, 0.1], [8 - 1e-6, 0, 8, 4], [8, 4, 8, 4]):
        assert crop_masks([mask_from_pixels(pixels)], (4, 8), [box])[0].all()
    assert crop_masks([], (4, 8), np.zeros((0, 4))).shape == (0, 56, 56)
