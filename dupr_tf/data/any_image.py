"""Takes images as a Python user has them: paths, PIL images or arrays."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from dupr_tf.config import DataConfig
from dupr_tf.data.detection import read_image
from dupr_tf.data.images.decode import Unusable
from dupr_tf.errors import UserError

SIXTEEN_BITS = ("I;16", "I;16L", "I;16B", "I;16N")  # modes of Pillow


def listed(images: Any) -> tuple[list, bool]:
    """Returns a list of images, and whether a single image was passed. An array (B, H, W, 3) is a list."""
    single = isinstance(images, str | os.PathLike | Image.Image) or getattr(images, "ndim", 4) < 4
    return [images] if single else list(images), single


def all_usable(images: list, results: Iterable[tuple[int, Any]]) -> list:
    """Returns the results of all images in order.

    Args:
        images: the images, for the message.
        results: (number, result) of each image, in any order.

    Raises:
        UserError: a result is `Unusable`.
    """
    of_number = dict(results)
    for index, result in sorted(of_number.items()):
        if isinstance(result, Unusable):
            name = images[index] if isinstance(images[index], str | os.PathLike) else f"images[{index}]"
            raise UserError("images", f"{name} cannot be used: {result}.", "Replace it, or leave it out.")
    return [of_number[index] for index in range(len(images))]


def pixels_of_any(image, data: DataConfig) -> np.ndarray:
    """Returns (H, W, 3) uint8 of a path, a PIL image or an array. Raises Unusable."""
    if isinstance(image, str | os.PathLike):
        return read_image(Path(image).expanduser(), data)
    if isinstance(image, Image.Image):
        if image.mode in SIXTEEN_BITS:
            image = Image.fromarray((np.asarray(image).astype(np.uint16) >> 8).astype(np.uint8))
        elif image.mode in ("I", "F"):
            raise Unusable(f"no defined white: pixels of 32 bits (mode {image.mode})")
        image = image.convert("RGB")
    pixels = np.asarray(image)
    pixels = np.repeat(pixels[..., None], 3, -1) if pixels.ndim == 2 else pixels
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3 or 0 in pixels.shape:
        shape = " x ".join(map(str, pixels.shape)) or "no pixels"
        raise Unusable(f"no image: expected (H, W, 3) uint8 of at least a pixel, received {shape} {pixels.dtype}")
    return pixels
