"""Tests the intervals of a comparison against published values, counts and simulations."""

import math

import numpy as np
import pytest

from dupr_tf.comparing.statistics import Estimate, estimate, labels_needed, seeds_needed


def test_interval_uses_students_t():
    # 1, 2, 3: mean 2, deviation 1; the t quantile for two degrees of freedom is 4.3027 (printed tables)
    value = estimate([1.0, 2.0, 3.0])
    assert (value.mean, value.runs) == (2.0, 3)
    assert value.half == pytest.approx(4.3027 / math.sqrt(3), abs=1e-4)


def test_single_run_has_no_interval():
    assert estimate([0.25]) == Estimate(0.25, None, 1)
    assert not estimate([0.25]).decided


@pytest.mark.parametrize(
    ("values", "decided"), [([1.0, 1.1, 0.9], True), ([-1.0, -1.1, -0.9], True), ([1.0, -0.5, 0.3], False)]
)
def test_difference_is_decided_if_its_interval_excludes_zero(values, decided):
    assert estimate(values).decided is decided


def test_interval_covers_the_true_mean_in_95_percent_of_the_cases():
    rng = np.random.default_rng(1)
    drawn = [estimate(rng.normal(0.3, 0.1, 3)) for _ in range(4000)]
    covered = np.mean([abs(one.mean - 0.3) <= one.half for one in drawn])
    assert covered == pytest.approx(0.95, abs=0.015)


def test_seeds_needed_is_the_first_number_that_decides():
    differences = [0.02, 0.01, -0.005]
    needed = seeds_needed(differences)
    mean, spread = np.mean(differences), np.std(differences, ddof=1)
    from scipy import stats

    half = {n: stats.t.ppf(0.975, n - 1) * spread / math.sqrt(n) for n in (needed - 1, needed)}
    assert half[needed] < mean <= half[needed - 1]


def test_decided_difference_needs_no_more_seeds():
    assert seeds_needed([1.0, 1.1, 0.9]) == 3


def test_difference_of_zero_can_never_be_decided():
    assert seeds_needed([0.1, -0.1]) is None


def test_labels_are_read_off_the_curve_on_a_logarithmic_axis():
    # the reference has 0.1 at 100 and 0.3 at 400 images; 0.2 is half way in the logarithm, at 200
    assert labels_needed([100, 400], np.array([[0.1, 0.3]]), [0.2]).count == pytest.approx(200)


@pytest.mark.parametrize(("score", "count"), [(0.05, -math.inf), (0.1, -math.inf), (0.35, math.inf), (0.3, 400)])
def test_scores_off_the_curve_are_out_of_range(score, count):
    assert labels_needed([100, 400], np.array([[0.1, 0.3]]), [score]).count == pytest.approx(count)


def test_first_crossing_counts_if_the_curve_is_not_monotonous():
    curve = np.array([[0.1, 0.3, 0.2, 0.4]])
    assert labels_needed([100, 200, 400, 800], curve, [0.25]).count == pytest.approx(100 * 2**0.75)


def test_one_seed_gives_no_interval_of_labels():
    needed = labels_needed([100, 400], np.array([[0.1, 0.3]]), [0.2])
    assert needed.low is None and needed.high is None


def test_interval_of_labels_grows_with_the_spread():
    def width(noise):
        curve = np.array([[0.1, 0.3], [0.1, 0.3], [0.1, 0.3]]) + np.array([[0.0], [noise], [-noise]])
        needed = labels_needed([100, 400], curve, [0.2, 0.2, 0.2])
        assert needed.low <= needed.count <= needed.high
        return needed.high / needed.low

    assert pytest.approx(width(0)) == 1 and width(0.001) < width(0.01)


def test_spread_that_the_seeds_share_cancels():
    curve, shift = np.array([[0.1, 0.3]] * 3), np.array([0.0, 0.05, -0.05])
    needed = labels_needed([100, 400], curve + shift[:, None], 0.2 + shift)
    assert (needed.low, needed.high) == (pytest.approx(200), pytest.approx(200))


def test_interval_of_labels_that_leaves_the_compared_range_is_infinite():
    curve = np.array([[0.1, 0.3], [0.1, 0.3], [0.1, 0.3]])
    assert labels_needed([100, 400], curve, [0.28, 0.2, 0.33]).high == math.inf


def test_interval_of_labels_covers_the_true_number():
    rng, covered = np.random.default_rng(2), 0
    for _ in range(200):
        curve = np.array([0.1, 0.3]) + rng.normal(0, 0.01, (3, 2))
        needed = labels_needed([100, 400], curve, 0.2 + rng.normal(0, 0.01, 3))
        covered += needed.low <= 200 <= needed.high
    assert 0.91 <= covered / 200 <= 0.99


def test_interval_of_labels_is_that_of_the_score_read_off_the_curve():
    scores = [0.19, 0.2, 0.21]
    needed = labels_needed([100, 400], np.array([[0.1, 0.3]] * 3), scores)
    half = estimate(scores).half
    expected = [100 * 4 ** ((0.2 + sign * half - 0.1) / 0.2) for sign in (-1, 1)]
    assert (needed.low, needed.high) == pytest.approx(expected, rel=0.02)
