"""Tests the oracles against results worked out by hand and against Pillow, without TensorFlow and `dupr_tf`."""

import math

import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageFilter

from tests import oracles, oracles_step

# --- geometry -------------------------------------------------------------------------------------


def test_overlap_is_the_common_rectangle():
    assert oracles.overlap((10, 20, 110, 220), (60, 0, 300, 120)) == (60, 20, 110, 120)


@pytest.mark.parametrize("other", [(100, 0, 200, 100), (0, 100, 100, 200), (150, 150, 200, 200)])
def test_crops_that_touch_or_miss_do_not_overlap(other):
    assert oracles.overlap((0, 0, 100, 100), other) is None


def test_to_view_subtracts_the_origin_and_scales_each_side():
    # A 100 x 50 crop shown at 200 x 200: y doubles, x is four times as large.
    assert oracles.to_view((20, 40, 70, 60), (10, 30, 110, 80), False, 200) == (20, 40, 120, 120)


def test_flip_exchanges_the_ends_in_x():
    assert oracles.to_view((20, 40, 70, 60), (10, 30, 110, 80), True, 200) == (20, 80, 120, 160)


@pytest.mark.parametrize(
    ("shift", "view_size", "min_overlap", "valid"),
    [
        (0, 224, 32, True),
        (192, 224, 32, True),
        (193, 224, 32, False),
        (193, 224, 31, True),
        (225, 224, 32, False),
    ],
)
def test_validity_needs_min_overlap_pixels_in_both_views(shift, view_size, min_overlap, valid):
    crop_1, crop_2 = (0, 0, 224, 224), (0, shift, 224, shift + 224)
    assert oracles.intersect_pair(crop_1, crop_2, False, False, view_size, min_overlap)[2] is valid


def test_validity_checks_the_view_with_the_small_overlap():
    # 20 source pixels are 40 px in a view of a 112 px crop, but 20 in one of a 224 px crop.
    crop_1, crop_2 = (0, 0, 112, 112), (92, 0, 316, 224)
    assert oracles.intersect_pair(crop_1, crop_2, False, False, 224, 20)[2]
    assert not oracles.intersect_pair(crop_1, crop_2, False, False, 224, 32)[2]


# --- RoIAlign -------------------------------------------------------------------------------------


def ramp(height, width):
    """Cell (i, j) holds the input coordinates of its centre, (i + 0.5, j + 0.5)."""
    rows, columns = np.meshgrid(np.arange(height) + 0.5, np.arange(width) + 0.5, indexing="ij")
    return np.stack([rows, columns], -1)


@pytest.mark.parametrize("sampling_ratio", [1, 2, 0])
def test_roi_align_of_a_ramp_is_the_bin_centres(sampling_ratio):
    out = oracles.roi_align_box(ramp(8, 8), (1.0, 2.0, 7.0, 5.0), 3, sampling_ratio=sampling_ratio)
    np.testing.assert_allclose(out[:, 0, 0], [2.0, 4.0, 6.0], atol=1e-12)
    np.testing.assert_allclose(out[0, :, 1], [2.5, 3.5, 4.5], atol=1e-12)


def test_roi_align_reads_a_flipped_grid_from_the_right():
    out = oracles.roi_align_box(ramp(8, 8), (1.0, 2.0, 7.0, 5.0), 3, flipped=True)
    np.testing.assert_allclose(out[:, 0, 0], [2.0, 4.0, 6.0], atol=1e-12)
    np.testing.assert_allclose(out[0, :, 1], [4.5, 3.5, 2.5], atol=1e-12)


def test_roi_align_scales_boxes_to_cells():
    out = oracles.roi_align_box(ramp(4, 4), (0.0, 32.0, 64.0, 96.0), 2, spatial_scale=1 / 32)
    np.testing.assert_allclose(out[..., 0], [[0.5, 0.5], [1.5, 1.5]], atol=1e-12)
    np.testing.assert_allclose(out[..., 1], [[1.5, 2.5], [1.5, 2.5]], atol=1e-12)


def test_whole_view_at_its_own_resolution_is_the_feature_map():
    feature = np.random.default_rng(0).normal(size=(14, 14, 3))
    out = oracles.roi_align_box(feature, (0, 0, 224, 224), 14, spatial_scale=1 / 16)
    np.testing.assert_allclose(out, feature, atol=1e-12)


def test_one_sample_is_the_adaptive_sampling_up_to_s_cells():
    feature = np.random.default_rng(1).normal(size=(7, 7, 2))
    box, scale = (3.0, 10.0, 211.0, 224.0), 1 / 32
    one = oracles.roi_align_box(feature, box, 7, scale, sampling_ratio=1)
    np.testing.assert_allclose(one, oracles.roi_align_box(feature, box, 7, scale, sampling_ratio=0), atol=1e-12)
    assert np.abs(one - oracles.roi_align_box(feature, box, 7, scale, sampling_ratio=2)).max() > 1e-3


def test_samples_between_border_centre_and_border_are_clamped():
    out = oracles.roi_align_box(ramp(4, 4), (0.0, 0.0, 4.0, 4.0), 16)
    np.testing.assert_allclose(out[:3, 0, 0], [0.5, 0.5, 0.625], atol=1e-12)
    np.testing.assert_allclose(out[0, -3:, 1], [3.375, 3.5, 3.5], atol=1e-12)


def test_samples_more_than_one_cell_outside_are_zero():
    feature = np.full((4, 4, 1), 5.0)
    box = (-3.0, 0.0, 1.0, 4.0)  # sample rows -3, -2, -1, 0 in centre coordinates
    np.testing.assert_array_equal(oracles.roi_align_box(feature, box, 4)[:, 0, 0], [0, 0, 5, 5])
    box = (1.0, 3.0, 5.0, 7.0)  # sample columns 3, 4, 5, 6
    np.testing.assert_array_equal(oracles.roi_align_box(feature, box, 4)[0, :, 0], [5, 5, 0, 0])


def test_roi_align_batches_boxes_and_flips_by_image():
    features = np.random.default_rng(2).normal(size=(2, 6, 6, 2))
    boxes = np.array([[[0, 0, 4, 4], [1, 2, 6, 5]], [[2, 2, 5, 6], [0, 1, 3, 3]]], float)
    out = oracles.roi_align(features, boxes, 3, flipped=[False, True])
    assert out.shape == (2, 2, 3, 3, 2)
    np.testing.assert_array_equal(out[0, 1], oracles.roi_align_box(features[0], boxes[0, 1], 3))
    np.testing.assert_array_equal(out[1, 0], oracles.roi_align_box(features[1], boxes[1, 0], 3)[:, ::-1])
    np.testing.assert_array_equal(oracles.roi_align(features, boxes[:, 1], 3, flipped=[False, True]), out[:, 1])


# --- heads ----------------------------------------------------------------------------------------

HEAD = (
    np.array([[1.0, -1.0], [0.0, 2.0]]),
    np.array([0.0, -1.0]),
    np.array([[3.0, 0.0], [0.0, 4.0]]),
    np.zeros(2),
)


def test_heads_by_hand():
    # (1, 2) -> hidden (1, -1 + 4 - 1 = 2) -> (3, 8). (3, 1) -> (3, -2 -> 0) -> (9, 0) -> (1, 0).
    np.testing.assert_allclose(oracles.mlp([1.0, 2.0], *HEAD), [3.0, 8.0])
    features = np.array([[[[0.0, 0.0], [6.0, 2.0]]]])
    np.testing.assert_allclose(oracles.global_average_pool(features), [[3.0, 1.0]])
    np.testing.assert_allclose(oracles.image_head(features, *HEAD), [[1.0, 0.0]])


def test_patch_head_is_the_mlp_of_each_cell():
    rois = np.array([[[[1.0, 2.0], [3.0, 1.0]], [[3.0, 1.0], [1.0, 2.0]]]])
    one, other = np.array([3.0, 8.0]) / math.sqrt(73), np.array([1.0, 0.0])
    np.testing.assert_allclose(oracles.patch_head(rois, *HEAD), [[[one, other], [other, one]]])


def test_l2_normalize_leaves_zero_at_zero():
    np.testing.assert_array_equal(oracles.l2_normalize([0.0, 0.0]), [0.0, 0.0])
    np.testing.assert_allclose(oracles.l2_normalize([3.0, -4.0]), [0.6, -0.8])


# --- losses ---------------------------------------------------------------------------------------


def test_info_nce_of_orthogonal_vectors():
    axes = np.eye(5)
    # Everything orthogonal: a uniform choice among 1 + 3.
    np.testing.assert_allclose(oracles.info_nce(axes[:1], axes[1:2], axes[2:], 0.2), [math.log(4)])
    # Query equals positive: log(e^5 + 4) - 5 with four orthogonal negatives.
    loss = oracles.info_nce(axes[:1], axes[:1], axes[1:], 0.2)
    np.testing.assert_allclose(loss, [math.log(math.exp(5) + 4) - 5])


def test_info_nce_survives_large_logits():
    axes = np.eye(3)
    np.testing.assert_allclose(oracles.info_nce(axes[:1], axes[1:2], axes[:1], 0.001), [1000.0])


def test_info_nce_gradients_are_finite_differences():
    rng = np.random.default_rng(3)
    query, positive, bank = rng.normal(size=(1, 4)), rng.normal(size=(1, 4)), rng.normal(size=(6, 4))
    wrt_query, wrt_positive = oracles.info_nce_gradients(query, positive, bank, 0.5)
    step = 1e-6
    for c in range(4):
        nudge = step * np.eye(4)[c]
        up, down = (oracles.info_nce(query + s * nudge, positive, bank, 0.5)[0] for s in (1, -1))
        assert wrt_query[0, c] == pytest.approx((up - down) / (2 * step), abs=1e-7)
        up, down = (oracles.info_nce(query, positive + s * nudge, bank, 0.5)[0] for s in (1, -1))
        assert wrt_positive[0, c] == pytest.approx((up - down) / (2 * step), abs=1e-7)


def test_accuracy_counts_a_tie_as_a_miss():
    axes = np.eye(3)
    queries, positives = np.stack([axes[0]] * 3), np.stack([axes[0], axes[1], axes[2]])
    bank = np.array([[0.5, 0.0, 0.0], [0.0, 1.0, 0.0]])
    np.testing.assert_array_equal(oracles.contrastive_hits(queries, positives, bank), [1, 0, 0])
    assert oracles.contrastive_accuracy(queries, positives, bank) == pytest.approx(1 / 3)
    np.testing.assert_array_equal(oracles.contrastive_hits(axes[:1], axes[:1], axes), [0])


def test_patch_loss_is_reduced_over_valid_cells():
    losses = [[1.0, 3.0], [100.0, 100.0], [5.0, 7.0]]
    assert oracles.reduce_patch_loss(losses, [True, False, True]) == 4.0
    assert oracles.reduce_patch_loss(losses, [True, False, True], "sum") == 8.0
    assert oracles.reduce_patch_loss(losses, [False, False, False]) == 0.0
    assert oracles.reduce_patch_loss(losses, [False, False, False], "sum") == 0.0


def test_total_loss_weighs_the_levels():
    assert oracles.total_loss([1, 2, 3, 4], [9, 9, 5, 6], (0.5, 1, 0, 2), (0, 0, 1, 1)) == 0.5 + 2 + 8 + 5 + 6


# --- what a step changes --------------------------------------------------------------------------


def test_ema_moves_a_tenth_of_the_way():
    (moved,) = oracles_step.ema([[1.0, 2.0]], [[11.0, -8.0]], 0.9)
    np.testing.assert_allclose(moved, [2.0, 1.0])


def test_enqueue_wraps_without_dropping_keys():
    bank, next_row = oracles_step.enqueue(np.zeros((5, 1)), 3, [[1], [2], [3]])
    np.testing.assert_array_equal(bank[:, 0], [3, 0, 0, 1, 2])
    assert next_row == 1
    assert oracles_step.enqueue(np.zeros((5, 1)), 3, [[1], [2]])[1] == 0


def test_sgd_by_hand():
    # v = 0.9·2 + (0.4 + 0.1·4) = 2.6; w = 4 - 0.5·2.6
    weights, velocities = oracles_step.sgd_step([4.0], [0.4], [2.0], 0.5, momentum=0.9, weight_decay=0.1)
    assert velocities[0] == pytest.approx(2.6)
    assert weights[0] == pytest.approx(2.7)


def test_schedules_at_known_steps():
    assert [oracles_step.cosine_per_step(s, 8, 2.0) for s in (0, 4, 8)] == pytest.approx([2.0, 1.0, 0.0])
    assert oracles_step.cosine_per_step(2, 8, 2.0) == pytest.approx(1 + math.sqrt(0.5))
    by_epoch = [oracles_step.cosine_per_epoch(s, 10, 2, 2.0) for s in (0, 9, 10, 19)]
    assert by_epoch == pytest.approx([2.0, 2.0, 1.0, 1.0])
    decayed = [oracles_step.step_decay(s, 10, 0.03) for s in (1199, 1200, 1599, 1600)]
    assert decayed == pytest.approx([0.03, 0.003, 0.003, 0.0003])
    assert oracles_step.scaled_learning_rate(64) == pytest.approx(0.015)


# --- photometrics ---------------------------------------------------------------------------------


def photo(size=24, noise=25):
    """Returns a smooth uint8 picture with noise on it."""
    rng = np.random.default_rng(4)
    rows, columns = np.mgrid[0:size, 0:size] / size
    waves = np.stack([np.sin(5 * rows), np.cos(4 * columns + rows), np.sin(6 * rows * columns)], -1)
    return np.clip(128 + 80 * waves + rng.normal(0, noise, (size, size, 3)), 0, 255).astype(np.uint8)


def levels(image):
    return np.asarray(image, np.float64) * 255


@pytest.mark.parametrize("factor", [0.0, 0.6, 1.0, 1.4])
@pytest.mark.parametrize(
    ("enhancer", "adjust"),
    [
        (ImageEnhance.Brightness, oracles.adjust_brightness),
        (ImageEnhance.Contrast, oracles.adjust_contrast),
        (ImageEnhance.Color, oracles.adjust_saturation),
    ],
)
def test_adjustments_are_pillows_within_a_grey_level(enhancer, adjust, factor):
    image = photo()
    expected = np.asarray(enhancer(Image.fromarray(image)).enhance(factor), np.float64)
    np.testing.assert_allclose(levels(adjust(image / 255, factor)), expected, atol=1.01)


def test_contrast_with_pillows_rounded_mean_is_closer_to_pillow():
    image = photo()
    expected = np.asarray(ImageEnhance.Contrast(Image.fromarray(image)).enhance(0.0), np.float64)
    np.testing.assert_allclose(levels(oracles.adjust_contrast(image / 255, 0.0, round_mean=True)), expected, atol=1e-6)


def test_grey_is_pillows_luma():
    image = photo()
    expected = np.asarray(Image.fromarray(image).convert("L"), np.float64)
    np.testing.assert_allclose(levels(oracles.grey(image / 255)), expected, atol=0.51)
    np.testing.assert_allclose(oracles.grey(np.eye(3)[None]), [[0.299, 0.587, 0.114]])


def test_photometrics_on_one_pixel_by_hand():
    pixel = np.array([[[0.8, 0.4, 0.2]]])  # luma 0.2392 + 0.2348 + 0.0228 = 0.4968
    np.testing.assert_allclose(oracles.adjust_brightness(pixel, 1.5), [[[1.0, 0.6, 0.3]]])
    np.testing.assert_allclose(oracles.adjust_saturation(pixel, 0.5), [[[0.6484, 0.4484, 0.3484]]])
    two = np.array([[[0.2] * 3, [0.6] * 3]])
    np.testing.assert_allclose(oracles.adjust_contrast(two, 0.5), [[[0.3] * 3, [0.5] * 3]])


def test_hue_turns_red_to_green_to_blue():
    red, green, blue = np.eye(3)
    for before, shift, after in [
        (red, 1 / 3, green),
        (green, 1 / 3, blue),
        (red, -1 / 3, blue),
        (blue, 1 / 3, red),
    ]:
        np.testing.assert_allclose(oracles.adjust_hue(before[None, None], shift), after[None, None], atol=1e-12)
    greys = np.full((1, 1, 3), 0.3)
    np.testing.assert_allclose(oracles.adjust_hue(greys, 0.1), greys)


def test_hue_is_pillows_hsv_shift():
    image = np.array(Image.fromarray(photo()).convert("HSV"))
    image[..., 1] = np.maximum(image[..., 1], 60)  # Pillow's 8-bit hue is coarse where saturation is small
    rgb = np.asarray(Image.fromarray(image, "HSV").convert("RGB"))
    hsv = np.array(Image.fromarray(rgb).convert("HSV"))
    hsv[..., 0] += np.uint8(0.1 * 255)
    expected = np.asarray(Image.fromarray(hsv, "HSV").convert("RGB"), np.float64)
    difference = np.abs(levels(oracles.adjust_hue(rgb / 255, 0.1)) - expected)
    assert difference.max() <= 8
    assert difference.mean() < 1.5


def test_blur_keeps_constants_and_makes_impulses_gaussian():
    flat = np.full((9, 9, 3), 0.25)
    np.testing.assert_allclose(oracles.gaussian_blur(flat, 1.0), flat)
    impulse = np.zeros((15, 15, 3))
    impulse[7, 7] = 1.0
    out = oracles.gaussian_blur(impulse, 2.0)
    assert out.sum() == pytest.approx(3.0)
    assert out[7, 9, 0] / out[7, 7, 0] == pytest.approx(math.exp(-4 / 8))
    assert out[4, 9, 0] / out[7, 7, 0] == pytest.approx(math.exp(-13 / 8))
    assert out[0, 7, 0] == 0  # radius ceil(3 · 2) = 6


def test_blur_reflects_at_the_border_without_repeating_the_edge():
    column = np.zeros((1, 3, 3))
    column[0, 1] = 1.0
    weights = np.exp(-(np.array([-1, 0, 1]) ** 2) / 2)
    weights /= weights.sum()
    # Only one row: reflect(±1, 1) would leave the image, so repeat the row three times.
    out = oracles.gaussian_blur(np.repeat(column, 3, axis=0), 1.0, radius=1)
    np.testing.assert_allclose(out[0, :, 0], [2 * weights[0], weights[1], 2 * weights[2]])


@pytest.mark.parametrize("sigma", [1.0, 1.5, 2.0])
def test_blur_is_pillows_within_two_levels_inside(sigma):
    image = photo(size=32, noise=8)  # Pillow's three box blurs are no Gaussian on white noise or for sigma below 1
    expected = np.asarray(Image.fromarray(image).filter(ImageFilter.GaussianBlur(sigma)), np.float64)
    inside = slice(7, -7)

    def errors(times):
        return (levels(oracles.gaussian_blur(image / 255, times * sigma)) - expected)[inside, inside]

    assert np.abs(errors(1.0)).max() <= 2.0
    assert np.std(errors(1.0)) < min(np.std(errors(0.8)), np.std(errors(1.25)))


def test_photometric_applies_the_chain_in_order():
    image = photo(size=8)
    factors = {"brightness": 1.3, "contrast": 0.7}
    one = oracles.photometric(image, ("brightness", "contrast"), factors)
    other = oracles.photometric(image, ("contrast", "brightness"), factors)
    assert np.abs(one - other).max() > 0.05
    by_hand = oracles.adjust_contrast(oracles.adjust_brightness(image / 255, 1.3), 0.7)
    np.testing.assert_allclose(one, oracles.normalize(by_hand))
    flat = oracles.photometric(image, grey_image=True, sigma=0.5, flipped=True)
    expected = oracles.gaussian_blur(oracles.to_grey(image / 255), 0.5)[:, ::-1]
    np.testing.assert_allclose(flat, oracles.normalize(expected))


def test_normalize_maps_mean_to_0_and_one_deviation_to_1():
    mean, std = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    np.testing.assert_allclose(oracles.normalize(mean[None, None]), np.zeros((1, 1, 3)), atol=1e-12)
    np.testing.assert_allclose(oracles.normalize((mean + std)[None, None]), np.ones((1, 1, 3)))
