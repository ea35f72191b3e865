"""Input of all detector benchmarks: batches of noise with labels, made with NumPy alone."""

from __future__ import annotations

import numpy as np

CLASSES, OBJECTS, MASK_SIDE = 20, 6, 56
REPEATS = 3  # steps of a repeat


def objects(size, batch, masks, seed=0):
    """Returns images of noise with boxes of photograph-like sizes, and masks that fill the boxes."""
    random = np.random.default_rng(seed)
    low = random.uniform(0, size * 0.6, (batch, OBJECTS, 2))
    boxes = np.concatenate([low, low + random.uniform(size / 16, size * 0.4, low.shape)], -1).astype(np.float32)
    labels = {"boxes": boxes, "classes": random.integers(0, CLASSES, (batch, OBJECTS)).astype(np.float32)}
    if masks:
        labels["masks"] = np.ones((batch, OBJECTS, MASK_SIDE, MASK_SIDE), np.float32)
    return {**_images(size, batch, random), "bounding_boxes": labels}


def segments(size, batch, seed=0):
    """Returns images of noise with a class for each pixel."""
    random = np.random.default_rng(seed)
    classes = random.integers(0, CLASSES, (batch, size, size)).astype(np.int32)
    return {**_images(size, batch, random), "segments": classes}


def _images(size, batch, random):
    images = random.uniform(0, 255, (batch, size, size, 3)).astype(np.float32)
    return {"images": images, "image_sizes": np.full((batch, 2), size, np.float32)}
