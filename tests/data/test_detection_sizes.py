"""Tests of batches with masks and of dynamic sizes: masks lie on their pixels, and sizes are the configured ones."""

import dataclasses

import numpy as np
import pytest

from dupr_tf.config import parse_config
from dupr_tf.data.detection import eval_batches, train_batches
from dupr_tf.data.labels.annotations import read_annotations
from dupr_tf.data.placing import PAD_COLOUR, to_original
from tests.labelled_scenes import COLOURS, GREY, NAMES, Picture, Thing
from tests.masked_scenes import draw, write_coco_masks

SIZE = 64


def scene(size):
    height, width = size
    first = (width // 8, height // 8, width // 8 + width // 3, height // 8 + height // 2)
    second = (width // 2, height // 4, width // 2 + 3 * width // 8, height // 4 + height // 2)
    return Picture(size, [Thing("bus", first), Thing("cat", second), Thing("dog", (0, 0, 6, 6), difficult=True)])


PICTURES = [scene(size) for size in ((60, 100), (100, 60), (80, 81), (50, 120), (120, 44))]


def config(**detector):
    settings = {
        "data": {"image_size": SIZE},
        "train": {"batch_size": 3, "seed": 3},
        "optimizer": {"learning_rate": 0.1},
    }
    return parse_config({**settings, "detector": detector})


@pytest.fixture(scope="module")
def annotated(tmp_path_factory):
    root = write_coco_masks(tmp_path_factory.mktemp("sizes") / "set", {"train": PICTURES})
    return read_annotations(root, "train", masks=True)


def pasted(crop, box, shape):
    """Returns (H, W) of 1 inside a mask, 0 outside, and 0.5 within a pixel and a half of its edges."""
    x1, y1, x2, y2 = box
    ys, xs = np.arange(shape[0]) + 0.5, np.arange(shape[1]) + 0.5
    made = []
    for dy, dx in np.ndindex(3, 3):
        rows = np.floor((ys + 1.5 * (dy - 1) - y1) / (y2 - y1) * len(crop)).astype(int)
        columns = np.floor((xs + 1.5 * (dx - 1) - x1) / (x2 - x1) * len(crop)).astype(int)
        inside = ((rows >= 0) & (rows < len(crop)))[:, None] & ((columns >= 0) & (columns < len(crop)))[None]
        values = crop[np.clip(rows, 0, len(crop) - 1)][:, np.clip(columns, 0, len(crop) - 1)]
        made.append(np.where(inside, values, 0))
    return np.where(np.min(made, 0) == np.max(made, 0), made[4], 0.5)


def check_masks(image, targets):
    """Checks that masks cover the pixels of their colour and no others; returns how many were checked."""
    checked = 0
    for box, label, crop in zip(*(targets[name] for name in ("boxes", "classes", "masks")), strict=True):
        if label < 0:
            assert not crop.any() and (box == -1).all()
            continue
        where, colour = pasted(crop, box, image.shape[:2]), COLOURS[NAMES[int(label)]]
        near = np.abs(image - colour).sum(-1) < 120
        assert set(np.unique(crop)) <= {0, 1} and crop.shape == (56, 56)
        assert near[where == 1].all() and not near[where == 0].any()
        checked += (where == 1).sum() > 20
    return checked


def rows(batch):
    for i, image in enumerate(batch["images"]):
        yield image, {name: rows[i] for name, rows in batch["bounding_boxes"].items()}


@pytest.mark.parametrize(
    "detector", [{"scale_jitter": [0.6, 1.8]}, {"short_sides": [48, 64, 90], "max_long_side": 130}]
)
def test_masks_lie_on_their_pixels(annotated, detector):
    checked, flipped = 0, 0
    for batch in train_batches(annotated, config(**detector), 10):
        assert batch["bounding_boxes"]["masks"].dtype == np.float32
        assert batch["bounding_boxes"]["masks"].shape == (3, 2, 56, 56)  # difficult objects are left out
        for image, targets in rows(batch):
            checked += check_masks(image, targets)
            boxes, classes = targets["boxes"], targets["classes"]
            flipped += (
                len(boxes[classes == 0])
                and len(boxes[classes == 1])
                and boxes[classes == 0][0, 0] > boxes[classes == 1][0, 0]
            )
    assert checked > 40 and 5 < flipped < 25


def test_sizes_are_the_configured_ones(annotated):
    seen = set()
    for batch in train_batches(annotated, config(short_sides=[48, 64, 90], max_long_side=130), 20):
        images, sizes = batch["images"], batch["image_sizes"]
        assert images.shape[1] % 32 == images.shape[2] % 32 == 0
        assert (images.shape[1:3] - sizes.max(0) < 32).all() and (images.shape[1:3] >= sizes.max(0)).all()
        for image, (height, width) in zip(images, sizes, strict=True):
            ratio = [abs(height - width * p.size[0] / p.size[1]) <= 1 for p in PICTURES]
            assert any(ratio)
            short, long = sorted((height, width))
            assert short in (48, 64, 90) or long == 130
            assert long <= 130
            seen.add(short)
            bottom, right = int(height), int(width)
            np.testing.assert_allclose(image[bottom:], np.broadcast_to(PAD_COLOUR, image[bottom:].shape), atol=1e-3)
            np.testing.assert_allclose(image[:, right:], np.broadcast_to(PAD_COLOUR, image[:, right:].shape), atol=1e-3)
            assert np.abs(image[bottom - 1, right - 1] - GREY).max() <= 1  # the last pixel of the picture
    assert {48, 64, 90} <= seen


def test_square_pictures_have_no_padding(annotated):
    for batch in train_batches(annotated, config(), 2):
        np.testing.assert_array_equal(batch["image_sizes"], [[SIZE, SIZE]] * 3)


def test_batch_without_masks_is_otherwise_equal(annotated):
    plain, settings = dataclasses.replace(annotated, masks=None), config(short_sides=[48, 64])
    for one, other in zip(train_batches(annotated, settings, 3), train_batches(plain, settings, 3), strict=True):
        assert set(other["bounding_boxes"]) == {"boxes", "classes"}
        np.testing.assert_array_equal(one["images"], other["images"])
        np.testing.assert_array_equal(one["bounding_boxes"]["boxes"], other["bounding_boxes"]["boxes"])


def test_dynamic_sizes_are_a_function_of_seed_and_step(annotated):
    def seen(settings, **where):
        return list(train_batches(annotated, settings, 6, **where))

    settings = config(short_sides=[48, 64, 90])
    run, resumed = seen(settings), seen(settings, start=4)
    for one, other in zip(run[4:], resumed, strict=True):
        for part, same in ((one, other), (one["bounding_boxes"], other["bounding_boxes"])):
            for name in set(part) - {"bounding_boxes"}:
                np.testing.assert_array_equal(part[name], same[name])
    other = settings.model_copy(update={"train": settings.train.model_copy(update={"seed": 4})})
    assert not all(np.array_equal(a["images"], b["images"]) for a, b in zip(run, seen(other), strict=True))


def test_evaluation_groups_orientations_and_maps_boxes_back(annotated):
    batches = list(eval_batches(annotated, None, 2, short_side=48, max_long_side=100))
    order = np.concatenate([batch["index"] for batch in batches])
    np.testing.assert_array_equal(order, [0, 2, 3, 1, 4])  # the wide images, then the tall ones
    for batch in batches:
        assert batch["images"].shape[1] % 32 == batch["images"].shape[2] % 32 == 0
        for image, size, factors, index in zip(
            *(batch[k] for k in ("images", "image_sizes", "factors", "index")), strict=True
        ):
            own = annotated.sizes[index]
            scale = min(48 / own.min(), 100 / own.max())
            np.testing.assert_array_equal(size, np.floor(own * scale + 0.5))
            np.testing.assert_allclose(factors, size / own, rtol=1e-6)
            red = np.abs(image - COLOURS["bus"]).sum(-1) < 150
            ys, xs = np.flatnonzero(red.any(1)), np.flatnonzero(red.any(0))
            extent = np.array([[xs[0], ys[0], xs[-1] + 1, ys[-1] + 1]])
            np.testing.assert_allclose(
                to_original(extent, factors, own), [PICTURES[index].things[0].box], atol=1.5 / scale
            )


def test_letterboxed_evaluation_stays_in_order(annotated):
    batches = list(eval_batches(annotated, SIZE, 2))
    np.testing.assert_array_equal(np.concatenate([batch["index"] for batch in batches]), range(5))
    sizes = np.concatenate([batch["image_sizes"] for batch in batches])
    np.testing.assert_array_equal(sizes, np.floor(annotated.sizes * SIZE / annotated.sizes.max(1, keepdims=True) + 0.5))


def test_drawn_picture_equals_the_batch(annotated):
    with eval_batches(annotated, None, 1, short_side=60, max_long_side=200) as batches:
        image = next(batches)["images"][0]
    np.testing.assert_array_equal(image[:60, :100], draw(PICTURES[0]))  # their short side becomes 60 px


@pytest.mark.parametrize("size", [(3, 900), (900, 3), (1, 1)])
def test_extreme_shapes_and_one_pixel_boxes_are_read(tmp_path, size):
    picture = Picture(size, [Thing("bus", (0, 0, 1, 1))])
    root = write_coco_masks(tmp_path / "set", {"train": [picture] * 3}, "runs", whole_masks)
    read = read_annotations(root, "train", masks=True)
    for batch in (
        *train_batches(read, config(short_sides=[64], max_long_side=100), 1),
        *eval_batches(read, None, 3, short_side=64),
    ):
        assert np.isfinite(batch["images"]).all() and min(batch["images"].shape[1:3]) >= 32
    (batch,) = train_batches(read, config(short_sides=[64], max_long_side=100), 1)
    boxes = batch["bounding_boxes"]["boxes"]
    assert (boxes[..., 2:] > boxes[..., :2]).all() and batch["bounding_boxes"]["masks"].all()


def whole_masks(content):
    for annotation in content["annotations"]:
        height, width = annotation["segmentation"]["size"]
        annotation["segmentation"]["counts"] = [0, height * width]
