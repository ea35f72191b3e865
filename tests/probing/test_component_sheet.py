"""Tests of pictures of feature maps as colours of their principal components."""

import numpy as np
import pytest

from dupr_tf.probing.component_sheet import component_colours, component_sheet
from dupr_tf.probing.drawing import GAP, LINE


def test_components_are_ordered_by_variance():
    rng = np.random.default_rng(0)
    latent = rng.normal(size=(2, 6, 8, 3)) * [0.3, 0.1, 0.03]
    axes = np.linalg.qr(rng.normal(size=(16, 4)))[0].T
    (first, second), share = component_colours(10 * axes[3] + latent @ axes[:3])
    assert first.shape == second.shape == (6, 8, 3) and share > 0.97
    seen = np.concatenate([first, second]).reshape(-1, 3).astype(float)
    for k in range(3):
        assert abs(np.corrcoef(seen[:, k], latent[..., k].ravel())[0, 1]) > 0.9


def test_equal_features_have_equal_colours_whatever_their_length():
    rng = np.random.default_rng(1)
    first = rng.random((4, 4, 8))
    second = rng.random((4, 4, 8))
    second[2, 3] = 5 * first[0, 1]
    (a, b), _ = component_colours([first, second])
    np.testing.assert_array_equal(a[0, 1], b[2, 3])
    assert len(np.unique(a.reshape(-1, 3), axis=0)) > 10


@pytest.mark.parametrize(
    "maps", [np.zeros((1, 2, 2, 8)), np.ones((1, 2, 2, 8)), np.ones((1, 1, 1, 8)), np.ones((2, 1, 1, 1))]
)
def test_constant_features_have_one_colour(maps):
    with np.errstate(all="raise"):
        colours, share = component_colours(maps)
    assert np.isfinite(share) and len(np.unique(np.concatenate(colours).reshape(-1, 3), axis=0)) == 1


def test_sheet_has_a_row_for_each_photo_and_a_column_for_each_level():
    views = [np.full((10, 10, 3), value, np.uint8) for value in (40, 200)]
    ramp = np.stack([np.linspace(0, 1, 4)[:, None] * np.ones((4, 4)), np.ones((4, 4))], -1)
    maps = [{"P4": ramp, "P5": ramp[:2, :2]}, {"P4": ramp[::-1], "P5": ramp[:2, :2]}]
    sheet = np.asarray(component_sheet(views, maps, side=40))
    assert sheet.shape == (LINE + GAP + 2 * 48, GAP + 3 * 48, 3)
    assert (sheet[LINE : LINE + 40, GAP : GAP + 40] == 40).all() and (
        sheet[LINE + 48 : LINE + 88, GAP : GAP + 40] == 200
    ).all()
    p4 = [sheet[LINE + top : LINE + top + 40, GAP + 48 : GAP + 88] for top in (0, 48)]
    np.testing.assert_array_equal(p4[0], p4[1][::-1])
    assert len(np.unique(p4[0].reshape(-1, 3), axis=0)) == 4
