"""Frozen features: feature maps of every level of a backbone, and what is left of them after pooling."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import keras
import numpy as np
import tensorflow as tf

from dupr_tf.errors import UserError
from dupr_tf.models.resnet import pyramid
from dupr_tf.ops.photometric import normalise
from dupr_tf.probing.images import read_each

STEM = "conv1_relu"


def feature_maps(backbone: keras.Model, levels: Sequence[str]):
    """A function of (b, H, W, 3) RGB images (uint8, or floats in 0–255) that returns {level: (b, h, w, C) float32}.

    Batch norm uses its moving statistics, and nothing of the backbone changes.

    Args:
        backbone: takes normalised images.
        levels: of "conv1" (behind its ReLU, stride 2) and P2..P5.

    Raises:
        UserError: a level that the backbone lacks.
    """
    levels = tuple(levels)
    inside = [level for level in levels if level != "conv1"]
    outputs = dict(pyramid(backbone, inside).output) if inside else {}
    if "conv1" in levels:
        if STEM not in [layer.name for layer in backbone.layers]:
            raise UserError("levels", f"{backbone.name} has no layer {STEM} for conv1.", "Use levels of P2 to P5.")
        outputs["conv1"] = backbone.get_layer(STEM).output
    model = keras.Model(backbone.input, {level: outputs[level] for level in levels})

    @tf.function(reduce_retracing=True, autograph=False)
    def maps(images):
        found = model(normalise(tf.cast(images, tf.float32) / 255.0), training=False)
        return {level: tf.cast(found[level], tf.float32) for level in levels}

    return maps


def extract(maps, batches: Iterable, cells: dict[str, int], normalise_rows: bool = False) -> dict[str, np.ndarray]:
    """Pooled features of all images: {level: (N, cells² · C) float32}.

    Args:
        maps: from `feature_maps`.
        batches: of (b, H, W, 3) images.
        cells: {level: cells a side that its map is averaged to}; a map of fewer keeps its own.
        normalise_rows: to length 1.
    """
    parts: dict[str, list[np.ndarray]] = {level: [] for level in cells}
    for images in batches:
        found = maps(images)
        for level, side in cells.items():
            pooled = pool(found[level], side)
            parts[level].append(tf.reshape(pooled, [pooled.shape[0], -1]).numpy())
    rows = {level: np.concatenate(part) for level, part in parts.items()}
    return {level: unit(row) for level, row in rows.items()} if normalise_rows else rows


def extract_paths(maps, paths, view, cells, batch_size=32, **options) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """`extract` of image files: (indices of those that could be read, their features).

    Args:
        maps, cells, options: as for `extract`.
        paths: image files.
        view: content -> (S, S, 3) uint8.
        batch_size: images at a time.
    """
    indices: list[np.ndarray] = []

    def images():
        for index, batch in read_each(paths, lambda _, content: view(content), batch_size):
            indices.append(index)
            yield batch

    features = extract(maps, images(), cells, **options)
    return np.concatenate(indices), features


def pool(features, cells: int):
    """Averages (b, h, w, C) maps to (b, cells, cells, C), each bin over whole pixels as adaptive pooling has it."""
    height, width = features.shape[1], features.shape[2]
    rows, columns = (_bins(min(cells, side), side) for side in (height, width))
    return tf.einsum("ih,bhwc,jw->bijc", rows, features, columns)


def _bins(cells: int, side: int) -> tf.Tensor:
    """(cells, side) averaging weights; neighbouring bins share a pixel where the side is no multiple."""
    weights = np.zeros((cells, side), np.float32)
    for i in range(cells):
        low, high = i * side // cells, -(-(i + 1) * side // cells)
        weights[i, low:high] = 1 / (high - low)
    return tf.constant(weights)


def unit(rows: np.ndarray) -> np.ndarray:
    """Rows of length 1 along the last axis; rows of zeros stay."""
    return rows / np.maximum(np.linalg.norm(rows, axis=-1, keepdims=True), 1e-12)
