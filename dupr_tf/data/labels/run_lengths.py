"""Keeps masks of objects as run lengths: reads COCO's polygons and RLE, and returns crops of a fixed size.

A mask is held as pycocotools' compressed counts (bytes), a few hundred bytes for a million pixels. Its size (height,
width) is that of the image. Pixels run down the columns. The first run is of zeros.
"""

from __future__ import annotations

import collections
from collections.abc import Sequence
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask

MASK_SIDE = 56  # px: a batch holds the mask of each box, resampled to this size
NO_POLYGON = "polygons that are none (odd, short or not finite), left out"
OTHER_MASK = "masks of another size than their image"
NO_MASK = "masks that cannot be read"
Size = Sequence[int]  # height, width


def read_mask(segmentation: Any, size: Size, counts: collections.Counter) -> bytes | None:
    """Returns the mask that an annotation describes; None if it has no pixel. Faults are counted.

    Args:
        segmentation: COCO's list of polygons (x, y, x, y, … in px), or a dict of `size` and `counts`. Counts are run
            lengths, or pycocotools' string of them. Also bytes: run lengths that were checked before. Any other value
            that a file may hold gives no mask.
        size: height and width of the image.
        counts: receives `NO_POLYGON`, `OTHER_MASK` or `NO_MASK`.
    """
    if isinstance(segmentation, bytes):
        return segmentation
    try:
        if not isinstance(segmentation, dict):
            mask = _from_polygons(segmentation or (), size, counts)
        elif list(segmentation["size"]) == list(map(int, size)):
            runs = segmentation["counts"]
            runs = runs.encode("ascii") if isinstance(runs, str) else runs
            mask = _packed(_unpacked(runs) if isinstance(runs, bytes) else runs, size)
        else:
            counts[OTHER_MASK] += 1
            return None
    except (KeyError, TypeError, ValueError, OverflowError, IndexError):
        counts[NO_MASK] += 1
        return None
    return mask if mask is not None and area_of(mask, size) > 0 else None


def _from_polygons(polygons, size: Size, counts: collections.Counter) -> bytes | None:
    """Returns the union of the valid polygons: three points or more, every number finite."""
    reach = np.array([size[1], size[0]], np.float64)
    usable = []
    for polygon in polygons:
        try:
            points = np.asarray(polygon, np.float64)
        except (TypeError, ValueError, OverflowError):
            points = np.empty(0)
        if points.ndim == 1 and points.size >= 6 and points.size % 2 == 0 and np.isfinite(points).all():
            # pycocotools would walk every pixel of the way to a point far outside.
            usable.append(np.clip(points.reshape(-1, 2), -reach, 2 * reach).ravel().tolist())
    counts[NO_POLYGON] += len(polygons) - len(usable)
    return coco_mask.merge(coco_mask.frPyObjects(usable, *map(int, size)))["counts"] if usable else None


def _packed(runs: Sequence[int], size: Size) -> bytes:
    """Returns the compressed counts of run lengths.

    Raises:
        ValueError: the runs do not fill the image. pycocotools would fill the rest with arbitrary memory.
    """
    runs, (height, width) = [int(run) for run in runs], map(int, size)
    if sum(runs) != height * width or min(runs) < 0:
        raise ValueError(f"runs of {sum(runs)} pixels")
    return coco_mask.frPyObjects({"size": [height, width], "counts": runs}, height, width)["counts"]


def _unpacked(text: bytes) -> list[int]:
    """Returns the run lengths in pycocotools' string: six bits a character, of which the upper means "more follows".

    From the third on, each run is stored as its difference from the one before the last. pycocotools itself reads past
    the end of a string whose last number is incomplete.
    """
    sixes = np.frombuffer(text, np.uint8).astype(np.int64) - 48
    last = np.flatnonzero(sixes < 32)
    first = np.append(0, last[:-1] + 1)
    digits = last - first + 1 if last.size else np.zeros(1)
    if sixes.size != digits.sum() or digits.max() > 7 or sixes.min() < 0 or sixes.max() > 63:
        raise ValueError("no run lengths")
    shifts = 5 * (np.arange(sixes.size) - first.repeat(digits))
    runs = np.add.reduceat((sixes & 31) << shifts, first) - ((sixes[last] & 16) << (5 * digits - 4))  # less the sign
    for start in (1, 2):
        runs[start::2] = runs[start::2].cumsum()
    return runs.tolist()


def mask_of_box(box: np.ndarray, size: Size) -> bytes:
    """Returns a mask that fills the box x1 y1 x2 y2."""
    corners = np.asarray(box, np.float64)
    (mask,) = coco_mask.frPyObjects(np.concatenate([corners[:2], corners[2:] - corners[:2]])[None], *map(int, size))
    return mask["counts"]


def as_coco(mask: bytes, size: Size) -> dict:
    """Returns a mask in the form that pycocotools takes."""
    return {"size": [int(size[0]), int(size[1])], "counts": mask}


def area_of(mask: bytes, size: Size) -> int:
    """Returns the number of pixels of a mask."""
    return int(coco_mask.area(as_coco(mask, size)))


def pixels_of(mask: bytes, size: Size) -> np.ndarray:
    """Returns the pixels of a mask, (H, W) uint8, 0 or 1."""
    return coco_mask.decode(as_coco(mask, size))


def mask_from_pixels(pixels: np.ndarray) -> bytes:
    """Returns the mask of an array (H, W) that is nonzero on the object."""
    return coco_mask.encode(np.asfortranarray(pixels != 0, np.uint8))["counts"]


def crop_masks(masks: Sequence[bytes], size: Size, boxes: np.ndarray, side: int = MASK_SIDE) -> np.ndarray:
    """Cuts each mask to its box and resamples it. A cell is 1 if the mask covers half of it or more.

    Args:
        masks: n masks of an image of `size`.
        boxes: (n, 4) x1 y1 x2 y2 in pixels, inside the image; fractions are allowed.
        side: cells along each side of the result.

    Returns:
        (n, side, side) uint8.
    """
    crops = np.zeros((len(masks), side, side), np.uint8)
    for crop, mask, box in zip(crops, masks, np.asarray(boxes, np.float64), strict=True):
        (x1, y1), (x2, y2) = np.floor(box[:2]).astype(int), np.ceil(box[2:]).astype(int)
        window = pixels_of(mask, size)[y1:y2, x1:x2]
        rows = _overlaps(box[1] - y1, box[3] - y1, side, window.shape[0])
        columns = _overlaps(box[0] - x1, box[2] - x1, side, window.shape[1])
        crop[:] = rows @ window @ columns.T >= 0.5 * (box[2:] - box[:2]).prod() / side**2 - 1e-9
    return crops


def _overlaps(low: float, high: float, cells: int, pixels: int) -> np.ndarray:
    """Returns (cells, pixels): the part of each pixel that lies in each of the equal cells between two positions."""
    edges, starts = np.linspace(low, high, cells + 1)[:, None], np.arange(pixels)
    return (np.minimum(edges[1:], starts + 1) - np.maximum(edges[:-1], starts)).clip(0)
