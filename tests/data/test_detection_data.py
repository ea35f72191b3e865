"""Tests of batches for detectors: boxes follow their pixels, order and augmentation follow the seed."""

import dataclasses
import json

import numpy as np
import pytest
from PIL import Image

from dupr_tf.config import parse_config
from dupr_tf.data.detection import eval_batches, train_batches, unreadable_images
from dupr_tf.data.labels.annotations import read_annotations
from dupr_tf.data.placing import PAD_COLOUR, drawn_place, letterbox, pad_batch, scaled, to_original
from dupr_tf.errors import RunFailed, UserError
from tests.data.bad_images import with_orientation
from tests.labelled_scenes import COLOURS, Picture, Thing, draw, pictures, with_polygons, write_coco

SIZE = 64


def config(**detector):
    return parse_config(
        {
            "data": {"image_size": SIZE},
            "train": {"batch_size": 4, "seed": 3},
            "optimizer": {"learning_rate": 0.01},
            "detector": detector,
        }
    )


@pytest.fixture(scope="module")
def annotated(tmp_path_factory):
    root = write_coco(tmp_path_factory.mktemp("batches") / "set", {"train": pictures(9)})
    return read_annotations(root, "train")


def red_extent(image, colour=COLOURS["bus"]):
    """Returns x1, y1, x2, y2 of the pixels nearer to a colour than to the grey or the padding around it."""
    image = np.asarray(image, np.float32)
    mask = np.abs(image - colour).sum(-1) < 100
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return np.array([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1], np.float32)


def scenes():
    """Makes a wide, a tall and a square picture, each with one red rectangle off centre."""
    for size in ((50, 96), (90, 44), (300, 300)):
        height, width = size
        box = (width // 5, height // 3, width // 5 + width // 3, height // 3 + height // 4)
        yield draw(Picture(size, [Thing("bus", box)])), np.array([box], np.float32)


def square(image, place):
    """Returns (S, S, 3) float32: an image in its frame."""
    pixels, corner = place.put(image)
    return pad_batch([{"pixels": pixels[None], "corner": np.array([corner])}], place.frame[0])["images"][0]


def test_boxes_follow_their_pixels_through_every_augmentation():
    rng = np.random.default_rng(0)
    seen = 0
    for image, boxes in scenes():
        for draws in rng.random((12, 4)):
            place = drawn_place(image.shape[:2], draws, SIZE, (0.7, 1.6))
            moved = place.move(boxes)
            np.testing.assert_allclose(place.move_back(moved), boxes, atol=1e-3)
            expected = np.clip(moved[0], 0, SIZE)
            if min(expected[2:] - expected[:2]) >= 4:
                np.testing.assert_allclose(red_extent(square(image, place)), expected, atol=1.01)
                seen += 1
    assert seen > 20


def test_augmentation_spans_its_ranges():
    image, boxes = next(scenes())
    side = np.array([0.5, 2.0])
    for draw_value, factor in ((0.0, side[0]), (0.5, 1.0), (1.0, side[1])):  # log-uniform: 1 is in the middle
        place = drawn_place(image.shape[:2], np.array([draw_value, 0.0, 0.0, 0.9]), SIZE, side)
        assert place.size[1] == factor * SIZE and place.offset == (0, 0)
    last = 1 - 1e-9
    for scale, room in ((0.5, SIZE // 2), (2.0, -SIZE)):
        place = drawn_place(image.shape[:2], np.array([0.5, last, last, 0.9]), SIZE, (scale, scale))
        assert place.offset[1] == room  # at the right edge
    left = drawn_place(image.shape[:2], np.array([0.0, 0.0, 0.0, 0.9]), SIZE, side).move(boxes)
    flipped = drawn_place(image.shape[:2], np.array([0.0, 0.0, 0.0, 0.1]), SIZE, side).move(boxes)
    np.testing.assert_allclose(flipped[0], [SIZE - left[0, 2], left[0, 1], SIZE - left[0, 0], left[0, 3]])


def test_offsets_are_uniform_over_whole_numbers():
    draws = np.stack([np.full(4000, 0.5), *np.random.default_rng(0).random((3, 4000))], 1)
    places = [drawn_place((40, 40), row, 43, (40 / 43, 40 / 43)) for row in draws]
    counts = np.bincount([place.offset[0] for place in places])
    assert len(counts) == 4 and counts.min() > 900
    assert 1900 < sum(place.flip for place in places) < 2100


@pytest.mark.parametrize(
    ("source", "side", "size"),
    [((333, 500), 250, (167, 250)), ((500, 375), 256, (256, 192)), ((1, 900), 64, (1, 64)), ((3, 3), 64, (64, 64))],
)
def test_letterboxed_sides_round_halves_up(source, side, size):
    assert letterbox(source, side).size == size


@pytest.mark.parametrize(
    ("source", "size"),
    [((480, 640), (600, 800)), ((375, 1000), (375, 1000)), ((90, 2000), (45, 1000)), ((7, 7), (600, 600))],
)
def test_short_side_decides_unless_long_one_exceeds_limit(source, size):
    assert scaled(source, 600, 1000).size == size
    assert scaled(source, None, 1000).size == source


def test_letterbox_keeps_the_aspect_and_boxes_map_back():
    for image, boxes in scenes():
        height, width = image.shape[:2]
        place = letterbox((height, width), SIZE)
        pixels = square(image, place)
        np.testing.assert_allclose(place.factors, SIZE / max(height, width), atol=0.5 / min(height, width))
        np.testing.assert_allclose(red_extent(pixels), place.move(boxes)[0], atol=1.01)
        np.testing.assert_allclose(to_original(place.move(boxes), place.factors, (height, width)), boxes, rtol=1e-5)
        if height != width:
            np.testing.assert_allclose(pixels[-1, -1], PAD_COLOUR, atol=1e-3)
        np.testing.assert_allclose(pixels[0, 0], [120] * 3, atol=0.5)  # top left is image
    np.testing.assert_array_equal(to_original([[-9, -9, 900, 900]], [0.5, 0.5], (40, 30)), [[0, 0, 30, 40]])
    np.testing.assert_array_equal(to_original([[4, 4, 8, 8]], [0.5, 0.25], (40, 40)), [[16, 8, 32, 16]])


def test_eval_batches_contain_each_image_once_in_order(annotated):
    with eval_batches(annotated, SIZE, 4) as batches:
        assert len(batches) == 3
        batches = list(batches)
    assert [len(batch["images"]) for batch in batches] == [4, 4, 1]
    factors = np.concatenate([batch["factors"] for batch in batches])
    sizes = np.concatenate([batch["image_sizes"] for batch in batches])
    np.testing.assert_array_equal(sizes, np.floor(annotated.sizes * SIZE / annotated.sizes.max(1, keepdims=True) + 0.5))
    np.testing.assert_allclose(factors, sizes / annotated.sizes, rtol=1e-6)


def test_training_boxes_are_true_clipped_and_padded(annotated):
    for batch in train_batches(annotated, config(scale_jitter=[1.2, 2.0]), 12):
        boxes, classes = (batch["bounding_boxes"][name] for name in ("boxes", "classes"))
        assert batch["images"].shape == (4, SIZE, SIZE, 3) and boxes.shape == (4, 2, 4)  # the third box is difficult
        real = classes >= 0
        np.testing.assert_array_equal(boxes[~real], -1)
        assert boxes[real].min() >= 0 and boxes[real].max() <= SIZE
        assert (boxes[real][:, 2:] - boxes[real][:, :2]).min() >= 2


def test_ignored_boxes_are_not_trained_on(annotated):
    hidden = dataclasses.replace(annotated, ignored=tuple(np.ones_like(flags) for flags in annotated.ignored))
    with pytest.raises(UserError):
        train_batches(hidden, config(), 1)
    first = tuple(np.full_like(flags, i != 5) for i, flags in enumerate(annotated.ignored))
    (batch,) = train_batches(dataclasses.replace(annotated, ignored=first), config(scale_jitter=[0.5, 0.8]), 1)
    expected = sorted(annotated.labels[5])
    for classes in batch["bounding_boxes"]["classes"]:
        assert sorted(classes[classes >= 0]) == expected


@pytest.mark.parametrize(("scale", "kept"), [(2.2, True), (2.3, False)])  # the crop shows 0.206 and 0.190 of the box
def test_boxes_that_a_crop_cuts_below_a_fifth_are_left_out(tmp_path, scale, kept):
    root = write_coco(tmp_path / "set", {"train": [Picture((40, 40), [Thing("bus", (0, 0, 40, 40))])]})
    batches = train_batches(read_annotations(root, "train"), config(scale_jitter=[scale, scale]), 2)
    boxes = np.concatenate([batch["bounding_boxes"]["boxes"] for batch in batches])
    np.testing.assert_array_equal(boxes, np.broadcast_to([0, 0, SIZE, SIZE] if kept else [-1.0] * 4, (8, 1, 4)))


def test_images_are_augmented_anew_in_every_epoch(annotated):
    (batch,) = train_batches(annotated.select([0]), config(), 1)  # four epochs of a single image
    boxes = batch["bounding_boxes"]["boxes"][:, 0]
    assert len(np.unique(boxes.round(2), axis=0)) == 4


def test_batches_are_a_function_of_seed_and_step(annotated):
    def images(batches):
        return np.stack([batch["images"] for batch in batches])

    run = images(train_batches(annotated, config(), 5))
    assert run.shape == (5, 4, SIZE, SIZE, 3) and run.dtype == np.float32
    np.testing.assert_array_equal(run, images(train_batches(annotated, config(), 5)))
    np.testing.assert_array_equal(run[3:], images(train_batches(annotated, config(), 5, start=3)))
    other = config().model_copy(update={"train": config().train.model_copy(update={"seed": 4})})
    assert not np.array_equal(run, images(train_batches(annotated, other, 5)))


def test_epochs_are_different_permutations(annotated):
    # Each image has a unique class, which identifies it.
    names = tuple("abcdefghi")
    labels = tuple(np.full_like(rows, i) for i, rows in enumerate(annotated.labels))
    marked = dataclasses.replace(annotated, labels=labels, class_names=names)
    batches = train_batches(marked, config(scale_jitter=[0.5, 0.8]), 9)
    order = np.concatenate([batch["bounding_boxes"]["classes"][:, 0] for batch in batches])
    epochs = order.reshape(4, 9)
    assert all(sorted(epoch) == list(range(9)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 4


def test_unreadable_images_are_named(tmp_path):
    root = write_coco(tmp_path / "set", {"train": pictures(3)})
    (root / "images" / "train_002.png").write_bytes(b"not a picture")
    bad = unreadable_images(read_annotations(root, "train"))
    assert [(path.rsplit("/", 1)[1], reason.split(":")[0]) for path, reason in bad.items()] == [
        ("train_002.png", "no image")
    ]


def test_unreadable_image_ends_training_and_evaluation_by_name(tmp_path):
    root = write_coco(tmp_path / "set", {"train": pictures(4)})
    (root / "images" / "train_002.png").write_bytes(b"not a picture")
    read = read_annotations(root, "train")
    for batches in (train_batches(read, config(), 3), eval_batches(read, SIZE, 4)):
        with batches, pytest.raises(RunFailed, match=r"1 of the 4 .*train_002\.png") as error:
            list(batches)
        assert batches.error is error.value


def test_processes_and_threads_give_the_same_batches(annotated):
    expected = list(train_batches(annotated, config(), 4))
    for reading in ({"threads": 3}, {"threads": 1, "processes": 2}):
        settings = config()
        settings = settings.model_copy(update={"data": settings.data.model_copy(update=reading)})
        with train_batches(annotated, settings, 4) as batches:
            for batch, one in zip(batches, expected, strict=True):
                np.testing.assert_array_equal(batch["images"], one["images"])
                np.testing.assert_array_equal(batch["bounding_boxes"]["boxes"], one["bounding_boxes"]["boxes"])


def test_boxes_lie_on_their_pixels_in_rotated_images(tmp_path):
    box = (50, 10, 80, 25)
    root = write_coco(tmp_path / "set", {"train": [Picture((60, 100), [Thing("bus", box)])] * 8})
    for value, path in enumerate(sorted((root / "images").iterdir()), start=1):
        with Image.open(path) as image:
            path.write_bytes(with_orientation(image, value, "PNG"))
    read = read_annotations(root, "train")
    for batch in eval_batches(read, SIZE, 8):
        for image, factors in zip(batch["images"], batch["factors"], strict=True):
            np.testing.assert_allclose(red_extent(image), np.array(box) * factors[[1, 0, 1, 0]], atol=1.01)
    for batch in train_batches(read, config(scale_jitter=[0.9, 1.0]), 4):
        for image, boxes in zip(batch["images"], batch["bounding_boxes"]["boxes"], strict=True):
            np.testing.assert_allclose(red_extent(image), boxes[0], atol=1.01)


# ---- images without boxes ----


def background_root(root):
    """Makes four images with boxes, two without, one whose only box lies outside, and one with only a crowd."""
    made = [*pictures(4), *[Picture((50, 60), [])] * 2, *[Picture((50, 60), [Thing("bus", (4, 4, 40, 40))])] * 2]
    root = write_coco(root, {"train": made})
    file = root / "annotations" / "instances_train.json"
    content = json.loads(file.read_text())
    content["annotations"][-2]["bbox"] = [500, 500, 9, 9]
    content["annotations"][-1]["iscrowd"] = 1
    file.write_text(json.dumps(content))
    return root


@pytest.mark.parametrize(("background", "kept"), [(False, range(4)), (True, range(6))])
@pytest.mark.parametrize("sides", [None, [64, 96]])
def test_images_without_boxes_train_background_only(tmp_path, background, kept, sides):
    read = read_annotations(background_root(tmp_path / "set"), "train", max_bad_share=0.2)
    read = dataclasses.replace(read, background=background)
    assert read.trained_on() == list(kept) and read.with_boxes() == [0, 1, 2, 3]
    settings = config(short_sides=sides, scale_jitter=[1, 1])
    with train_batches(read, settings, 3) as batches:  # two epochs
        empty = np.concatenate([(batch["bounding_boxes"]["classes"] < 0).all(1) for batch in batches])
    assert len(empty) == 12 and empty.sum() == (4 if background else 0)


def test_images_without_boxes_train_with_empty_masks(tmp_path):
    root = with_polygons(background_root(tmp_path / "set"))
    read = dataclasses.replace(read_annotations(root, "train", max_bad_share=0.2, masks=True), background=True)
    with train_batches(read, config(kind="mask_rcnn", scale_jitter=[1, 1]), 3) as batches:
        for batch in batches:
            targets = batch["bounding_boxes"]
            empty = (targets["classes"] < 0).all(1)
            assert not targets["masks"][empty].any() and targets["masks"][~empty].any((1, 2, 3)).all()


def test_share_of_images_without_boxes_has_no_boxes(tmp_path):
    read = dataclasses.replace(
        read_annotations(background_root(tmp_path / "set"), "train", max_bad_share=0.2), background=True
    )
    part = read.select([5, 0, 6])
    assert (part.bare, part.trained_on()) == ((True, False, False), [0, 1])
