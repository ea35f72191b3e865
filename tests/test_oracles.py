"""Tests the oracles against results worked out by hand and against Pillow, without TensorFlow and `dupr_tf`."""

import math

import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageFilter

from tests import oracles, oracles_step

# --- RoIAlign -------------------------------------------------------------------------------------


def test_one_sample_is_the_adaptive_sampling_up_to_s_cells():
    feature = np.random.default_rng(1).normal(size=(7, 7, 2))
    box, scale = (3.0, 10.0, 211.0, 224.0), 1 / 32
    one = oracles.roi_align_box(feature, box, 7, scale, sampling_ratio=1)
    np.testing.assert_allclose(one, oracles.roi_align_box(feature, box, 7, scale, sampling_ratio=0), atol=1e-12)
    assert np.abs(one - oracles.roi_align_box(feature, box, 7, scale, sampling_ratio=2)).max() > 1e-3


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


# --- what a step changes --------------------------------------------------------------------------


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
