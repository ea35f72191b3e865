"""Tests of a share of the images: its size, that it repeats, and that larger shares contain smaller ones."""

import numpy as np
import pytest

from dupr_tf.data.labels.annotations import read_annotations
from dupr_tf.data.labels.segments import read_segments
from dupr_tf.data.labels.split import draw_positions, take_share
from tests.labelled_scenes import pictures
from tests.masked_scenes import write_coco_masks, write_segments
from tests.refusals import refusal

SPLITS = {"train": pictures(40)}


@pytest.fixture(scope="module")
def annotated(tmp_path_factory):
    return read_annotations(write_coco_masks(tmp_path_factory.mktemp("share") / "set", SPLITS), "train", masks=True)


def test_share_follows_its_seed_and_lies_in_larger_ones(annotated):
    chosen = {share: take_share(annotated, share, seed=3)[1] for share in (0.001, 0.1, 0.5, 1)}
    assert [len(ids) for ids in chosen.values()] == [1, 4, 20, 40]
    assert chosen[1] == annotated.ids
    for small, large in ((0.001, 0.1), (0.1, 0.5)):
        assert set(chosen[small]) < set(chosen[large])
    assert take_share(annotated, 0.5, seed=3)[1] == chosen[0.5] != take_share(annotated, 0.5, seed=4)[1]


def test_share_keeps_every_column_aligned(annotated):
    subset, ids = take_share(annotated, 0.25, seed=0)
    for i, one in enumerate(ids):
        at = annotated.ids.index(one)
        assert subset.paths[i] == annotated.paths[at] and subset.masks[i] == annotated.masks[at]
        for name in ("sizes", "boxes", "labels", "ignored", "areas"):
            np.testing.assert_array_equal(getattr(subset, name)[i], getattr(annotated, name)[at])
    assert subset.class_names == annotated.class_names and subset.void is None


def test_segmented_images_are_shared_too(tmp_path):
    segmented = read_segments(write_segments(tmp_path / "set", {"train": pictures(10)}), "train", ignore_value=9)
    subset, ids = take_share(segmented, 0.3, seed=1)
    assert len(subset) == 3 and ids == subset.ids
    for i, one in enumerate(ids):
        np.testing.assert_array_equal(subset.truth(i), segmented.truth(segmented.ids.index(one)))


def test_number_of_images_is_rounded_to_the_nearest():
    assert [len(draw_positions(19, share, 0)) for share in (0.1, 0.12, 0.15)] == [2, 2, 3]


@pytest.mark.parametrize("share", [0, -1, 1.5, float("nan")])
def test_share_out_of_range_is_refused(annotated, share):
    assert refusal(take_share, annotated, share, seed=0).field == "data.share"
