"""What Pillow and a look at a file's first bytes tell of an image. Nothing here imports TensorFlow.

JPEG and PNG are decoded in TensorFlow's graph (`decoding`); every other kind comes through `decode`.
"""

from __future__ import annotations

import io
import re
import struct
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from dupr_tf.errors import UserError
from dupr_tf.text import one_line

JPEG, PNG = b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n"  # what their files begin with
PILLOW_KINDS = ("GIF", "BMP", "WEBP", "TIFF")
KINDS = ("JPEG", "PNG", *PILLOW_KINDS)
ORIENTATION = 0x0112  # EXIF's tag
EXIF_REACH = 4096  # bytes at the start of a JPEG or PNG in which its EXIF block is looked for; cameras put it first
EXIF_START = re.compile(rb"(?:Exif\0\0|eXIf)(II\*\0|MM\0\*)")
COLOUR_NOTES = {"CMYK": "CMYK to RGB", "P": "palette to RGB", "I": "16 bits to 8", "LA": "alpha dropped"}
COLOUR_NOTES |= {"RGBA": "alpha dropped", "PA": "alpha dropped", "L": "grey", "1": "grey"}


def as_bytes(value) -> bytes:
    """What `tf.numpy_function` hands over for a string: bytes inside a graph, an array of one object outside."""
    return value if isinstance(value, bytes) else value.item()


def exif_orientation(content: bytes) -> int:
    """1 to 8, EXIF's way of saying how the stored rows lie; 1 (upright) where a JPEG or PNG says nothing readable."""
    start = EXIF_START.search(content[:EXIF_REACH])
    if start is None or not content.startswith((JPEG, PNG)):
        return 1
    block, order = content[start.start(1) :], "<" if start[1].startswith(b"II") else ">"
    try:
        (directory,) = struct.unpack_from(order + "I", block, 4)
        (count,) = struct.unpack_from(order + "H", block, directory)
        for entry in range(directory + 2, directory + 2 + 12 * count, 12):
            tag, kind = struct.unpack_from(order + "HH", block, entry)
            if tag == ORIENTATION and kind in (3, 4):  # SHORT as the standard has it, or LONG
                (value,) = struct.unpack_from(order + ("H" if kind == 3 else "I"), block, entry + 8)
                return value if 1 <= value <= 8 else 1
    except struct.error:
        return 1  # a block that ends too early turns nothing
    return 1


def decode(content: bytes, max_pixels: int) -> tuple[np.ndarray, str]:
    """A GIF, BMP, WebP or TIFF as it is meant to be seen; of an animation or several pages, the first.

    Args:
        content: the file.
        max_pixels: an image of more is refused before it is decoded.

    Returns:
        (H, W, 3) uint8 RGB and "", or an empty array and the reason why there is none. Never raises.
    """
    try:
        with Image.open(io.BytesIO(content), formats=PILLOW_KINDS) as image:
            if image.width * image.height > max_pixels:
                return _nothing(too_many_pixels(image.height, image.width))
            return _rgb(ImageOps.exif_transpose(image)), ""
    except Image.DecompressionBombError:
        return _nothing(f"too many pixels: more than {2 * Image.MAX_IMAGE_PIXELS}, Pillow's limit for its kind")
    except UnidentifiedImageError:
        return _nothing(f"damaged: {kind_of(content)}, its header")
    except Exception as error:  # a broken file makes Pillow's decoders raise nearly anything
        return _nothing(f"damaged: {kind_of(content)}, {error}")


def _nothing(reason: str) -> tuple[np.ndarray, str]:
    return np.zeros((0, 0, 3), np.uint8), reason


def _rgb(image: Image.Image) -> np.ndarray:
    """Alpha is dropped, 16 bits become 8 by their upper half; what has no defined white is refused."""
    if image.mode.startswith("I;16"):
        grey = (np.asarray(image).astype(np.uint16) >> 8).astype(np.uint8)
        return np.repeat(grey[..., None], 3, -1)
    if image.mode in ("I", "F"):
        raise ValueError(f"pixels of 32 bits (mode {image.mode}) have no defined white")
    return np.asarray(image.convert("RGB"))


def too_many_pixels(height: int, width: int) -> str:
    return f"too many pixels: {width} x {height}, see data.max_pixels"


def kind_of(content: bytes) -> str | None:
    """JPEG, PNG, GIF, BMP, WEBP or TIFF by a file's first bytes, whatever its name says; None: something else."""
    if content.startswith(JPEG):
        return "JPEG"
    if content.startswith(PNG):
        return "PNG"
    if content[:4] == b"RIFF" and content[8:12] == b"WEBP":
        return "WEBP"
    beginnings = {"GIF": (b"GIF87a", b"GIF89a"), "BMP": b"BM", "TIFF": (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")}
    return next((kind for kind, start in beginnings.items() if content.startswith(start)), None)


def describe(content: bytes) -> str:
    """`JPEG, turned upright: 640 x 480`: how a usable image is used, and its stored size."""
    kind = kind_of(content)
    try:
        with Image.open(io.BytesIO(content), formats=KINDS) as image:
            notes = [COLOUR_NOTES.get("I" if image.mode.startswith("I") else image.mode)]
            notes += ["first frame"] if getattr(image, "is_animated", False) and kind in PILLOW_KINDS else []
            notes += ["turned upright"] if _orientation(image, content) > 1 else []
            return ", ".join([kind, *filter(None, notes)]) + f": {image.width} x {image.height}"
    except Exception:  # TensorFlow decodes what Pillow does not: nothing more to tell then
        return str(kind)


def upright_size(path: str | Path) -> tuple[int, int]:
    """Height and width of an image file as it is meant to be seen, from its header.

    Raises:
        UserError: it is no image of a known kind.
    """
    try:
        with Path(path).open("rb") as file:
            return upright_size_of(file)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        reason = one_line(error).rstrip(".")
        raise UserError(None, f"{path} cannot be read as an image: {reason}.", "Replace or unlist the file.") from None


def upright_size_of(file: BinaryIO) -> tuple[int, int]:
    """As `upright_size`, of an open file; raises what Pillow raises."""
    with Image.open(file, formats=KINDS) as image:
        height, width = image.height, image.width
        file.seek(0)
        turned = image.format != "TIFF" and _orientation(image, file.read(EXIF_REACH)) >= 5
    return (width, height) if turned else (height, width)  # Pillow has turned a TIFF's already


def _orientation(image: Image.Image, content: bytes) -> int:
    if kind_of(content) in ("JPEG", "PNG"):
        return exif_orientation(content)
    return image.getexif().get(ORIENTATION, 1)
