"""Resizes images with antialiasing, bilinear as Pillow defines it, by the fastest library available."""

from __future__ import annotations

import threading

import numpy as np
from PIL import Image

try:
    import cykooz_resizer

    RESIZER = "cykooz"
except ImportError:  # no wheel for Linux on Arm
    RESIZER = "pillow"

_local = threading.local()


def resize(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """Resizes an image. Both libraries give the same pixels, up to a difference of one grey level.

    Args:
        image: (H, W, 3) uint8. Only these pixels count: a part of a larger image is cut out before it is resized.
        height, width: px of the result, at least 1.

    Returns:
        (height, width, 3) uint8.
    """
    if image.shape[:2] == (height, width):
        return image
    if RESIZER == "pillow":
        return np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.BILINEAR))
    source = cykooz_resizer.ImageData(image.shape[1], image.shape[0], cykooz_resizer.PixelType.U8x3, image.tobytes())
    target = cykooz_resizer.ImageData(width, height, cykooz_resizer.PixelType.U8x3)
    resizer, options = _resizer()
    resizer.resize(source, target, options)
    return np.frombuffer(target.get_buffer(), np.uint8).reshape(height, width, 3)


def _resizer():
    """Returns this thread's resizer, which reuses its buffers."""
    if not hasattr(_local, "resizer"):
        algorithm = cykooz_resizer.ResizeAlg.convolution(cykooz_resizer.FilterType.bilinear)
        _local.resizer = cykooz_resizer.Resizer(), cykooz_resizer.ResizeOptions(resize_alg=algorithm)
    return _local.resizer
