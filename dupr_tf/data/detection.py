"""Reads batches for a detector: images decoded upright, augmented, letterboxed or scaled, with boxes and masks.

Boxes are `(x1, y1, x2, y2)` in pixels, KerasCV's "xyxy". Sample order and augmentation are functions of the
seed and the position in the run, so a run can be repeated exactly.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import numpy as np

from dupr_tf.config import Config, DataConfig
from dupr_tf.data.file_results import FileResults
from dupr_tf.data.images.bad_images import unusable_reason
from dupr_tf.data.images.decode import Unusable, decode
from dupr_tf.data.images.source import read_file
from dupr_tf.data.labels.annotations import AnnotatedImages
from dupr_tf.data.labels.run_lengths import MASK_SIDE, crop_masks
from dupr_tf.data.labels.segments import SegmentedImages
from dupr_tf.data.order import Order, grouped_epoch, shuffled_epoch
from dupr_tf.data.placing import DRAWS, Place, drawn_place, letterbox, pad_batch, scaled
from dupr_tf.data.reader import Block, Reader
from dupr_tf.data.views import uniform
from dupr_tf.errors import RunFailed, UserError
from dupr_tf.text import escape

MIN_VISIBLE_SHARE = 0.2  # share of a box's area; a crop that leaves less removes the box
MIN_SIDE = 2.0  # px; a crop that leaves a shorter side removes the box


def train_batches(annotated: AnnotatedImages, config: Config, steps: int, start: int = 0) -> Reader:
    """Opens a reader of augmented batches of the steps `start` to `steps`.

    Images without a box to train on are left out. Images without any annotation stay if `annotated.background` is set.
    Every epoch has its own order, and a batch may span two epochs. Half of the images are mirrored.

    Without `detector.short_sides` an image is scaled, cropped or padded to a square of `data.image_size`. The whole
    square counts as part of the image. With `detector.short_sides` an image is scaled to one of these lengths, with a
    long side of at most `max_long_side`. The images of a batch are padded below and on the right with the mean colour,
    to the largest one in multiples of 32. Batches hold only wide or only tall images where possible.

    Args:
        annotated: the training split.
        config: its `data`, `train.batch_size` B, `train.seed` and `detector` are used.
        steps: number of steps of the whole run.
        start: first step to produce.

    Returns:
        A reader, to be closed by the caller, of `{"images": (B, H, W, 3) float32 in 0–255, "image_sizes": (B, 2)
        float32 height and width without padding, "bounding_boxes": {"boxes": (B, M, 4) float32, "classes": (B, M)
        float32}}`. M is the largest number of boxes in an image; unused rows hold -1. If masks were read,
        `bounding_boxes` also has `masks` (B, M, 56, 56) float32, 0 or 1: the part of each mask in its box. An image
        that cannot be decoded ends the iteration with `RunFailed`.
    """
    examples, batch = TrainingExamples(annotated, config), config.train.batch_size
    side, most = examples.side, examples.most_boxes
    targets = {"boxes": ((batch, most, 4), np.float32), "classes": ((batch, most), np.float32)}
    if annotated.masks is not None:
        targets["masks"] = ((batch, most, MASK_SIDE, MASK_SIDE), np.float32)
    signature = {
        "images": ((batch, side, side, 3), np.float32),
        "image_sizes": ((batch, 2), np.float32),
        "bounding_boxes": targets,
    }
    return open_reader(
        examples, start * batch, steps * batch, signature, batch, config.data, annotated, _TrainingBatch(side)
    )


def eval_batches(
    annotated: AnnotatedImages,
    image_size: int | None,
    batch_size: int,
    data: DataConfig | None = None,
    short_side: int | None = None,
    max_long_side: int = 1333,
) -> Reader:
    """Reads every image once, scaled and padded below and on the right, without augmentation.

    Args:
        annotated: N images.
        image_size: side S of the square that images are letterboxed to. They keep their order.
        batch_size: images a batch, at most.
        data: how images are read: `max_pixels`, `threads` and `processes`. None takes the defaults.
        short_side: px; images are scaled to it instead. Wide images come before tall ones. A batch is as large as its
            largest image, in multiples of 32.
        max_long_side: px, with `short_side`.

    Returns:
        A reader, to be closed by the caller, of `{"images": (b, H, W, 3) float32, "image_sizes": (b, 2) float32 height
        and width without padding, "factors": (b, 2) float32 as `to_original` takes them, "index": (b,) int64 position
        in `annotated`}`.
    """
    data = data or DataConfig()
    place = functools.partial(letterbox, side=image_size)
    order, side = np.arange(len(annotated)), image_size
    if short_side is not None:
        place = functools.partial(scaled, short_side=short_side, max_long_side=max_long_side)
        order, side = wide_first(annotated.sizes), None
    return open_eval_reader(annotated, order, place, side, batch_size, data)


def open_eval_reader(images, order: np.ndarray, place: Callable, side: int | None, batch: int, data: DataConfig):
    """Opens a reader that yields every image once, as `eval_batches` describes.

    Args:
        images: `AnnotatedImages` or `SegmentedImages`.
        order: (N,) positions of the images, in the order to read them.
        place: (height, width) -> the image's `Place`.
        side: side of the batch's images. None takes that of the largest.
        batch: images of a batch, at most.
        data: how images are read.
    """
    signature = {
        "images": ((None, side, side, 3), np.float32),
        "image_sizes": ((None, 2), np.float32),
        "factors": ((None, 2), np.float32),
        "index": ((None,), np.int64),
    }
    examples = _EvalExamples(images.paths, order, place, data)
    return open_reader(
        examples, 0, len(images), signature, batch, data, images, functools.partial(pad_batch, side=side)
    )


def open_reader(make, first: int, last: int, signature: dict, batch: int, data: DataConfig, images, merge) -> Reader:
    """Opens a reader whose blocks are single images. They are padded to the size of their batch."""
    refuse = functools.partial(_refuse_unreadable, images, data)
    return Reader(make, first, last, signature, batch, data.threads, data.processes, refuse, merge)


def wide_first(sizes: np.ndarray) -> np.ndarray:
    """Returns the positions (N,) of images of sizes (N, 2), wide images before tall ones."""
    return np.argsort(sizes[:, 0] > sizes[:, 1], kind="stable")


def read_image(path: str, data: DataConfig | None = None) -> np.ndarray:
    """Reads a file as (H, W, 3) uint8 RGB, upright. Raises `Unusable` if it cannot be decoded."""
    data = data or DataConfig()
    return decode(read_file(path), data.max_pixels, depth=data.depth)


def image_rows(image: np.ndarray, place: Place) -> dict[str, np.ndarray]:
    """Returns the rows (1, …) from which `pad_batch` makes one image of a batch: pixels and their corner."""
    pixels, corner = place.put(image)
    return {"pixels": pixels[None], "corner": np.array([corner])}


class _EvalExamples:
    """Makes a block of each image."""

    def __init__(self, paths, order: np.ndarray, place: Callable[[tuple], Place], data: DataConfig):
        self.paths, self.order, self.place, self.data = paths, order, place, data

    def __call__(self, number: int) -> Block:
        index = int(self.order[number])
        try:
            image = read_image(self.paths[index], self.data)
        except Unusable as error:
            return Block({}, ((index, str(error)),))
        place = self.place(image.shape[:2])
        return Block(
            {
                **image_rows(image, place),
                "image_sizes": np.array([place.size], np.float32),
                "factors": place.factors[None],
                "index": np.array([index], np.int64),
            }
        )


class TrainingExamples:
    """Makes a block of the image at a position of the run. Images without anything to train on are left out."""

    def __init__(self, annotated: AnnotatedImages, config: Config):
        kept = annotated.trained_on()
        if not annotated.with_boxes():
            raise UserError("annotated", "None of the images has a box to train on.", "Use annotated images.")
        self.kept, self.sizes = kept, annotated.sizes[kept]
        used = [np.flatnonzero(~annotated.ignored[i]) for i in kept]
        self.most_boxes = max(map(len, used))
        self.paths = [annotated.paths[i] for i in kept]
        self.boxes, self.labels = (
            [column[i][rows] for i, rows in zip(kept, used, strict=True)]
            for column in (annotated.boxes, annotated.labels)
        )
        self.masks = None
        if annotated.masks is not None:
            self.masks = [[annotated.masks[i][k] for k in rows] for i, rows in zip(kept, used, strict=True)]
        self.detector, self.data, self.seed = config.detector, config.data, config.train.seed
        self.side = None if config.detector.short_sides else config.data.image_size
        permutation = functools.partial(shuffled_epoch, len(kept), self.seed)
        if self.side is None:
            tall = self.sizes[:, 0] > self.sizes[:, 1]
            permutation = functools.partial(grouped_epoch, tall, config.train.batch_size, self.seed)
        self.order = Order(len(kept), permutation)

    def __call__(self, position: int) -> Block:
        index = self.order(position)
        try:
            image = read_image(self.paths[index], self.data)
        except Unusable as error:
            return Block({}, ((self.kept[index], str(error)),))
        place = self.place(position, image.shape[:2])
        boxes, kept = visible_boxes(place.move(self.boxes[index]), place.frame, crops=self.side is not None)
        targets = {
            "boxes": self._padded(boxes, -1, np.float32),
            "classes": self._padded(self.labels[index][kept], -1, np.float32),
        }
        if self.masks is not None:
            targets["masks"] = self._padded(self._crops(index, kept, boxes, place), 0, np.uint8)
        sizes = np.array([place.frame], np.float32)
        return Block({**image_rows(image, place), "image_sizes": sizes, "bounding_boxes": targets})

    def place(self, position: int, size) -> Place:
        """Returns the place of an image at a position of the run; `size` is its height and width."""
        draws = uniform(self.seed, 0, position, (DRAWS,))
        if self.side is not None:
            return drawn_place(size, draws, self.side, self.detector.scale_jitter)
        sides = self.detector.short_sides
        return scaled(size, sides[int(draws[0] * len(sides))], self.detector.max_long_side, flip=bool(draws[3] < 0.5))

    def _crops(self, index: int, kept: np.ndarray, boxes: np.ndarray, place: Place) -> np.ndarray:
        """Returns (k, 56, 56) uint8 masks of the boxes (k, 4) of the frame; `kept` marks their boxes in the image."""
        height, width = self.sizes[index]
        masks = [self.masks[index][k] for k in np.flatnonzero(kept)]
        boxes = np.clip(place.move_back(boxes), 0, [width, height, width, height])
        return crop_masks(masks, (height, width), boxes)[:, :, :: -1 if place.flip else 1]

    def _padded(self, rows: np.ndarray, missing: int, dtype) -> np.ndarray:
        """Pads rows to (1, most_boxes, …)."""
        padded = np.full((1, self.most_boxes, *rows.shape[1:]), missing, dtype)
        padded[0, : len(rows)] = rows
        return padded


class _TrainingBatch:
    """Joins the images of a batch. Masks become float32 only here, since that makes them four times as large."""

    def __init__(self, side: int | None):
        self.side = side

    def __call__(self, parts: list[dict]) -> dict:
        batch = pad_batch(parts, self.side)
        targets = batch["bounding_boxes"]
        if "masks" in targets:
            batch["bounding_boxes"] = {**targets, "masks": targets["masks"].astype(np.float32)}
        return batch


def visible_boxes(boxes: np.ndarray, frame, crops: bool) -> tuple[np.ndarray, np.ndarray]:
    """Cuts boxes to a frame and drops those of which a crop leaves too little.

    Args:
        boxes: (n, 4) px.
        frame: height and width.
        crops: whether boxes are dropped.

    Returns:
        (k, 4) boxes, and (n,) bool that marks the k boxes kept.
    """
    clipped = np.clip(boxes, 0, np.float32(frame)[[1, 0, 1, 0]])
    if not crops:
        return clipped, np.ones(len(boxes), bool)
    kept = enough_visible(boxes, clipped) & (sides(clipped).min(1) >= MIN_SIDE)
    return clipped[kept], kept


def enough_visible(boxes: np.ndarray, clipped: np.ndarray) -> np.ndarray:
    """Returns (n,) bool: whether enough of the boxes (n, 4) is left after they were cut to `clipped`."""
    return sides(clipped).prod(1) >= MIN_VISIBLE_SHARE * sides(boxes).prod(1)


def sides(boxes: np.ndarray) -> np.ndarray:
    """Returns width and height of boxes, (n, 2)."""
    return boxes[:, 2:] - boxes[:, :2]


def unreadable_images(
    images: AnnotatedImages | SegmentedImages, data: DataConfig | None = None, results: FileResults | None = None
) -> dict[str, str]:
    """Returns {path: reason} of the images that cannot be used. Decodes all images, JPEGs at an eighth of their size.

    Args:
        images: the split. The masks of `SegmentedImages` are read too, at every call.
        data: how images are read. None takes the defaults.
        results: results of an earlier check. An image that has not changed since is not decoded again.
    """
    data, results, paths = data or DataConfig(), results or FileResults(), images.paths
    what = f"unusable image, max_pixels {data.max_pixels}, depth {data.depth}"
    reasons = results.of(what, paths, lambda i: unusable_reason(paths[i], data.max_pixels, data.depth), data.threads)
    bad = {path: reason for path, reason in zip(paths, reasons, strict=True) if reason}
    return bad | images.unreadable_segments() if isinstance(images, SegmentedImages) else bad


def _refuse_unreadable(images, data: DataConfig, index: int, reason: str) -> None:
    """Ends the run at the first image that cannot be used. The error names it and counts the others."""
    bad = unreadable_images(images, data) or {images.paths[index]: reason}
    path, reason = next(iter(bad.items()))
    raise RunFailed(
        f"{len(bad)} of the {len(images)} images cannot be decoded, such as {escape(path)} ({escape(reason)}). "
        "Replace these files, or take them out of the annotations."
    )
