"""Tests of charts: round ticks, correct places of points, gaps, and spikes that survive thinning."""

import re

import pytest

from dupr_tf.reporting.charts import (
    BOTTOM,
    HEIGHT,
    LEFT,
    MOST_POINTS,
    RIGHT,
    TOP,
    WIDTH,
    line_chart,
    thin,
    tick_text,
    ticks,
)


def drawn(path):
    return [tuple(map(float, point)) for point in re.findall(r"[ML]([\d.-]+) ([\d.-]+)", path)]


@pytest.mark.parametrize("low, high, expected", [
    (0, 100, [0, 20, 40, 60, 80, 100]),
    (3.9, 5.6, [4, 4.5, 5, 5.5]),
    (-1e-3, 1e-3, [-1e-3, -5e-4, 0, 5e-4, 1e-3]),
    (0, 1e6, [0, 2e5, 4e5, 6e5, 8e5, 1e6]),
])  # fmt: skip
def test_ticks_are_round_and_inside(low, high, expected):
    assert ticks(low, high, 5) == pytest.approx(expected)


def test_tick_text_is_short():
    assert [tick_text(v) for v in (0, 0.05, 250, 12_000, 3e6, 1e-05)] == ["0", "0.05", "250", "12k", "3M", "1e-05"]


def test_points_are_placed_linearly_between_the_axes():
    chart = line_chart("x", {"a": (0, [(0, 1.0), (50, 3.0), (100, 2.0)])})
    (x0, y0), (x1, y1), (x2, y2) = drawn(chart.lines[0].path)
    assert (x0, x2) == (LEFT, WIDTH - RIGHT) and x1 == pytest.approx((x0 + x2) / 2, abs=0.1)
    assert TOP <= y1 < y2 < y0 <= HEIGHT - BOTTOM and y2 == pytest.approx((y0 + y1) / 2, abs=0.1)
    place = {text: y for y, text in chart.y_ticks}
    assert place["2"] == pytest.approx(y2, abs=0.1)


def test_gaps_break_the_line_and_lone_points_are_dots():
    chart = line_chart("x", {"a": (0, [(0, 1.0), (1, 1.5), (2, None), (3, 2.0), (4, None), (5, 1.0), (6, 2.0)])})
    assert (
        chart.lines[0].path.count("M") == 2 and len(drawn(chart.lines[0].path)) == 4 and len(chart.lines[0].dots) == 1
    )


def test_references_are_inside_the_drawing_even_above_all_values():
    chart = line_chart("x", {"a": (0, [(0, 1.0), (1, 1.5)])}, {"guess": 9.0})
    assert TOP <= chart.references[0].y < drawn(chart.lines[0].path)[0][1] and "guess at 9" in chart.description


def test_spike_survives_thinning():
    points = [(s, 100.0 if s == 3333 else None if s == 5000 else 1.0 + s / 1e6) for s in range(10_000)]
    kept = thin(points)
    assert len(kept) <= MOST_POINTS and (3333, 100.0) in kept and (5000, None) in kept
    assert [s for s, _ in kept] == sorted(s for s, _ in kept)


@pytest.mark.parametrize(
    "values", [[5.0, 5.0], [0.0], [-3.0, -3.0], [1e-300, 2e-300], [1e300, -1e300], [1e16, 1e16 + 2]]
)
def test_any_finite_values_give_finite_places(values):
    chart = line_chart("x", {"a": (0, [(s, v) for s, v in enumerate(values)])})
    places = drawn(chart.lines[0].path) + chart.lines[0].dots
    assert len(places) == len(values) and all(TOP - 1 <= y <= HEIGHT - BOTTOM + 1 for _, y in places)
    assert len(chart.y_ticks) < 12


def test_values_without_any_finite_one_give_no_chart():
    assert line_chart("x", {"a": (0, [(0, None)])}) is None
