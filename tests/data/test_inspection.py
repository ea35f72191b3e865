"""Tests of targets of the first batches: counts, refusals and the settings they name."""

import dataclasses

import numpy as np
import pytest
from PIL import Image

from dupr_tf.config import parse_config
from dupr_tf.data.detection import train_batches
from dupr_tf.data.inspection import count_boxes, inspect_targets, matched_boxes
from dupr_tf.data.labels.annotations import AnnotatedImages, read_annotations
from dupr_tf.data.labels.segments import read_segments
from tests.labelled_scenes import pictures, write_coco
from tests.refusals import refusal


def config(size=64, batch=4, **detector):
    return parse_config(
        {
            "data": {"image_size": size},
            "train": {"batch_size": batch, "seed": 3},
            "optimizer": {"learning_rate": 0.01},
            "detector": {"scale_jitter": [1, 1], **detector},
        }
    )


def annotated(*boxes_of_images, size=(100, 100), ignored=False):
    """Returns annotations of images of one size that do not exist on disk."""
    boxes = tuple(np.array(boxes, np.float32).reshape(-1, 4) for boxes in boxes_of_images)
    count = len(boxes)
    return AnnotatedImages(
        paths=tuple(f"{i}.png" for i in range(count)),
        sizes=np.array([size] * count, np.int32),
        boxes=boxes,
        labels=tuple(np.zeros(len(one), np.int32) for one in boxes),
        ignored=tuple(np.full(len(one), ignored) for one in boxes),
        areas=tuple(one[:, 2] * 0 for one in boxes),
        class_names=("bus",),
        bare=tuple(len(one) == 0 for one in boxes),
    )


def all_anchors(height, width, scale):
    """Returns (A, 4) xyxy: RetinaNet's anchors, one by one."""
    rows = []
    for stride in (8, 16, 32, 64, 128):
        for y in range(-(-height // stride)):
            for x in range(-(-width // stride)):
                for third in range(3):
                    for ratio in (0.5, 1, 2):
                        side = scale * stride * 2 ** (third / 3)
                        w, h, cx, cy = side * ratio**0.5, side / ratio**0.5, (x + 0.5) * stride, (y + 0.5) * stride
                        rows.append([cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2])
    return np.clip(rows, 0, [width, height, width, height])


def plainly_matched(boxes, height, width, scale, iou):
    anchors = all_anchors(height, width, scale)
    low, high = np.maximum(boxes[:, None, :2], anchors[:, :2]), np.minimum(boxes[:, None, 2:], anchors[:, 2:])
    shared = (high - low).clip(0).prod(-1)
    areas = [(rows[:, 2:] - rows[:, :2]).prod(-1) for rows in (boxes, anchors)]
    overlaps = shared / (areas[0][:, None] + areas[1] - shared)
    return np.array([((overlaps.argmax(0) == k) & (overlaps[k] >= iou)).any() for k in range(len(boxes))])


@pytest.mark.parametrize(("frame", "scale"), [((128, 96), 4), ((100, 150), 3), ((256, 256), 1)])
def test_matched_boxes_agree_with_all_anchors(frame, scale):
    rng, seen = np.random.default_rng(0), []
    height, width = (-(-side // 32) * 32 for side in frame)
    for _ in range(12):
        corners = rng.uniform(0, 1, (9, 2, 2)) * (frame[1], frame[0])
        boxes = np.concatenate([corners.min(1), corners.max(1)], 1).astype(np.float32)
        boxes[::2, 2:] = boxes[::2, :2] + rng.uniform(2, 30, (5, 2))  # as many small boxes
        boxes = np.clip(boxes, 0, [width, height, width, height])
        expected = plainly_matched(boxes, height, width, scale, 0.5)
        np.testing.assert_array_equal(matched_boxes(boxes, frame, scale, 0.5), expected)
        seen += expected.tolist()
    assert 0.2 < np.mean(seen) < 0.95


def test_box_whose_anchors_prefer_another_is_unmatched():
    box = np.array([[0, 0, 40, 40]], np.float32)
    both = np.concatenate([box, box])
    assert matched_boxes(both, (64, 64), 4, 0.5).tolist() == [True, False]


def test_counts_agree_with_the_batches(tmp_path):
    read = read_annotations(write_coco(tmp_path / "set", {"train": pictures(9, size=(60, 200))}), "train")
    settings = config(scale_jitter=[0.2, 3], batch=3)
    with train_batches(read, settings, 4) as batches:
        classes = [batch["bounding_boxes"]["classes"] for batch in batches]
    for step in range(4):
        counts = count_boxes(read, settings, step * 3, 3)
        assert counts.boxes - counts.cropped - counts.small == (classes[step] >= 0).sum()
    counts = count_boxes(read, settings, 0, 12)
    assert counts.images == 9 and counts.cropped > 0 and counts.boxes == sum(int((~i).sum()) for i in read.ignored)


@pytest.mark.parametrize(
    ("kind", "box", "share", "small", "unmatched"),
    [
        ("retinanet", [10, 10, 60, 60], 0, 0, 0),
        ("retinanet", [10, 10, 12, 60], 1, 1, 0),  # 1.3 px of 64
        ("retinanet", [10, 10, 20, 20], 1, 0, 1),  # 6.4 px; the smallest anchor has 32
        ("faster_rcnn", [10, 10, 20, 20], 0, 0, 0),  # its best anchor is positive
        ("mask_rcnn", [10, 10, 12, 60], 1, 1, 0),
    ],
)
def test_lost_boxes_are_counted_by_cause(kind, box, share, small, unmatched):
    counts = count_boxes(annotated([box]), config(kind=kind))
    assert (counts.lost_share, counts.small, counts.unmatched) == (share, small, unmatched)


def test_ignored_boxes_do_not_count():
    read = annotated([[10, 10, 60, 60], [1, 1, 2, 2]])
    read = dataclasses.replace(read, ignored=(np.array([False, True]),))
    assert count_boxes(read, config()).boxes == 1


@pytest.mark.parametrize(
    ("boxes", "settings", "field", "named"),
    [
        ([[100, 100, 112, 112]], {"size": 128}, "data.image_size", "tiles"),
        ([[100, 100, 112, 112]], {"short_sides": [96, 128]}, "detector.short_sides", "tiles"),
        ([[100, 100, 240, 240]], {"size": 128}, "data.image_size", "detector.anchor_scale"),
        ([[0.1, 0.2, 0.5, 0.9]], {}, "--data", "pixels"),
        ([], {}, "--data", "other labels"),
    ],
)
def test_task_without_targets_is_refused(boxes, settings, field, named):
    error = refusal(inspect_targets, annotated(boxes, size=(1200, 1600)), config(**settings))
    assert error.field == field and named in error.fix


def test_advised_image_size_keeps_the_boxes():
    read = annotated([[100, 100, 140, 140]], size=(1200, 1600))
    fix = refusal(inspect_targets, read, config(128)).fix
    size = int("".join(c for c in fix.split(",")[0] if c.isdigit()))
    assert count_boxes(read, config(size)).lost_share == 0


def test_most_boxes_lost_warns_once_and_names_the_setting(caplog):
    poor = annotated([[10, 10, 60, 60]], *[[[10, 10, 12, 60]]] * 3)
    text = inspect_targets(poor, config())
    assert "75.0%" in text and [r.levelname for r in caplog.records] == ["WARNING"]
    assert "data.image_size" in caplog.text
    caplog.clear()
    inspect_targets(annotated(*[[[10, 10, 60, 60]]] * 4), config())
    assert not caplog.records


def test_ignored_boxes_alone_give_no_target():
    assert refusal(inspect_targets, annotated([[10, 10, 60, 60]], ignored=True), config()).field == "--data"


def test_share_of_background_is_shown(caplog):
    read = dataclasses.replace(annotated([[10, 10, 60, 60]], [], [], []), background=True)
    assert "3 of 4" in inspect_targets(read, config()) and not caplog.records
    inspect_targets(dataclasses.replace(annotated([[10, 10, 60, 60]]), background=True), config())
    assert "data.background" in caplog.text


# ---- classes of pixels ----


def masks(root, *values, count=20, names=None):
    """Makes a folder of masks in equal stripes of the given values, one tuple of values for each mask."""
    for split in ("train", "val"):
        for folder in ("images", "masks"):
            (root / split / folder).mkdir(parents=True)
        for i in range(count):
            stripes = np.repeat(np.array(values[i % len(values)], np.uint8), 8)
            Image.fromarray(np.tile(stripes[:, None], 24)).save(root / split / "masks" / f"{i:02}.png")
            Image.new("RGB", (24, len(stripes))).save(root / split / "images" / f"{i:02}.png")
    if names:
        (root / "classes.txt").write_text(names)
    return root


@pytest.mark.parametrize(
    ("values", "names", "shown"),
    [
        ([(0, 255)], None, "50.0%"),
        ([(0, 255)], "background\nlesion\n", "background"),
        ([(0, 9)], "0 road\n1 car\n9 void\n", "road"),
        ([(255, 255)], "road\ncar\n", "100.0%"),
    ],
)
def test_masks_of_one_class_are_refused(tmp_path, values, names, shown):
    read = read_segments(masks(tmp_path, *values, names=names), "train")
    error = refusal(inspect_targets, read, config(kind="fcn"))
    assert error.field == "--data" and shown in error.problem and "255" in error.fix


def test_second_class_may_be_in_any_mask(tmp_path):
    values = [(0, 0)] * 40
    values[31] = (0, 1)
    read = read_segments(masks(tmp_path, *values, count=40, names="road\ncar\nbus\n"), "train")
    text = inspect_targets(read, config(kind="fcn"))
    assert "2 of 3 classes" in text and "bus" in text
