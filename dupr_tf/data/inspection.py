"""Checks the targets of the first training batches, so that a task without targets is refused before training.

Boxes are placed as in the batches, by the sizes of the images. No image is decoded; a few masks of classes are.
"""

from __future__ import annotations

import functools
import itertools
import logging
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from dupr_tf.config import Config
from dupr_tf.config.detectors import DETECTORS
from dupr_tf.data.detection import MIN_SIDE, TrainingExamples, enough_visible, sides
from dupr_tf.data.labels.annotations import AnnotatedImages
from dupr_tf.data.labels.counts import count_lines
from dupr_tf.data.labels.segments import IGNORED, SegmentedImages
from dupr_tf.data.placing import STRIDE
from dupr_tf.errors import UserError
from dupr_tf.text import escape

log = logging.getLogger(__name__)
IMAGES = 128  # images inspected at most, for boxes
MASKS = 16  # masks inspected, for classes of pixels; more only while there is a single class
MUCH = 0.5  # share of lost boxes above which a warning is logged
ANCHOR_SCALE = 4.0  # RetinaNet's default of detector.anchor_scale
STRIDES = (8, 16, 32, 64, 128)  # px, of RetinaNet's levels P3 to P7
OCTAVES, RATIOS = (1, 2 ** (1 / 3), 2 ** (2 / 3)), (0.5, 1.0, 2.0)  # factors of an anchor's side; its width / height


@dataclass(frozen=True)
class BoxCounts:
    """Counts the boxes of some training images as they appear in batches."""

    images: int = 0
    boxes: int = 0  # boxes that count
    cropped: int = 0  # left out by random crops, which differ in every epoch
    small: int = 0  # lost: under `MIN_SIDE` px
    unmatched: int = 0  # lost: without an anchor
    short_sides: tuple[float, ...] = ()  # px, the shorter side of each box that is not cropped, at the network

    @property
    def lost_share(self) -> float:
        """Returns the share of boxes that train nothing, without cropped ones; NaN if there are no boxes."""
        left = self.boxes - self.cropped
        return (self.small + self.unmatched) / left if left else float("nan")

    def summary(self) -> str:
        """Returns one line: how many boxes there are, how large they are, and how many are lost."""
        if not self.short_sides:
            return f"{self.boxes} boxes in {self.images} images, all of them cropped"
        low, median, high = np.percentile(self.short_sides, (5, 50, 95))
        return (
            f"{self.boxes} boxes in {self.images} images, nine tenths with short sides of {low:.3g} to {high:.3g} px "
            f"(median {median:.3g}) at the network; {self.lost_share:.1%} are lost: {self.small} under "
            f"{MIN_SIDE:g} px, {self.unmatched} without an anchor"
        )


def inspect_targets(images: AnnotatedImages | SegmentedImages, config: Config) -> str:
    """Checks the targets of the first batches, and warns if they are poor.

    Args:
        images: the training split.
        config: config as for the batches.

    Returns:
        One line that describes the targets.

    Raises:
        UserError: there is nothing to learn: no box, no box that reaches a batch, or a single class of pixels.
    """
    if isinstance(images, SegmentedImages):
        return _inspect_classes(images)
    counts = _count_lost(images, config)
    if counts.lost_share > MUCH:
        log.warning("%s", UserError(*lost_boxes(images, config, counts)))
    return "targets: " + counts.summary() + _background(images)


def check_targets(images: AnnotatedImages | SegmentedImages, config: Config) -> None:
    """Raises the errors of `inspect_targets`, and logs nothing."""
    if isinstance(images, SegmentedImages):
        _inspect_classes(images)
    else:
        _count_lost(images, config)


def _count_lost(images: AnnotatedImages, config: Config) -> BoxCounts:
    """Counts the boxes of the first batches. Raises UserError if none of them trains anything."""
    if not images.with_boxes():
        odd = "; ".join(count_lines(images.counts))
        problem = f"None of the {len(images)} training images has a box to train on{odd and f' ({odd})'}."
        fix = "Label their objects" if all(images.bare) else "Correct the faults named above"
        raise UserError("--data", problem, f"{fix}, or pass the root of other labels.")
    counts = count_boxes(images, config)
    if counts.lost_share == 1:
        raise UserError(*lost_boxes(images, config, counts))
    return counts


def count_boxes(
    annotated: AnnotatedImages, config: Config, first: int = 0, images: int = IMAGES, examples=None
) -> BoxCounts:
    """Counts the boxes of images at some positions of a run, and the boxes that are cropped or lost.

    Args:
        annotated: the training split.
        config: config as for the batches.
        first: the first position.
        images: number of images to inspect, at most an epoch.
        examples: the `TrainingExamples` of the split and config, if they exist already.
    """
    examples = examples or TrainingExamples(annotated, config)
    iou = DETECTORS[config.detector.kind].facts["anchor_iou"]
    scale = config.detector.anchor_scale or ANCHOR_SCALE
    positions = range(first, first + min(images, len(examples.kept)))
    boxes = cropped = small = unmatched = 0
    short = []
    for position in positions:
        index = examples.order(position)
        place = examples.place(position, tuple(examples.sizes[index].tolist()))
        moved = place.move(examples.boxes[index])
        clipped = np.clip(moved, 0, np.float32(place.frame)[[1, 0, 1, 0]])
        seen = enough_visible(moved, clipped)
        large = sides(clipped).min(1) >= MIN_SIDE
        reached = clipped[seen & large]
        boxes, cropped, small = boxes + len(moved), cropped + int((~seen).sum()), small + int((seen & ~large).sum())
        short += sides(clipped[seen]).min(1).tolist()
        if iou is not None and len(reached):
            unmatched += int((~matched_boxes(reached, place.frame, scale, iou)).sum())
    return BoxCounts(len(positions), boxes, cropped, small, unmatched, tuple(short))


def matched_boxes(boxes: np.ndarray, frame: tuple[int, int], scale: float, iou: float) -> np.ndarray:
    """Marks the boxes that get an anchor of RetinaNet.

    An anchor goes to the box that it overlaps most, if that overlap is `iou` or more.

    Args:
        boxes: (n, 4) x1 y1 x2 y2, px of the frame.
        frame: height and width; they are padded to multiples of `STRIDE` here.
        scale: `detector.anchor_scale`, the side of a level's smallest anchor in strides.
        iou: the least overlap.

    Returns:
        (n,) bool.
    """
    return np.isin(np.arange(len(boxes)), match_anchors(boxes, frame, scale, iou)[1])


def match_anchors(boxes: np.ndarray, frame: tuple[int, int], scale: float, iou: float) -> tuple[np.ndarray, np.ndarray]:
    """Returns anchors (k, 4) float32 and the position of the box of each, (k,) int64. See `matched_boxes`."""
    grids = _grids(*(-(-side // STRIDE) * STRIDE for side in frame), scale)
    areas, anchors, owners = sides(boxes).prod(1), [np.empty((0, 4), np.float32)], [np.empty(0, np.int64)]
    for grid in grids:
        # IoU is at most the ratio of the areas, so most pairs of box and anchor need no computation.
        near = np.flatnonzero((areas >= iou * grid.smallest) & (areas * iou <= grid.largest))
        if len(near):
            grid = _touching(grid, boxes[near])
            overlaps = _iou(boxes[near], areas[near], grid)  # (k, rows, columns)
            rows, columns = np.nonzero(overlaps.max(0) >= iou)
            anchors.append(np.stack([grid.x[columns, 0], grid.y[rows, 0], grid.x[columns, 1], grid.y[rows, 1]], 1))
            owners.append(near[overlaps.argmax(0)[rows, columns]])
    return np.concatenate(anchors), np.concatenate(owners)


class _Grid(NamedTuple):
    """Holds the anchors of one length and one ratio at all cells of a level, cut to the frame."""

    x: np.ndarray  # (columns, 2) begin and end, px
    y: np.ndarray  # (rows, 2)
    smallest: float  # area, px
    largest: float


@functools.lru_cache(64)
def _grids(height: int, width: int, scale: float) -> list[_Grid]:
    grids = []
    for stride, octave, ratio in itertools.product(STRIDES, OCTAVES, RATIOS):
        side = scale * stride * octave
        x, y = _spans(side * ratio**0.5, stride, width), _spans(side / ratio**0.5, stride, height)
        lengths = np.diff(x), np.diff(y)
        grids.append(_Grid(x, y, *(float(pick(lengths[0]) * pick(lengths[1])) for pick in (np.min, np.max))))
    return grids


def _spans(length: float, stride: int, extent: int) -> np.ndarray:
    """Returns (cells, 2): begin and end of the anchors of a length along one side, cut to the frame."""
    centres = (np.arange(-(-extent // stride)) + 0.5) * stride
    return np.clip(np.stack([centres - length / 2, centres + length / 2], 1), 0, extent).astype(np.float32)


def _touching(grid: _Grid, boxes: np.ndarray) -> _Grid:
    """Returns the part of a grid around boxes (n, 4)."""
    x = grid.x[(grid.x[:, 0] < boxes[:, 2].max()) & (grid.x[:, 1] > boxes[:, 0].min())]
    y = grid.y[(grid.y[:, 0] < boxes[:, 3].max()) & (grid.y[:, 1] > boxes[:, 1].min())]
    return grid._replace(x=x, y=y)


def _iou(boxes: np.ndarray, areas: np.ndarray, grid: _Grid) -> np.ndarray:
    """Returns (n, rows, columns): IoU of boxes with the anchors of a grid."""
    x, y = grid.x, grid.y
    columns = np.minimum(x[:, 1], boxes[:, 2:3]) - np.maximum(x[:, 0], boxes[:, 0:1])  # (n, columns)
    rows = np.minimum(y[:, 1], boxes[:, 3:4]) - np.maximum(y[:, 0], boxes[:, 1:2])  # (n, rows)
    shared = rows.clip(0)[:, :, None] * columns.clip(0)[:, None]
    anchors = np.diff(y) * np.diff(x).T  # (rows, columns)
    return shared / (anchors + areas[:, None, None] - shared)


def lost_boxes(annotated: AnnotatedImages, config: Config, counts: BoxCounts) -> tuple[str, str, str]:
    """Returns field, problem and fix for many lost boxes."""
    detector = config.detector
    largest = max(float(boxes.max(initial=0)) for boxes in annotated.boxes)
    if largest <= 1.5:
        problem = f"The boxes seem to be shares of the image, since their largest coordinate is {largest:.3g}."
        return "--data", problem, "Multiply them by the width and height of their image: boxes are in pixels."
    field = "detector.short_sides" if detector.short_sides else "data.image_size"
    current = detector.short_sides[-1] if detector.short_sides else config.data.image_size
    anchors = DETECTORS[detector.kind].facts["anchor_iou"] is not None
    smallest = (detector.anchor_scale or ANCHOR_SCALE) * STRIDES[0]
    wanted = smallest * 0.75 if anchors else 4 * MIN_SIDE
    raised = int(np.ceil(current * wanted / max(float(np.median(counts.short_sides)), 1e-3) / 32)) * 32
    fix = f"Raise it to about {raised}, or cut the images into tiles" if raised > current else "Use larger images"
    if anchors and counts.unmatched > counts.small:
        fix += f", or lower detector.anchor_scale (the smallest anchors have {smallest:g} px)"
    details = f": {counts.summary()}" if counts.lost_share == 1 else ""  # otherwise a line of the targets follows
    return field, f"{counts.lost_share:.0%} of the boxes train nothing at {current} px{details}.", fix + "."


def _background(annotated: AnnotatedImages) -> str:
    if not annotated.background:
        return ""
    bare, count = sum(annotated.bare), len(annotated.trained_on())
    if not bare:
        log.warning("data.background is set, but every training image has annotations")
    return f"; {bare} of {count} training images ({bare / count:.1%}) have no boxes (data.background)"


def _inspect_classes(segmented: SegmentedImages) -> str:
    """Counts the pixels of each class in some masks. If they have a single class, further masks are read."""
    pixels, looked = np.zeros(256, np.int64), 0
    for index in np.random.default_rng(0).permutation(len(segmented)).tolist():
        if looked >= MASKS and (pixels[:IGNORED] > 0).sum() > 1:
            break
        try:
            pixels += np.bincount(segmented.truth(index).ravel(), minlength=256)
        except UserError:  # A bad mask is reported when training reads it, with all others.
            continue
        looked += 1
    met = np.flatnonzero(pixels[:IGNORED]).tolist()
    names = [escape(segmented.class_names[number]) for number in met]
    ignored = pixels[IGNORED] / max(1, pixels.sum())
    if len(met) < 2:
        raise UserError(
            "--data",
            f"The {looked} masks that can be read have {f'one class only, {names[0]}' if names else 'no class'}; "
            f"{ignored:.1%} of their pixels are of no class (255, or a value named so).",
            "Give every class a different value below 255, such as 0 and 1 instead of 0 and 255.",
        )
    missing = [escape(name) for number, name in enumerate(segmented.class_names) if number not in met]
    text = f"targets: {len(met)} of {len(segmented.class_names)} classes in {looked} masks, {ignored:.1%} ignored"
    return text + (f"; not among them: {', '.join(missing)}" if missing else "")
