"""The one decoder: the bytes of a file to upright RGB pixels, whatever the file's name says it is.

JPEGs go through simplejpeg, every other kind and every JPEG it cannot decode through Pillow; where both can decode a
file they give the same pixels. Size and number of scans are checked before anything is decoded.
"""

from __future__ import annotations

import contextlib
import ctypes
import io
import logging
import os
import re
import struct
import sys
import warnings
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import simplejpeg
from PIL import Image, ImageFile
from PIL.BmpImagePlugin import BmpImageFile
from PIL.GifImagePlugin import GifImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.TiffImagePlugin import TiffImageFile
from PIL.WebPImagePlugin import WebPImageFile

from dupr_tf.errors import UserError
from dupr_tf.text import escape, one_line

MAX_PIXELS = 100_000_000  # the default of data.max_pixels; 300 MB once decoded
MAX_SCANS = 100  # of a JPEG: usual encoders write up to 10, and each one costs as much time as decoding the image once
MAX_STEPS = 1_000_000  # through segments or chunks; damaged files may have one every 4 bytes
START_BYTES = 1 << 17  # of a JPEG, where nearly every header ends
FACTORS = (8, 4, 2, 1)  # an image can be decoded at 1/8, 1/4, 1/2 of its size
KINDS = {  # Pillow's class, not `Image.open`, whose limit of pixels is global; and the first bytes of a file
    "JPEG": (JpegImageFile, rb"\xff\xd8\xff"),
    "PNG": (PngImageFile, rb"\x89PNG\r\n\x1a\n"),
    "GIF": (GifImageFile, rb"GIF8[79]a"),
    "BMP": (BmpImageFile, rb"BM"),
    "TIFF": (TiffImageFile, rb"II[*+]\0|MM\0[*+]"),
    "WEBP": (WebPImageFile, rb"(?s)RIFF....WEBP"),
}
EXIF, ORIENTATION = b"Exif\0\0", 0x0112  # start of a block, tag
EOI, SOS, APP1 = 0xD9, 0xDA, 0xE1  # markers of a JPEG
SOF, PROGRESSIVE = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}, {0xC2, 0xC6, 0xCA, 0xCE}
MARKER = re.compile(rb"\xff([^\x00\xff\xd0-\xd7])")  # of a segment; the others are part of a scan
CHUNK = re.compile(rb"(?s)(....)([A-Za-z]{4})")  # of a PNG: its length and name
MODES = {1: "L", 3: "RGB", 4: "CMYK"}  # of a JPEG, by its channels
FLIPPED_Y, FLIPPED_X = (3, 4, 7, 8), (2, 3, 6, 7)  # orientations; from 5 on, rows and columns are swapped first
COLOUR_NOTES = {"CMYK": "CMYK to RGB", "P": "palette to RGB", "I": "16 bits to 8", "LA": "alpha dropped"}
COLOUR_NOTES |= {"RGBA": "alpha dropped", "PA": "alpha dropped", "L": "grey", "1": "grey"}

# Pillow warns of what it ignores in damaged files, and of many pixels, which `max_pixels` limits here.
warnings.filterwarnings("ignore", module=r"PIL\.")
logging.getLogger("PIL").setLevel(logging.CRITICAL)
with contextlib.suppress(AttributeError, OSError):  # libtiff prints what is damaged, where Pillow raises it
    ctypes.CDLL(Image.core.__file__).TIFFSetErrorHandler(None)


class Unusable(ValueError):
    """An image cannot be used. Its text is the reason, as `kind of reason: details`, in one line."""


class Header(NamedTuple):
    """Facts about an image that are known before it is decoded."""

    kind: str  # a key of KINDS
    height: int  # px, upright
    width: int  # px, upright
    orientation: int  # of the pixels as the decoder returns them: EXIF's, 1 to 8; 1 for a TIFF, which Pillow turns
    mode: str  # Pillow's
    many_scans: bool = False  # whether it is a JPEG that may have any number of scans

    @property
    def stored_size(self) -> tuple[int, int]:
        """Width and height before the image is turned."""
        return (self.height, self.width) if self.orientation >= 5 else (self.width, self.height)


def read_header(content: bytes, max_pixels: int = MAX_PIXELS) -> Header:
    """Kind, upright size and orientation of an encoded image.

    Args:
        content: the bytes of a JPEG, PNG, GIF, BMP, WebP or TIFF.
        max_pixels: an image of more is refused.

    Raises:
        Unusable: the bytes are no image, or one that must not be decoded.
    """
    kind = next((kind for kind, (_, start) in KINDS.items() if re.match(start, content)), None)
    if kind is None:
        raise Unusable("no image: not a JPEG, PNG, GIF, BMP, WebP or TIFF inside" if content else "empty: 0 bytes")
    try:
        header = _jpeg_header(content) if kind == "JPEG" else _pillow_header(content, kind)
    except Exception as error:
        raise Unusable(_reason(error, content, kind)) from None
    _check_pixels(header, max_pixels)
    return header


def upright_size(path: str | os.PathLike) -> tuple[int, int]:
    """Returns height and width of an image file, turned upright, from its header.

    Raises:
        UserError: it is no image of a known kind.
    """
    try:
        with open(path, "rb") as file:
            content = file.read(START_BYTES)
            if not (content.startswith(b"\xff\xd8") and any(marker == SOS for marker, _ in _segments(content))):
                content += file.read()
        return read_header(content, sys.maxsize)[1:3]
    except (OSError, Unusable) as error:
        reason = one_line(error).rstrip(".")
        raise UserError(None, f"{path} cannot be read as an image: {reason}.", "Replace or unlist the file.") from None


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
    _check_pixels(header, max_pixels)
    try:
        pixels = _decode_jpeg(content, header, factor) if header.kind == "JPEG" else None
        if pixels is None:
            pixels = _decode_with_pillow(content, header, factor)
        return _upright(pixels, header.orientation)
    except Exception as error:
        raise Unusable(_reason(error, content, header.kind)) from None


def read_photo(path: str | os.PathLike) -> np.ndarray:
    """Returns the pixels of one file, (H, W, 3) uint8. Raises UserError if it is missing or does not decode."""
    try:
        with open(path, "rb") as file:
            return decode(file.read())
    except (OSError, Unusable) as error:
        problem = f"{path} cannot be read as an image: {one_line(error, 200)}."
        raise UserError(None, problem, "Pass a JPEG or PNG that exists.") from None


def describe(content: bytes, header: Header | None = None) -> str:
    """Describes how a usable image is used, with its stored size: `JPEG, turned upright: 640 x 480`."""
    header = header or read_header(content)
    turned, animated = header.orientation > 1, False
    if header.kind in ("GIF", "WEBP", "TIFF"):
        image = _open(content, header.kind)
        turned |= header.kind == "TIFF" and image.getexif().get(ORIENTATION) in range(2, 9)
        with contextlib.suppress(Exception):  # a damaged second frame: the first is used all the same
            animated = image.is_animated
    colours = COLOUR_NOTES.get(header.mode.split(";")[0])
    notes = [header.kind, colours, "first frame" if animated else None, "turned upright" if turned else None]
    return ", ".join(filter(None, notes)) + ": {} x {}".format(*header.stored_size)


def _check_pixels(header: Header, max_pixels: int) -> None:
    if header.height * header.width > max_pixels:
        raise Unusable("too many pixels: {} x {}, see data.max_pixels".format(*header.stored_size))


def _reason(error: Exception, content: bytes, kind: str) -> str:
    """The reason that stands for an exception. A damaged file makes Pillow raise nearly anything."""
    if isinstance(error, Unusable):
        return str(error)
    if isinstance(error, Image.DecompressionBombError):
        return f"too many pixels: more than {2 * Image.MAX_IMAGE_PIXELS}, Pillow's limit for {kind}"
    if isinstance(error, MemoryError):
        return f"too large: {kind}, not enough memory to decode it"
    return f"cut short: {kind}" if _is_cut(content, kind) else f"damaged: {kind}, {escape(one_line(error, 200))}"


def _is_cut(content: bytes, kind: str) -> bool:
    if kind == "JPEG":
        ended = content.rstrip(b"\0").endswith(b"\xff\xd9") or any(marker == EOI for marker, _ in _segments(content))
        return not ended
    return kind == "PNG" and b"IEND" not in content[-64:]


def _jpeg_header(content: bytes) -> Header:
    frame = height = width = channels = orientation = 0
    for marker, data in _segments(content):
        if marker in SOF:
            frame, (height, width, channels) = marker, struct.unpack_from(">xHHB", content, data)
        elif marker == APP1 and not orientation and content.startswith(EXIF, data):
            orientation = _orientation(content[data : data - 2 + int.from_bytes(content[data - 2 : data], "big")])
        elif marker == SOS and width * height:
            many_scans = frame in PROGRESSIVE or content[data] < channels
            sides = (width, height) if orientation >= 5 else (height, width)
            return Header("JPEG", *sides, orientation or 1, MODES[channels], many_scans)
    raise ValueError("its header")


def _pillow_header(content: bytes, kind: str) -> Header:
    image = _open(content, kind)
    orientation = 1 if kind == "TIFF" else _orientation(image.info.get("exif", b""))
    sides = image.size if orientation >= 5 else image.size[::-1]
    return Header(kind, *sides, orientation, image.mode)


def _orientation(block: bytes) -> int:
    """The orientation of an EXIF block, 1 to 8; 1 (upright) where it says nothing readable."""
    exif = Image.Exif()
    with contextlib.suppress(Exception):  # a damaged block turns nothing
        exif.load(block)
        value = exif.get(ORIENTATION)
        return int(value) if value in range(1, 9) else 1
    return 1


def _segments(content: bytes) -> Iterator[tuple[int, int]]:
    """Marker and position of the data of each segment of a JPEG up to its end. Garbage between them is skipped."""
    position = 2
    for _ in range(MAX_STEPS):
        match = MARKER.search(content, position)
        if match is None:
            return
        marker, position = match[1][0], match.end()
        yield marker, position + 2
        if marker == EOI:
            return
        position += int.from_bytes(content[position : position + 2], "big") if marker > 1 else 0


def _decode_jpeg(content: bytes, header: Header, factor: int) -> np.ndarray | None:
    """The pixels as stored; None where Pillow must decide, which recovers more and converts CMYK in its own way."""
    if header.many_scans and sum(marker == SOS for marker, _ in _segments(content)) > MAX_SCANS:
        raise Unusable(f"too many scans: JPEG of more than {MAX_SCANS}")
    if header.mode == "CMYK":
        return None
    width, height = (-(-side // factor) for side in header.stored_size)
    try:
        # With both, libjpeg takes 1/factor itself and no other fraction of the same size.
        return simplejpeg.decode_jpeg(content, min_height=height, min_width=width, min_factor=factor)
    except ValueError:
        return None


def _decode_with_pillow(content: bytes, header: Header, factor: int) -> np.ndarray:
    """The pixels as stored, those of a TIFF upright."""
    with _open(content, header.kind) as image:
        if image.size != header.stored_size:
            raise ValueError("two headers with different sizes")
        image.load()
        if header.kind == "JPEG" and _is_cut(content, "JPEG"):
            raise ValueError("no end")
        if image.mode in ("I", "F"):
            raise ValueError(f"pixels of 32 bits (mode {image.mode}) have no defined white")
        if image.mode.startswith("I;16"):
            image = Image.fromarray((np.asarray(image).astype(np.uint16) >> 8).astype(np.uint8))
        pixels = image.convert("RGB")
        return np.asarray(pixels.reduce(factor) if factor > 1 else pixels)


def _open(content: bytes, kind: str) -> ImageFile.ImageFile:
    """Pillow's image, not decoded yet."""
    return KINDS[kind][0](io.BytesIO(_essential_chunks(content) if kind == "PNG" else content))


def _essential_chunks(content: bytes) -> bytes:
    """A PNG with its EXIF first, and without texts that unpack to gigabytes, frames and profiles."""
    chunks, end = [], 8
    while len(chunks) < MAX_STEPS and (match := CHUNK.match(content, end)):
        start, end = end, end + 12 + int.from_bytes(match[1], "big")
        chunks.append((match[2], content[start:end]))
    if sum(name == b"IHDR" for name, _ in chunks) > 1:
        raise ValueError("two headers")
    exif = [chunk for name, chunk in chunks if name == b"eXIf"]
    critical = [chunk for name, chunk in chunks if name[:1].isupper()]
    return b"".join([content[:8], *critical[:1], *exif, *critical[1:], content[end:]])


def _upright(pixels: np.ndarray, orientation: int) -> np.ndarray:
    if orientation == 1:
        return pixels
    if orientation >= 5:
        pixels = pixels.transpose(1, 0, 2)
    down, right = (-1 if orientation in group else 1 for group in (FLIPPED_Y, FLIPPED_X))
    return np.ascontiguousarray(pixels[::down, ::right])
