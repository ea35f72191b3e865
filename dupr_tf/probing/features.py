"""Computes frozen features: feature maps of every level of a backbone, and their pooling."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import keras
import numpy as np
import tensorflow as tf

from dupr_tf.errors import UserError
from dupr_tf.models.resnet import pyramid
from dupr_tf.ops.photometric import normalise
from dupr_tf.probing.image_views import read_each

STEM = "conv1_relu"


def feature_maps(backbone: keras.Model, levels: Sequence[str]):
    """Returns a function from RGB images to `{level: (b, h, w, C) float32}`.

    Images are `(b, H, W, 3)`, uint8 or floats in 0–255.

    Batch norm uses its moving statistics, and the backbone does not change.

    Args:
        backbone: a backbone that takes normalised images.
        levels: from "conv1" (after its ReLU, stride 2) and P2..P5.

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
        outputs = model(normalise(tf.cast(images, tf.float32) / 255.0), training=False)
        return {level: tf.cast(outputs[level], tf.float32) for level in levels}

    return maps


def extract(maps, batches: Iterable, cells: dict[str, int], normalise_rows: bool = False) -> dict[str, np.ndarray]:
    """Computes pooled features of all images: {level: (N, cells² · C) float32}.

    Args:
        maps: from `feature_maps`.
        batches: batches of (b, H, W, 3) images.
        cells: {level: cells per side to which its map is averaged}; a smaller map keeps its size.
        normalise_rows: scale rows to length 1.
    """
    parts: dict[str, list[np.ndarray]] = {level: [] for level in cells}
    for images in batches:
        outputs = maps(images)
        for level, side in cells.items():
            pooled = pool(outputs[level], side)
            parts[level].append(tf.reshape(pooled, [pooled.shape[0], -1]).numpy())
    rows = {level: np.concatenate(part) for level, part in parts.items()}
    return {level: unit(row) for level, row in rows.items()} if normalise_rows else rows


def extract_paths(
    maps, paths, view, cells, batch_size=32, section=None, **options
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Computes `extract` of image files: (indices of the readable ones, their features).

    Args:
        maps, cells, options: as for `extract`.
        paths: image files.
        view: image (H, W, 3) uint8 -> (S, S, 3) uint8.
        batch_size: images per batch.
        section: settings for decoding images, as for `read_each`.
    """
    indices: list[np.ndarray] = []

    def images():
        for index, batch in read_each(paths, lambda _, image: view(image), batch_size, section):
            indices.append(index)
            yield batch

    features = extract(maps, images(), cells, **options)
    return np.concatenate(indices), features


def pool(features, cells: int):
    """Averages `(b, h, w, C)` maps to `(b, cells, cells, C)`, each bin over whole pixels as in adaptive pooling."""
    height, width = features.shape[1], features.shape[2]
    rows, columns = (_bins(min(cells, side), side) for side in (height, width))
    return tf.einsum("ih,bhwc,jw->bijc", rows, features, columns)


def _bins(cells: int, side: int) -> tf.Tensor:
    """Returns (cells, side) averaging weights; neighbouring bins share a pixel if the side is no multiple of cells."""
    weights = np.zeros((cells, side), np.float32)
    for i in range(cells):
        low, high = i * side // cells, -(-(i + 1) * side // cells)
        weights[i, low:high] = 1 / (high - low)
    return tf.constant(weights)


def unit(rows: np.ndarray) -> np.ndarray:
    """Scales rows along the last axis to length 1; rows of zeros do not change."""
    return rows / np.maximum(np.linalg.norm(rows, axis=-1, keepdims=True), 1e-12)
