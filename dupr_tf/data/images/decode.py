"""The one decoder: the bytes of a file to upright RGB pixels, whatever the file's name says it is.

JPEGs go through simplejpeg, every other kind and every JPEG it refuses through Pillow; where both can decode a file
they give the same pixels. Size and number of scans are checked before anything is decoded.
"""

from __future__ import annotations

import contextlib
import io
import re

import numpy as np
import simplejpeg
from PIL import Image, ImageFile

from dupr_tf.data.images.header import (
    EOI,
    MAX_PIXELS,
    SOS,
    Header,
    Unusable,
    check_pixels,
    open_with_pillow,
    png_chunks,
    read_header,
    read_header_from,
    reason_for,
    stored_size,
)

FACTORS = (8, 4, 2, 1)  # an image can be decoded at 1/8, 1/4, 1/2 of its size
MAX_SCANS = 100  # of a JPEG: usual encoders write up to 10, and each one costs as much time as decoding the image once
MARKER = re.compile(rb"\xff([^\x00\xff\xd0-\xd7])")  # of a segment; the others are part of a scan
JPEG_END = b"\xff\xd9"
FLIPPED_Y, FLIPPED_X = (3, 4, 7, 8), (2, 3, 6, 7)  # orientations; from 5 on, rows and columns are swapped first
COLOUR_NOTES = {"CMYK": "CMYK to RGB", "P": "palette to RGB", "I": "16 bits to 8", "LA": "alpha dropped"}
COLOUR_NOTES |= {"RGBA": "alpha dropped", "PA": "alpha dropped", "L": "grey", "1": "grey"}


def decode(content: bytes, max_pixels: int = MAX_PIXELS, header: Header | None = None, factor: int = 1) -> np.ndarray:
    """The pixels of an encoded image, upright, of an animation those of the first frame.

    Args:
        content: the bytes of a JPEG, PNG, GIF, BMP, WebP or TIFF.
        max_pixels: an image of more is refused.
        header: of these bytes, if it was read before.
        factor: 1, 2, 4 or 8. The sides of the image are divided by it and rounded up. A JPEG is decoded at that size,
            which saves time; others are shrunk afterwards.

    Returns:
        (H, W, 3) uint8 RGB. Alpha is dropped; of 16 bits the upper 8 are kept.

    Raises:
        Unusable: the image cannot be decoded, or has pixels without a defined white.
    """
    header = header or read_header(content, max_pixels)
    check_pixels(header, max_pixels)
    try:
        pixels = _decode_jpeg(content, header, factor) if header.kind == "JPEG" else None
        if pixels is None:
            pixels = _decode_with_pillow(content, header, factor)
        return _upright(pixels, 1 if header.kind == "TIFF" else header.orientation)  # Pillow turns TIFFs by itself
    except Exception as error:
        raise Unusable(reason_for(error, header.kind, _is_cut(content, header.kind))) from None


def _decode_jpeg(content: bytes, header: Header, factor: int) -> np.ndarray | None:
    """The pixels as stored; None where Pillow must decide, which recovers more and converts CMYK in its own way."""
    if header.many_scans and _scans(content)[0] > MAX_SCANS:
        raise Unusable(f"too many scans: JPEG of more than {MAX_SCANS}")
    if header.channels not in (1, 3):
        return None
    width, height = (-(-side // factor) for side in stored_size(header))
    try:
        # With both, libjpeg takes 1/factor itself and no other fraction of the same size.
        return simplejpeg.decode_jpeg(content, min_height=height, min_width=width, min_factor=factor)
    except ValueError:
        return None


def _decode_with_pillow(content: bytes, header: Header, factor: int) -> np.ndarray:
    """The pixels as stored, those of a TIFF upright."""
    with _open(content, header) as image:
        if image.size != stored_size(header):
            raise ValueError("two headers with different sizes")
        image.load()
        if header.kind == "JPEG" and _is_cut(content, "JPEG"):
            raise ValueError("no end")
        if image.mode in ("I", "F"):
            raise ValueError(f"pixels of 32 bits (mode {image.mode}) have no defined white")
        pixels = (Image.fromarray(_upper_half(image)) if image.mode.startswith("I;16") else image).convert("RGB")
        return np.asarray(pixels.reduce(factor) if factor > 1 else pixels)


def _open(content: bytes, header: Header) -> ImageFile.ImageFile:
    return open_with_pillow(io.BytesIO(_critical_chunks(content) if header.kind == "PNG" else content), header.kind)


def _upper_half(image: Image.Image) -> np.ndarray:
    return (np.asarray(image).astype(np.uint16) >> 8).astype(np.uint8)


def _upright(pixels: np.ndarray, orientation: int) -> np.ndarray:
    if orientation == 1:
        return pixels
    if orientation >= 5:
        pixels = pixels.transpose(1, 0, 2)
    down, right = (-1 if orientation in group else 1 for group in (FLIPPED_Y, FLIPPED_X))
    return np.ascontiguousarray(pixels[::down, ::right])


def _critical_chunks(content: bytes) -> bytes:
    """A PNG without the chunks that its pixels do not depend on: texts that unpack to gigabytes, frames, profiles."""
    parts, end = [content[:8]], 8
    for name, start, length in png_chunks(io.BytesIO(content)):
        end = start + length + 12
        if name[:1].isupper():
            parts.append(content[start:end])
    return b"".join([*parts, content[end:]])


def _scans(content: bytes) -> tuple[int, bool]:
    """Number of scans of a JPEG, or one more than allowed, and whether it has an end."""
    scans, position = 0, 2
    while scans <= MAX_SCANS and (found := MARKER.search(content, position)) is not None:
        marker, position = found[1][0], found.end()
        if marker == EOI:
            return scans, True
        scans += marker == SOS
        position += int.from_bytes(content[position : position + 2], "big") if marker > 1 else 0
    return scans, False


def _is_cut(content: bytes, kind: str) -> bool:
    if kind == "JPEG":
        return not (content.rstrip(b"\0").endswith(JPEG_END) or _scans(content)[1])
    return kind == "PNG" and b"IEND" not in content[-64:]


def describe(content: bytes, header: Header | None = None) -> str:
    """How a usable image is used, and its stored size: `JPEG, turned upright: 640 x 480`."""
    header = header or read_header_from(io.BytesIO(content))
    notes = [*_notes(content, header), *(["turned upright"] if header.orientation > 1 else [])]
    width, height = stored_size(header)
    return ", ".join([header.kind, *notes]) + f": {width} x {height}"


def _notes(content: bytes, header: Header) -> list[str]:
    if header.kind == "JPEG":
        return [{1: "grey", 4: COLOUR_NOTES["CMYK"]}[header.channels]] if header.channels != 3 else []
    with _open(content, header) as image:
        note = COLOUR_NOTES.get("I" if image.mode.startswith("I") else image.mode)
        notes = [note] if note else []
        with contextlib.suppress(Exception):  # a damaged second frame: the first is used all the same
            notes += ["first frame"] if header.kind != "PNG" and getattr(image, "is_animated", False) else []
    return notes
