"""Tests of what each of several workers reads: its share of every batch, and together every image once an epoch."""

from collections import Counter

import numpy as np
import pytest
from PIL import Image

from dupr_tf.config import parse_config
from dupr_tf.data.images.bad_images import BadImages
from dupr_tf.data.images.listing import list_images
from dupr_tf.data.images.source import Files
from dupr_tf.data.pipeline import view_pairs
from dupr_tf.data.shards.pack import PackSettings, pack
from dupr_tf.data.shards.read import ShardSource

COUNT, BATCH, PER_EPOCH = 36, 12, 3
CONFIG = parse_config({"data": {"image_size": 32}, "train": {"batch_size": BATCH, "micro_batches": 1, "seed": 5}})


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photos")
    for i in range(COUNT):
        pixels = np.random.default_rng(i).integers(0, 255, (40 + i, 60, 3), np.uint8)
        Image.fromarray(pixels).save(folder / f"{i:02d}.jpg")
    return folder


@pytest.fixture(scope="module")
def packed(photos, tmp_path_factory):
    folder = tmp_path_factory.mktemp("packed") / "shards"
    pack(photos, folder, PackSettings(images_per_shard=16), workers=1)
    assert sorted(shard.images for shard in ShardSource(folder).shards) == [4, 16, 16]
    return folder


@pytest.fixture(scope="module")
def rows_of_one_worker(photos):
    """Returns (steps, batch): the image in each row of each batch."""
    files = list_images(photos)
    with view_pairs(files, CONFIG, 0, PER_EPOCH, BadImages(files, 0.0)) as batches:
        return np.array([batch["index"] for batch in batches])


def counted(source) -> list[int]:
    """Collects the numbers of the images that are read from a source, one entry for each time."""
    read, plain = [], source.read
    source.read = lambda index: read.append(index) or plain(index)
    return read


@pytest.mark.parametrize(
    ("kind", "workers"),
    [
        ("files", 2),
        ("files", 4),
        ("shards of unequal size", 4),
    ],
)
def test_each_image_is_read_once_an_epoch_by_one_worker(kind, workers, photos, request, rows_of_one_worker):
    epoch, shares = Counter(), []
    for worker in range(workers):
        source = Files(list_images(photos)) if kind == "files" else ShardSource(request.getfixturevalue("packed"))
        read = counted(source)
        with view_pairs(source, CONFIG, 0, PER_EPOCH, BadImages(source, 0.0), (worker, workers)) as batches:
            shares.append(np.array([batch["index"] for batch in batches]))  # (steps, rows)
        assert shares[-1].shape == (PER_EPOCH, BATCH // workers)
        assert sorted(read) == sorted(shares[-1].ravel())  # no row of other workers
        epoch.update(read)
    assert epoch == dict.fromkeys(range(COUNT), 1)
    np.testing.assert_array_equal(np.concatenate(shares, 1), rows_of_one_worker)


def test_images_that_repeat_in_a_batch_have_other_views(photos):
    files = list_images(photos)[:3]
    with view_pairs(files, CONFIG, 0, 2, BadImages(files, 0.0)) as batches:
        first, second = batches
    assert sorted(np.bincount(first["index"])) == [4, 4, 4]
    rows = [np.concatenate([batch["view_1"], batch["view_2"]], 1).reshape(BATCH, -1) for batch in (first, second)]
    assert len(np.unique(np.concatenate(rows), axis=0)) == 2 * BATCH
