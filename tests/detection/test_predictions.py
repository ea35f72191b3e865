"""Tests of masks pasted at full size, and of mapping a padded batch's detections to the original images."""

import numpy as np
import pytest
import tensorflow as tf

from dupr_tf.data.labels.run_lengths import area_of, crop_masks, mask_from_pixels, pixels_of
from dupr_tf.detection.predictions import convert_to_originals, paste_masks
from tests.detection.test_coco_eval import truth

SIZE = (40, 60)


def test_full_mask_fills_its_box():
    pixels = pixels_of(paste_masks(np.ones((1, 28, 28)), [[10, 5, 31, 25]], SIZE)[0], SIZE)
    expected = np.zeros(SIZE)
    expected[5:25, 10:31] = 1
    np.testing.assert_array_equal(pixels, expected)


def test_values_are_sampled_linearly_at_the_centres_of_pixels():
    mask = np.array([[[0.0, 1.0]]])  # over a box of 8 pixels, cells have their centres at 2 and 6
    row = pixels_of(paste_masks(mask, [[4, 0, 12, 1]], (1, 20))[0], (1, 20))[0]
    np.testing.assert_array_equal(np.flatnonzero(row), [8, 9, 10, 11])  # at 4.5 it reaches 0.625, at 3.5 it is 0.375
    row = pixels_of(paste_masks(mask, [[4, 0, 12, 1]], (1, 20), threshold=0.3)[0], (1, 20))[0]
    np.testing.assert_array_equal(np.flatnonzero(row), [7, 8, 9, 10, 11])


def test_boxes_beyond_the_image_keep_their_scale():
    mask = np.zeros((1, 28, 28))
    mask[0, :, 14:] = 1  # the right half
    pixels = pixels_of(paste_masks(mask, [[-20, -10, 20, 90]], SIZE)[0], SIZE)
    expected = np.zeros(SIZE)
    expected[:, :20] = 1  # the half that lies in the image
    np.testing.assert_array_equal(pixels, expected)


@pytest.mark.parametrize(
    "box", [[70, 5, 90, 20], [10, 10, 10, 20], [20, 20, 10, 10], [np.nan, 0, 5, 5], [-1, -1, -1, -1], [0, 0, np.inf, 5]]
)
def test_boxes_without_area_in_the_image_have_empty_masks(box):
    (mask,) = paste_masks(np.ones((1, 28, 28)), [box], SIZE)
    assert area_of(mask, SIZE) == 0
    assert paste_masks(np.zeros((0, 28, 28)), np.zeros((0, 4)), SIZE) == []


def test_pasting_undoes_cropping():
    y, x = np.mgrid[:40, :60]
    disc = ((y - 20) / 15) ** 2 + ((x - 30) / 22) ** 2 < 1
    box = np.array([[8, 5, 52, 35]])
    crop = crop_masks([mask_from_pixels(disc)], SIZE, box, side=28)
    back = pixels_of(paste_masks(crop, box, SIZE)[0], SIZE) > 0
    assert (back & disc).sum() / (back | disc).sum() > 0.96


def test_masks_do_not_affect_each_other():
    masks = paste_masks(np.ones((2, 14, 14)), [[0, 0, 60, 40], [5, 5, 6, 6]], SIZE)
    assert [area_of(mask, SIZE) for mask in masks] == [2400 - 4, 1]  # four corners, see below


def test_zeros_lie_around_a_mask_as_in_detectron2():
    """A cell spans several pixels here, so the pixels at a corner of the box get less than half of it."""
    pixels = pixels_of(paste_masks(np.ones((1, 14, 14)), [[2, 2, 58, 38]], SIZE)[0], SIZE)
    expected = np.zeros(SIZE)
    expected[2:38, 2:58] = 1
    for y, x in ((2, 2), (2, 57), (37, 2), (37, 57)):
        expected[y, x] = 0
    np.testing.assert_array_equal(pixels, expected)


@pytest.mark.parametrize("tensors", [False, True])
def test_batch_detections_map_to_original_pixels(tensors):
    scene = truth([], [], [])  # 200 x 200 px each
    result = {
        "boxes": np.array([[[10, 20, 30, 40], [90, 90, 130, 120]], [[0, 0, 8, 8], [-1, -1, -1, -1]]], np.float32),
        "classes": np.array([[1, 0], [1, -1]], np.float32),
        "confidence": np.array([[0.9, 0.5], [0.4, -1]], np.float32),
        "num_detections": np.array([2, 1], np.int32),
        "masks": np.ones((2, 2, 28, 28), np.float32),
    }
    batch = {"factors": np.array([[0.5, 0.5], [2.0, 4.0]], np.float32), "index": np.array([2, 0])}
    if tensors:
        result, batch = ({name: tf.constant(value) for name, value in part.items()} for part in (result, batch))
    found = convert_to_originals(result, batch, scene.sizes)
    assert list(found) == [2, 0]
    np.testing.assert_allclose(found[2]["boxes"], [[20, 40, 60, 80], [180, 180, 200, 200]])  # clipped to the image
    np.testing.assert_allclose(found[0]["boxes"], [[0, 0, 2, 4]])  # twice as high, four times as wide
    assert found[2]["classes"].tolist() == [1, 0] and found[2]["classes"].dtype == np.int32
    np.testing.assert_allclose(found[0]["scores"], [0.4])
    assert [area_of(mask, (200, 200)) for mask in found[2]["masks"]] == [40 * 40, 20 * 20 - 1]  # a corner
    del result["masks"]
    assert set(convert_to_originals(result, batch, scene.sizes)[0]) == {"boxes", "classes", "scores"}
