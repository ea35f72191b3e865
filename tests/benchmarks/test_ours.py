"""Tests that our contestants of the benchmarks still do their work, at small sizes."""

import pytest

from benchmarks import detector_ours, input_ours, loss_ours, pack_ours, roi_align_ours, step_ours

IMAGES = 8


@pytest.fixture(scope="module", autouse=True)
def small(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tempfile.tempdir", str(tmp_path_factory.mktemp("photos")))
        for name, value in (("BATCH", 4), ("BATCHES", 2), ("READ_AHEAD", 1)):
            patch.setattr(input_ours, name, value)
        patch.setattr(pack_ours, "PASSES", 2)
        patch.setattr(roi_align_ours, "REPEATS", 1)
        patch.setattr(detector_ours, "REPEATS", 1)
        patch.setattr(step_ours, "product_gflops", lambda: 1.0)
        yield


@pytest.mark.parametrize("build", [input_ours.build, input_ours.packed])
def test_input_gives_its_batches(build):
    work = build(None, IMAGES, 64)
    work.prepare()
    assert work() == 8 and min(work.facts["channel_stds"]) > 0


def test_other_work_is_done():
    assert input_ours.photometric(2, 32)() == 2
    assert pack_ours.files(None, IMAGES)() == pack_ours.shards(None, IMAGES)() == 2 * IMAGES
    assert loss_ours.build(6, 10, 4)() == loss_ours.naive(6, 10, 4)() == 6
    assert [roi_align_ours.build(2, 8, 4, 3, 8, reference)() for reference in (False, True)] == [2, 2]


def test_steps_are_taken():
    work = step_ours.build("resnet18", 64, 4, 2, 16, (16, 8, 4, 2), width=0.125)
    assert work() == 4 and work.facts["gflop_an_image"]
    assert detector_ours.build("fcn", "fpn", 64, 2, {})() == 2
