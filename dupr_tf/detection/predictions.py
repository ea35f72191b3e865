"""Computes detections in the pixels of the original images, with masks at full size."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import tensorflow as tf

from dupr_tf.config import DataConfig
from dupr_tf.data.detection import eval_batches
from dupr_tf.data.labels.annotations import AnnotatedImages
from dupr_tf.data.labels.run_lengths import mask_from_pixels
from dupr_tf.data.placing import to_original

EVAL_BATCH = 8  # images


def detect(detector, annotated: AnnotatedImages, data: DataConfig | None = None, batch_size: int = EVAL_BATCH) -> list:
    """Detects objects in every image.

    For each image it returns `boxes (k, 4)` xyxy in its pixels, `classes (k,)`, `scores (k,)`, and `masks` if any, best
    first.

    Args:
        detector: detector with `image_size` or `test_short_side` and `max_long_side`.
        annotated: the images.
        data: settings for reading images. Default: those of `DataConfig`.
        batch_size: images per batch.
    """
    results, sides = {}, (detector.test_short_side, detector.max_long_side)
    with eval_batches(annotated, detector.image_size, batch_size, data, *sides) as batches:
        for batch in batches:
            inputs = {name: tf.constant(batch[name]) for name in ("images", "image_sizes")}
            results |= convert_to_originals(detector.predict_on_batch(inputs), batch, annotated.sizes)
    return [results[i] for i in range(len(annotated))]


def convert_to_originals(result: dict, batch: dict, sizes: Mapping | np.ndarray) -> dict[int, dict]:
    """Converts detections to the pixels of their images.

    Args:
        result: result of a detector's `predict_on_batch`. It has `boxes (b, K, 4)` xyxy px of the padded input,
            `classes (b, K)`, `confidence (b, K)` and `num_detections (b,)`. Detectors of masks also return
            `masks (b, K, h, w)`, 0–1 over the boxes.
        batch: from `eval_batches`: `factors` (b, 2) and `index` (b,).
        sizes: index -> height and width of the original.

    Returns:
        `{index: detections}` with `boxes (k, 4)` float32, `classes (k,)` int32 and `scores (k,)`. If `result` has
        masks, also `masks`, k run lengths (see `data.labels.run_lengths`).
    """
    converted = {}
    for row, (index, factors) in enumerate(zip(np.asarray(batch["index"]), np.asarray(batch["factors"]), strict=True)):
        size, count = sizes[int(index)], int(result["num_detections"][row])
        boxes = np.asarray(result["boxes"][row][:count], np.float32)
        image = {
            "boxes": to_original(boxes, factors, size),
            "classes": np.asarray(result["classes"][row][:count]).astype(np.int32),
            "scores": np.asarray(result["confidence"][row][:count], np.float32),
        }
        if "masks" in result:  # over the unclipped box, even if it reaches beyond the image
            image["masks"] = paste_masks(np.asarray(result["masks"][row][:count]), boxes / factors[[1, 0, 1, 0]], size)
        converted[int(index)] = image
    return converted


def paste_masks(masks: np.ndarray, boxes: np.ndarray, size: Sequence[int], threshold: float = 0.5) -> list[bytes]:
    """Converts masks over boxes to masks of the image. A pixel belongs to one if its value is at least `threshold`.

    A mask is sampled bilinearly at the centres of pixels, with zeros around it, as detectron2 pastes it. The corners of
    a mask that fills a large box are therefore cut. One mask is held at full size at a time.

    Args:
        masks: (K, h, w) float, 0–1.
        boxes: (K, 4) xyxy px of the image; they may reach beyond it.
        size: height and width of the image.
        threshold: in (0, 1].

    Returns:
        K run lengths (see `data.labels.run_lengths`); empty masks for boxes without area in the image.
    """
    height, width = map(int, size)
    canvas, pasted = np.zeros((height, width), np.uint8, order="F"), []
    for mask, box in zip(np.asarray(masks, np.float32), np.asarray(boxes, np.float64), strict=True):
        rows, columns = slice(0, 0), slice(0, 0)
        if np.isfinite(box).all() and (box[2:] > box[:2]).all():
            rows, columns = _pixels(box[1], box[3], height), _pixels(box[0], box[2], width)
            down = _weights(rows, box[1], box[3], mask.shape[0])
            across = _weights(columns, box[0], box[2], mask.shape[1])
            canvas[rows, columns] = down @ mask @ across.T >= threshold
        pasted.append(mask_from_pixels(canvas))
        canvas[rows, columns] = 0
    return pasted


def _pixels(low: float, high: float, most: int) -> slice:
    """Returns the pixels of a row that an interval touches."""
    return slice(*(int(np.clip(edge, 0, most)) for edge in (np.floor(low), np.ceil(high))))


def _weights(pixels: slice, low: float, high: float, cells: int) -> np.ndarray:
    """Returns (pixels, cells) float32: the weight of each cell between low and high at the centre of each pixel."""
    at = (np.arange(pixels.start, pixels.stop) + 0.5 - low) / (high - low) * cells - 0.5
    return np.maximum(0, 1 - np.abs(at[:, None] - np.arange(cells))).astype(np.float32)
