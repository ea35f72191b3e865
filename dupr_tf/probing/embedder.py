"""Computes features of images of any size with a backbone: vectors, or feature maps."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from typing import Any

import keras
import numpy as np

from dupr_tf.config import PROBED_LEVELS, DataConfig
from dupr_tf.data.any_image import all_usable, listed, pixels_of_any
from dupr_tf.data.images.decode import Unusable
from dupr_tf.data.images.source import map_in_order
from dupr_tf.data.parts import check_range
from dupr_tf.errors import UserError
from dupr_tf.models.resnet import pyramid_tensors
from dupr_tf.probing.features import feature_maps, pool
from dupr_tf.probing.image_views import whole_view
from dupr_tf.weights.loading import load_backbone, with_normalization


class Embedder:
    """Computes features of images. Every batch has the same size, so the features of an image depend on it alone.

    Args:
        weights: path for `load_backbone`, or a backbone.
        level: level of the features, P2 to P5.
        pooled: True averages a feature map over its cells.
        image_size: px. Images are squeezed into a square of this side.
        batch_size: images that the backbone takes at a time.
        data: settings for reading files. Default: those of the schema.

    Attributes:
        shape: shape of the features of an image: (C,), or (h, w, C).

    Raises:
        UserError: there is no backbone, it has no such level, or a size is out of its range.
    """

    def __init__(
        self,
        weights: Any,
        level: str = "P5",
        pooled: bool = True,
        image_size: int = 224,
        batch_size: int = 32,
        data: DataConfig | None = None,
    ):
        check_range("image_size", image_size, 32, 4096)
        check_range("batch_size", batch_size, 1, 4096)
        self.backbone = _backbone(weights)
        self.level, self.pooled, self.image_size, self.batch_size = level, pooled, image_size, batch_size
        self.data = data or DataConfig()
        self._maps = feature_maps(self.backbone, (level,))
        self.shape = self._features([np.zeros((image_size, image_size, 3), np.uint8)])[0].shape

    def embed(self, images) -> np.ndarray:
        """Returns the features of a list of images, (N, *shape) float32, or of one image, (*shape).

        Args:
            images: as for `dupr_tf.embed`.

        Raises:
            UserError: an image cannot be used.
        """
        images, single = listed(images)
        rows = all_usable(images, self.stream(images))
        return rows[0] if single else np.stack(rows) if rows else np.zeros((0, *self.shape), np.float32)

    def stream(self, images: Iterable, threads: int | None = None) -> Iterator[tuple[int, np.ndarray | Unusable]]:
        """Yields the number of each image and its features, or the reason why it cannot be used.

        Memory is bounded, because only a few images are read ahead.

        Args:
            images: as for `dupr_tf.embed`, any number of them.
            threads: threads that read images. Default: one for each usable CPU.
        """
        waiting: list[tuple[int, np.ndarray]] = []
        for index, view in enumerate(map_in_order(self.view, images, threads)):
            if isinstance(view, Unusable):
                yield index, view
                continue
            waiting.append((index, view))
            if len(waiting) == self.batch_size:
                yield from self._run(waiting)
                waiting = []
        if waiting:
            yield from self._run(waiting)

    def view(self, image) -> np.ndarray | Unusable:
        """Returns an image as (image_size, image_size, 3) uint8, or why it cannot be used."""
        try:
            return whole_view(pixels_of_any(image, self.data), self.image_size)
        except Unusable as error:
            return error

    def levels(self, views: Iterable[np.ndarray], cells: int) -> Iterator[dict[str, np.ndarray]]:
        """Yields {level: (h, w, C) float32} of each view for all levels of the backbone, at most `cells` a side."""
        levels = [level for level in PROBED_LEVELS if level in pyramid_tensors(self.backbone)]
        maps_of = feature_maps(self.backbone, levels)
        for view in views:
            maps = maps_of(view[None])
            yield {level: pool(maps[level], cells)[0].numpy() for level in levels}

    def _run(self, waiting: list[tuple[int, np.ndarray]]) -> Iterator[tuple[int, np.ndarray]]:
        indices, views = zip(*waiting, strict=True)
        yield from zip(indices, self._features(views), strict=True)

    def _features(self, views) -> np.ndarray:
        """Returns the features of at most a batch of views; the batch is filled up, so that its size is the same."""
        batch = np.zeros((self.batch_size, self.image_size, self.image_size, 3), np.uint8)
        batch[: len(views)] = views
        maps = self._maps(batch)[self.level]
        features = pool(maps, 1)[:, 0, 0] if self.pooled else maps
        return features[: len(views)].numpy()


def embed(
    weights: Any,
    images,
    level: str = "P5",
    pooled: bool = True,
    image_size: int = 224,
    batch_size: int = 32,
    data: DataConfig | None = None,
) -> np.ndarray:
    """Computes features of images: `dupr_tf.embed("runs/photos", ["a.jpg", "b.jpg"])`.

    Args:
        weights: path for `load_backbone`, or a backbone.
        images: a list of images, or one. An image is a path, a PIL image (not turned by its EXIF), or an array
            (H, W, 3) or (H, W) uint8, of any size. Files are turned upright. An array (B, H, W, 3) is a list.
        level: level of the features, P2 to P5.
        pooled: True averages a feature map over its cells.
        image_size: px. Images are squeezed into a square of this side.
        batch_size: images that the backbone takes at a time.
        data: settings for reading files. Default: those of the schema.

    Returns:
        (N, C) float32, or (N, h, w, C) if not `pooled`, in the order of the images. Without N for one image.

    Raises:
        UserError: there is no backbone or no such level, or an image cannot be used.
    """
    images, single = listed(images)
    embedder = Embedder(weights, level, pooled, image_size, max(1, min(batch_size, len(images))), data)
    rows = embedder.embed(images)
    return rows[0] if single else rows


def _backbone(weights: Any) -> keras.Model:
    """Returns a backbone that takes normalised images."""
    if isinstance(weights, str | os.PathLike):
        return load_backbone(weights, include_normalization=False)
    if not isinstance(weights, keras.Model):
        problem = f"Expected a path or a backbone, received {type(weights).__name__}."
        raise UserError("weights", problem, "Pass the folder of a run, for example.")
    normalises = getattr(weights, "include_normalization", False)
    return with_normalization(weights, False) if normalises else weights
