"""Compares statistics of a folder with images made for it, and the simulated overlap with the pipeline's pairs."""

import math
from pathlib import Path

import numpy as np
import pytest

from dupr_tf.data.images.bad_images import BadImages
from dupr_tf.data.images.listing import list_images
from dupr_tf.data.images.source import Files
from dupr_tf.data.pipeline import view_pairs
from dupr_tf.data.statistics import look_at_sizes, simulate_overlap
from tests.forecast.small_photos import config, write_photos


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    return write_photos(tmp_path_factory.mktemp("photos"))


def test_sizes_of_rotated_photos_are_upright(photos):
    sizes = look_at_sizes(Files(list_images(photos)))
    assert (sizes.count, sizes.looked, len(sizes.sizes)) == (32, 32, 31)
    assert [Path(name).name for name in sizes.unreadable] == ["broken.jpg"]
    assert [sizes.sizes.tolist().count(s) for s in ([60, 60], [40, 100], [50, 90])] == [10, 20, 1]
    assert sorted(set(sizes.aspects.round(2))) == [1.0, 1.8, 2.5] and set(sizes.short_sides) == {40, 50, 60}


def test_simulated_overlap_equals_that_of_drawn_pairs(photos):
    """The seeds differ: both are estimates of one share."""
    paths = [path for path in list_images(photos) if path.endswith(".png")]
    settings = config(views={"draws": 1, "min_overlap": 12}, train={"batch_size": 30})
    with view_pairs(Files(paths), settings, 0, 10, BadImages(paths, 1.0)) as batches:
        seen = np.concatenate([batch["valid"] for batch in batches])
    overlap = simulate_overlap(look_at_sizes(Files(paths)).sizes, settings, pairs=500)
    spread = math.sqrt(seen.mean() * (1 - seen.mean()) * (1 / len(seen) + 1 / 500))
    assert 0.3 < seen.mean() < 0.97 and abs(overlap.valid - seen.mean()) < 4 * spread
    assert overlap.first == overlap.valid  # a pair is drawn once only
    again = simulate_overlap(look_at_sizes(Files(paths)).sizes, config(views={"min_overlap": 12}), pairs=500)
    assert again.valid > again.first == overlap.first
    assert (again.sides >= 12 - 1e-2).all() and again.sides.max() <= 32


def test_support_of_full_overlap_is_cells_of_a_patch():
    overlap = simulate_overlap(
        np.full((4, 2), 500), config(views={"crop_area": [1, 1], "crop_aspect": [1, 1]}), pairs=20
    )
    assert overlap.valid == 1 and overlap.enlarged == 0 and (overlap.sides == 32).all()
    assert overlap.support == {"P4": 32 / 2 / 16, "P5": 32 / 1 / 32}
    small = simulate_overlap(np.full((4, 2), 31), config(views={"crop_area": [1, 1], "crop_aspect": [1, 1]}), pairs=20)
    assert small.enlarged == 1
