"""Encodes images for packing: the bytes of a file that decodes, or a smaller JPEG."""

from __future__ import annotations

import importlib.metadata
import io

import PIL
from PIL import Image, features

from dupr_tf.data.images.decode import FACTORS, MAX_PIXELS, Unusable, decode, read_header
from dupr_tf.data.images.source import read_file

REDUCTION = 3  # an image is decoded at 1/2, 1/4 or 1/8 if that leaves 3 pixels for each pixel of the result


def packed_image(path: str, *settings) -> bytes | Unusable:
    """Returns the bytes to store of a file, or why it cannot be used.

    Args:
        path: path of an image.
        settings: the other arguments of `shrunk`.
    """
    try:
        return shrunk(read_file(path), *settings)
    except Unusable as error:
        return error


def shrunk(
    content: bytes, long_side: int | None, quality: int, max_pixels: int = MAX_PIXELS, depth: str = "full"
) -> bytes:
    """Returns an upright JPEG no larger than `long_side`. A JPEG that is upright and small enough keeps its bytes.

    Colours are stored at half the resolution (4:2:0), as cameras do. At 256 to 400 px this is 15 % smaller and 12 to 17
    % faster to decode than 4:4:4, with 0.04 to 0.3 grey levels of mean error. EXIF and colour profiles are dropped.

    Args:
        content: the bytes of an image.
        long_side: limit of the longer side, px. None keeps the bytes.
        quality: quality of the JPEG that a larger image becomes.
        max_pixels, depth: `data.max_pixels` and `data.depth`. The latter affects the JPEGs of deeper images.

    Raises:
        Unusable: the image cannot be decoded.
    """
    header = read_header(content, max_pixels)
    sides = header.height, header.width
    if long_side is None or (header.kind == "JPEG" and header.orientation == 1 and max(sides) <= long_side):
        # of a JPEG, reads every coefficient, but decodes an eighth of the size
        decode(content, max_pixels, header, max(FACTORS), depth)
        return content
    factor = next((factor for factor in FACTORS if min(sides) >= REDUCTION * long_side * factor), 1)
    image = Image.fromarray(decode(content, max_pixels, header, factor, depth))
    image.thumbnail((long_side, long_side), Image.Resampling.LANCZOS)
    file = io.BytesIO()
    image.save(file, "JPEG", quality=quality, subsampling="4:2:0")
    return file.getvalue()


def encoder_version() -> str:
    """Returns the versions of the libraries that decide the bytes of a JPEG written here."""
    decoder = importlib.metadata.version("simplejpeg")
    return f"simplejpeg {decoder}, Pillow {PIL.__version__}, {features.version('jpg')}"
