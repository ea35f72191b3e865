"""The one decoder: the bytes of a file to upright RGB pixels, whatever the file's name says it is.

JPEGs go through simplejpeg, every other kind and every JPEG it refuses through Pillow; where both can decode a file
they give the same pixels. Size and number of scans are checked in the header, before anything is decoded.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from PIL import (
    BmpImagePlugin,
    GifImagePlugin,
    JpegImagePlugin,
    PngImagePlugin,
    TiffImagePlugin,
    WebPImagePlugin,
)

MAX_PIXELS = 100_000_000  # the default of data.max_pixels; 300 MB once decoded
FACTORS = (8, 4, 2, 1)  # a JPEG can be decoded at 1/8, 1/4, 1/2 of its size
PLUGINS = {
    "JPEG": JpegImagePlugin.JpegImageFile,
    "PNG": PngImagePlugin.PngImageFile,
    "GIF": GifImagePlugin.GifImageFile,
    "BMP": BmpImagePlugin.BmpImageFile,
    "WEBP": WebPImagePlugin.WebPImageFile,
    "TIFF": TiffImagePlugin.TiffImageFile,
}


class Unusable(ValueError):
    """An image cannot be used. Its text is the reason, as `kind of reason: details`."""


class Header(NamedTuple):
    """What is known of an image before it is decoded."""

    kind: str  # a key of PLUGINS
    height: int  # px, upright
    width: int  # px, upright
    orientation: int  # EXIF's, 1 to 8


def read_header(content: bytes, max_pixels: int = MAX_PIXELS) -> Header:
    """Kind, upright size and orientation of an encoded image.

    Args:
        content: the bytes of a JPEG, PNG, GIF, BMP, WebP or TIFF.
        max_pixels: an image of more is refused.

    Raises:
        Unusable: the bytes are no image, or one that must not be decoded.
    """
    raise NotImplementedError


def decode(content: bytes, max_pixels: int = MAX_PIXELS, header: Header | None = None, factor: int = 1) -> np.ndarray:
    """The pixels of an encoded image, upright, of an animation those of the first frame.

    Args:
        content: the bytes of a JPEG, PNG, GIF, BMP, WebP or TIFF.
        max_pixels: an image of more is refused.
        header: of these bytes, if it was read before.
        factor: 1, 2, 4 or 8. A JPEG is decoded at 1/factor of its size, rounded up; other kinds are decoded whole.

    Returns:
        (H, W, 3) uint8 RGB. Alpha is dropped; of 16 bits the upper 8 are kept.

    Raises:
        Unusable: the image cannot be decoded, or has pixels without a defined white.
    """
    raise NotImplementedError
