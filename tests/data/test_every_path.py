"""Checks that all readers of images see the same pixels, and refuse the same files for the same reason."""

import os

import numpy as np
import pytest

from dupr_tf.config import DataConfig, parse_config
from dupr_tf.data.detection import eval_batches
from dupr_tf.data.images.bad_images import BadImages, unusable_reason
from dupr_tf.data.images.resize import resize
from dupr_tf.data.images.scan import SKIPPED, scan_images
from dupr_tf.data.images.source import Files
from dupr_tf.data.labels.annotations import AnnotatedImages
from dupr_tf.data.pipeline import PairBlocks, WorkerRows
from dupr_tf.data.shards.pack import PackSettings, pack
from dupr_tf.data.shards.read import ShardSource
from dupr_tf.errors import RunFailed
from dupr_tf.probing.image_views import read_each, whole_view
from tests.data.every_kind import every_kind

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:PIL")  # pytest removes the filter that `decode` sets
SIZE = 32
CASES = {f"{number:03d}{os.path.splitext(case.name)[1] or '.jpg'}": case for number, case in enumerate(every_kind())}


@pytest.fixture(scope="module")
def paths(tmp_path_factory):
    folder = tmp_path_factory.mktemp("every_kind")
    for name, case in CASES.items():
        (folder / name).write_bytes(case.content)
    return [str(folder / name) for name in CASES]


def expected_reasons():
    return [case.reason for case in CASES.values()]


def reason_kinds(reasons):
    return [reason.split(":")[0] for reason in reasons]


def test_scan_and_the_list_of_bad_images_agree(paths):
    looks = {look.name: look for look in scan_images(paths, DataConfig().max_pixels, 2)}
    scanned = [looks[path].reason if looks[path].outcome == SKIPPED else "" for path in paths]
    assert scanned == [unusable_reason(path) for path in paths]
    assert reason_kinds(scanned) == expected_reasons()


def test_pretraining_reads_the_expected_pixels(paths):
    config = parse_config(
        {
            "data": {"image_size": SIZE}, "views": {"crop_area": [1.0, 1.0], "crop_aspect": [0.06, 19.0]},
            "train": {"batch_size": 2, "micro_batches": 1},
        }
    )  # fmt: skip
    for path, case in zip(paths, CASES.values(), strict=True):
        blocks = PairBlocks(Files([path]), config, WorkerRows(2), 1)
        if case.pixels is None:
            with pytest.raises(RunFailed):
                blocks(0)
            continue
        rows, bad = blocks(0)
        assert bad == ()
        height, width = case.pixels.shape[:2]
        if not 0.06 < width / height < 19 or min(height, width) < SIZE:
            continue  # the crop is a part of the image
        whole = resize(case.pixels, SIZE, SIZE)
        for view, flipped in ((rows["view_1"][0], rows["flipped_1"][0]), (rows["view_2"][0], rows["flipped_2"][0])):
            shown = view[:, ::-1] if flipped else view
            assert np.abs(shown.astype(int) - whole).mean() < 2, case.name  # the crop's area is right to a pixel


def test_probes_read_the_expected_pixels(paths):
    seen = {}
    for indices, views in read_each(paths, lambda _index, image: whole_view(image, SIZE), 16):
        seen.update(zip(indices.tolist(), views, strict=True))
    for index, case in enumerate(CASES.values()):
        assert (index in seen) == (case.pixels is not None), case.name
        if index in seen:
            np.testing.assert_array_equal(seen[index], resize(case.pixels, SIZE, SIZE), err_msg=case.name)


def test_detectors_read_the_expected_pixels(paths):
    usable = [(path, case) for path, case in zip(paths, CASES.values(), strict=True) if case.pixels is not None]
    for path, case in usable:
        height, width = case.pixels.shape[:2]
        annotated = annotated_images([path], [(height, width)])
        with eval_batches(annotated, None, 1, short_side=min(height, width), max_long_side=10_000) as reader:
            (batch,) = reader
        np.testing.assert_array_equal(batch["images"][0, :height, :width], case.pixels, err_msg=case.name)
    refused = [path for path, case in zip(paths, CASES.values(), strict=True) if case.pixels is None]
    for path in refused[::7]:
        with pytest.raises(RunFailed), eval_batches(annotated_images([path], [(8, 8)]), 32, 1) as reader:
            next(reader)


def annotated_images(paths, sizes):
    count = len(paths)
    return AnnotatedImages(
        paths=tuple(paths), sizes=np.array(sizes), boxes=(np.zeros((0, 4), np.float32),) * count,
        labels=(np.zeros(0, np.int32),) * count, ignored=(np.zeros(0, bool),) * count,
        areas=(np.zeros(0, np.float32),) * count, class_names=("thing",),
    )  # fmt: skip


def test_packing_keeps_the_usable_files(paths, tmp_path):
    packed = pack(os.path.dirname(paths[0]), tmp_path / "shards", PackSettings(shuffle=False), 2, max_bad_share=1.0)
    reasons = {name: reason.split(":")[0] for name, reason in packed.bad}
    usable = {name: case for name, case in CASES.items() if case.pixels is not None}
    assert reasons == {name: case.reason for name, case in CASES.items() if name not in usable}
    source = ShardSource(tmp_path / "shards")
    assert len(source) == len(usable) and all(name in source.name(i) for i, name in enumerate(sorted(usable)))
    assert all(source.read(i) == usable[name].content for i, name in enumerate(sorted(usable)))
    assert not BadImages(source, 0.0).over_budget
