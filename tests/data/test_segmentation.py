"""Tests of batches for segmentation: classes lie on their pixels, in training and mapped back to the original."""

import numpy as np
import pytest
from PIL import Image

from dupr_tf.config import parse_config
from dupr_tf.data.detection import unreadable_images
from dupr_tf.data.labels.segments import read_segments
from dupr_tf.data.placing import PAD_COLOUR, Place, nearest_pixels
from dupr_tf.data.segmentation import segment_eval_batches, segment_train_batches, segments_to_original
from tests.labelled_scenes import COLOURS, GREY, Picture, Thing
from tests.masked_scenes import IGNORE, write_segments

SIZE = 64
PALETTE = np.array([[GREY] * 3, *COLOURS.values()], np.float32)
PICTURES = [
    Picture(size, [Thing("bus", (4, 8, 30, 40)), Thing("dog", (28, 12, 44, 44))]) for size in ((60, 90), (90, 50))
]


def config(**detector):
    settings = {
        "data": {"image_size": SIZE},
        "train": {"batch_size": 4, "seed": 3},
        "optimizer": {"learning_rate": 0.1},
    }
    return parse_config({**settings, "detector": {"kind": "fcn", "scale_jitter": [0.5, 2.0], **detector}})


@pytest.fixture(scope="module")
def segmented(tmp_path_factory):
    root = write_segments(tmp_path_factory.mktemp("segments") / "set", {"train": PICTURES})
    return read_segments(root, "train", class_names=("ground", "bus", "cat", "dog"), ignore_value=IGNORE)


def nearest(image):
    """Returns the class with the colour nearest to each pixel's."""
    return np.abs(image[..., None, :] - PALETTE).sum(-1).argmin(-1)


def inner(classes):
    """Marks pixels whose eight neighbours have the same class, so that no edge is mixed into them."""
    padded = np.pad(classes, 1, constant_values=-1)
    around = [padded[y : y + classes.shape[0], x : x + classes.shape[1]] for y, x in np.ndindex(3, 3)]
    return np.min(around, 0) == np.max(around, 0)


def test_classes_lie_on_their_pixels_at_every_scale(segmented):
    scales = []
    for batch in segment_train_batches(segmented, config(), 5):
        images, segments = batch["images"], batch["segments"]
        assert images.shape == (4, SIZE, SIZE, 3) and segments.dtype == np.int32
        np.testing.assert_array_equal(batch["image_sizes"], [[SIZE, SIZE]] * 4)
        for image, classes in zip(images, segments, strict=True):
            clear = inner(classes) & (classes != 255)
            assert (nearest(image)[clear] == classes[clear]).mean() > 0.99
            padding = (np.abs(image - PAD_COLOUR) < 1e-3).all(-1)
            assert (classes[padding] == 255).all()
            scales.append((classes == 1).sum())
    assert max(scales) > 4 * max(1, min(scales))


def test_scale_refers_to_the_image_or_the_test_size(segmented):
    for side, factor in ((None, 1.0), (45, 45 / 60)):
        settings = config(scale_jitter=[1.0, 1.0], test_short_side=side)
        widest = 0
        for batch in segment_train_batches(segmented, settings, 4):
            for image in batch["images"]:
                widest = max(widest, (~(np.abs(image - PAD_COLOUR) < 1e-3).all(-1)).any(0).sum())
        assert widest == SIZE if side is None else widest >= round(90 * factor) - 4


def test_batches_are_a_function_of_seed_and_step(segmented):
    def seen(seed=3, **where):
        settings = config()
        settings = settings.model_copy(update={"train": settings.train.model_copy(update={"seed": seed})})
        return list(segment_train_batches(segmented, settings, 4, **where))

    run, resumed = seen(), seen(start=3)
    for name in run[0]:
        np.testing.assert_array_equal(run[3][name], resumed[0][name])
    assert not np.array_equal(run[3]["segments"], seen(seed=4)[3]["segments"])


@pytest.mark.parametrize("short_side", [None, 48, 75])
def test_evaluation_has_whole_images_and_maps_back(segmented, short_side):
    with segment_eval_batches(segmented, 2, short_side=short_side, max_long_side=200) as batches:
        batches = list(batches)
    assert sorted(np.concatenate([batch["index"] for batch in batches])) == [0, 1]
    for batch in batches:
        assert batch["images"].shape[1] % 32 == batch["images"].shape[2] % 32 == 0
        for image, size, index in zip(*(batch[k] for k in ("images", "image_sizes", "index")), strict=True):
            truth = segmented.truth(index)
            scale = 1 if short_side is None else short_side / min(truth.shape)
            np.testing.assert_array_equal(size, np.floor(np.array(truth.shape) * scale + 0.5))
            back = segments_to_original(nearest(image), size, truth.shape)
            clear = inner(truth) & (truth != 255)
            assert back.shape == truth.shape and (back[clear] == truth[clear]).mean() > 0.995


def test_images_are_augmented_anew_in_every_epoch(segmented):
    (batch,) = segment_train_batches(segmented.select([0]), config(), 1)  # four epochs of a single image
    assert len(np.unique(batch["segments"].reshape(4, -1), axis=0)) == 4


def test_classes_of_unchanged_size_are_unchanged():
    predicted = np.arange(32 * 64).reshape(32, 64)
    np.testing.assert_array_equal(segments_to_original(predicted, (20, 50), (20, 50)), predicted[:20, :50])
    np.testing.assert_array_equal(
        segments_to_original(predicted, (20, 50), (40, 100)), predicted[:20, :50].repeat(2, 0).repeat(2, 1)
    )


@pytest.mark.parametrize(("length", "source"), [(45, 30), (30, 45), (7, 500), (500, 7), (9, 9)])
def test_nearest_pixels_contain_the_centres(length, source):
    pixels = nearest_pixels(length, source)
    centres = (np.arange(length) + 0.5) * source / length
    assert (pixels <= centres + 1e-9).all() and (centres < pixels + 1 + 1e-9).all()


@pytest.mark.parametrize("flip", [False, True])
def test_values_are_aligned_with_pixels(flip):
    image = np.random.default_rng(0).integers(0, 255, (31, 47, 3), np.uint8)
    for offset, shown in (((5, -9), 31 * 38), ((-20, -31), 11 * 16), ((40, 30), 24 * 34)):
        place = Place((31, 47), (31, 47), (64, 64), offset, flip)
        pixels, (y, x) = place.put(image)
        expected = np.full((64, 64), 255)
        expected[y : y + pixels.shape[0], x : x + pixels.shape[1]] = pixels[..., 0]
        np.testing.assert_array_equal(place.put_values(image[..., 0], 255), expected)
        assert (expected < 255).sum() == shown


def test_masks_damaged_after_reading_are_named(tmp_path):
    root = write_segments(tmp_path / "set", {"train": PICTURES})
    read = read_segments(root, "train", ignore_value=IGNORE)
    assert unreadable_images(read) == {}
    Image.fromarray(np.zeros((3, 3), np.uint8)).save(root / "train" / "masks" / "001.png")
    ((path, reason),) = unreadable_images(read).items()
    assert path.endswith("masks/001.png") and "3 x 3" in reason and "90 x 50" in reason
