"""Reads kind, size and orientation of an image from its header, by the file's bytes and not by its name."""

from __future__ import annotations

import contextlib
import ctypes
import io
import logging
import os
import struct
import warnings
from collections.abc import Iterator
from typing import BinaryIO, NamedTuple

from PIL import (
    BmpImagePlugin,
    GifImagePlugin,
    Image,
    ImageFile,
    JpegImagePlugin,
    PngImagePlugin,
    TiffImagePlugin,
    WebPImagePlugin,
)

from dupr_tf.errors import UserError
from dupr_tf.text import escape, one_line

MAX_PIXELS = 100_000_000  # the default of data.max_pixels; 300 MB once decoded
PLUGINS = {
    "JPEG": JpegImagePlugin.JpegImageFile,
    "PNG": PngImagePlugin.PngImageFile,
    "GIF": GifImagePlugin.GifImageFile,
    "BMP": BmpImagePlugin.BmpImageFile,
    "WEBP": WebPImagePlugin.WebPImageFile,
    "TIFF": TiffImagePlugin.TiffImageFile,
}
FIRST_BYTES = {
    "JPEG": (b"\xff\xd8\xff",),
    "PNG": (b"\x89PNG\r\n\x1a\n",),
    "GIF": (b"GIF87a", b"GIF89a"),
    "BMP": (b"BM",),
    "TIFF": (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"),
}
EXIF = b"Exif\0\0"
ORIENTATION = 0x0112  # EXIF's tag
MAX_STEPS = 1_000_000  # through segments and garbage of a header; damaged files may have a segment every 4 bytes
SOF = {0xC0, 0xC1, 0xC2, 0xC3, 0xC5, 0xC6, 0xC7, 0xC9, 0xCA, 0xCB, 0xCD, 0xCE, 0xCF}  # JPEG's frame headers
PROGRESSIVE = {0xC2, 0xC6, 0xCA, 0xCE}
SOI, EOI, SOS, APP1 = 0xD8, 0xD9, 0xDA, 0xE1
WITHOUT_LENGTH = {0x00, 0x01, *range(0xD0, 0xD8)}  # no marker, TEM and RSTn

# Pillow warns of what it ignores in damaged files, and of many pixels, which `max_pixels` limits here.
warnings.filterwarnings("ignore", module=r"PIL\.")
logging.getLogger("PIL").setLevel(logging.CRITICAL)
with contextlib.suppress(AttributeError, OSError):  # libtiff prints what is damaged, where Pillow raises it
    ctypes.CDLL(Image.core.__file__).TIFFSetErrorHandler(None)


class Unusable(ValueError):
    """An image cannot be used. Its text is the reason, as `kind of reason: details`, in one line."""


class Header(NamedTuple):
    """Facts about an image that are known before it is decoded."""

    kind: str  # a key of PLUGINS
    height: int  # px, upright
    width: int  # px, upright
    orientation: int  # EXIF's, 1 to 8
    channels: int = 0  # of a JPEG, as stored; 0: another kind
    many_scans: bool = False  # whether it is a JPEG that may have any number of scans


def read_header(content: bytes, max_pixels: int = MAX_PIXELS) -> Header:
    """Kind, upright size and orientation of an encoded image.

    Args:
        content: the bytes of a JPEG, PNG, GIF, BMP, WebP or TIFF.
        max_pixels: an image of more is refused.

    Raises:
        Unusable: the bytes are no image, or one that must not be decoded.
    """
    header = read_header_from(io.BytesIO(content))
    check_pixels(header, max_pixels)
    return header


def read_header_from(file: BinaryIO) -> Header:
    """As `read_header`, but of an open file, of which only the header is read; the number of pixels is not limited."""
    file.seek(0)
    start = file.read(16)
    kind = kind_of(start)
    if not start:
        raise Unusable("empty: 0 bytes")
    if kind is None:
        raise Unusable("no image: not a JPEG, PNG, GIF, BMP, WebP or TIFF inside")
    try:
        header = READERS.get(kind, _read_with_pillow)(file, kind)
    except Exception as error:
        raise Unusable(reason_for(error, kind)) from None
    if not (header.height and header.width):
        raise Unusable(f"damaged: {kind}, no pixels")
    if header.orientation >= 5 and kind != "TIFF":  # Pillow gives a TIFF's sides as they are upright
        header = header._replace(height=header.width, width=header.height)
    return header


def upright_size(path: str | os.PathLike) -> tuple[int, int]:
    """Height and width of an image file as it is meant to be seen, from its header.

    Raises:
        UserError: it is no image of a known kind.
    """
    try:
        with open(path, "rb") as file:
            return upright_size_of(file)
    except (OSError, ValueError) as error:
        reason = one_line(error).rstrip(".")
        raise UserError(None, f"{path} cannot be read as an image: {reason}.", "Replace or unlist the file.") from None


def upright_size_of(file: BinaryIO) -> tuple[int, int]:
    """As `upright_size`, of an open file; raises `Unusable`."""
    header = read_header_from(file)
    return header.height, header.width


def kind_of(content: bytes) -> str | None:
    """A key of PLUGINS by the first bytes of a file; None: something else."""
    if content[:4] == b"RIFF" and content[8:12] == b"WEBP":
        return "WEBP"
    return next((kind for kind, starts in FIRST_BYTES.items() if content.startswith(starts)), None)


def check_pixels(header: Header, max_pixels: int) -> None:
    if header.height * header.width > max_pixels:
        width, height = stored_size(header)
        raise Unusable(f"too many pixels: {width} x {height}, see data.max_pixels")


def stored_size(header: Header) -> tuple[int, int]:
    """Width and height as Pillow gives them when it opens the file."""
    turned = header.orientation >= 5 and header.kind != "TIFF"
    return (header.height, header.width) if turned else (header.width, header.height)


def reason_for(error: Exception, kind: str, cut: bool = False) -> str:
    """The reason that stands for an exception. A damaged file makes Pillow raise nearly anything.

    Args:
        error: what reading or decoding the file raised.
        kind: of the image.
        cut: whether the end of the file is missing.
    """
    if isinstance(error, Unusable):
        return str(error)
    if isinstance(error, Image.DecompressionBombError):
        return f"too many pixels: more than {2 * Image.MAX_IMAGE_PIXELS}, Pillow's limit for {kind}"
    if isinstance(error, MemoryError):
        return f"too large: {kind}, not enough memory to decode it"
    return f"cut short: {kind}" if cut else f"damaged: {kind}, {escape(one_line(error, 200))}"


def open_with_pillow(file: BinaryIO, kind: str) -> ImageFile.ImageFile:
    """The image by its plugin, not by `Image.open`, whose limit of pixels is global. Nothing is decoded yet."""
    file.seek(0)
    return PLUGINS[kind](file)


def _read_with_pillow(file: BinaryIO, kind: str) -> Header:
    image = open_with_pillow(file, kind)
    orientation = image.getexif().get(ORIENTATION, 1) if kind == "TIFF" else 1
    return Header(kind, image.height, image.width, orientation if orientation in range(1, 9) else 1)


def _read_jpeg(file: BinaryIO, _kind: str) -> Header:
    """Goes from marker to marker up to the first scan, as libjpeg does: what lies between is passed over."""
    height = width = channels = orientation = frame = 0
    position = 2
    for _ in range(MAX_STEPS):
        file.seek(position)
        head = file.read(4)
        if len(head) < 4:
            raise Unusable("cut short: JPEG")
        marker, length = head[1], head[2] << 8 | head[3]  # bytes, with those of the length
        if head[0] != 0xFF or marker == 0xFF:
            position += 1
        elif marker in WITHOUT_LENGTH:
            position += 2
        elif marker in (SOI, EOI) or length < 2:
            break
        elif marker == SOS:
            many_scans = frame in PROGRESSIVE or file.read(1)[:1] < bytes([channels])
            return Header("JPEG", height, width, orientation or 1, channels, many_scans)
        else:
            if marker in SOF:
                frame = marker
                height, width, channels = struct.unpack(">xHHB", file.read(6))
            elif marker == APP1 and not orientation:
                block = file.read(length - 2)
                orientation = exif_orientation(block[len(EXIF) :]) if block.startswith(EXIF) else 0
            position += 2 + length
    raise Unusable("damaged: JPEG, its header")


def _read_png(file: BinaryIO, kind: str) -> Header:
    file.seek(8)
    head = file.read(16)
    if len(head) < 16:
        raise Unusable("cut short: PNG")
    name, width, height = struct.unpack(">4x4sII", head)
    if name != b"IHDR":
        raise Unusable("damaged: PNG, its header")
    for name, start, length in png_chunks(file):
        if name == b"eXIf":
            file.seek(start + 8)
            return Header(kind, height, width, exif_orientation(file.read(length)))
    return Header(kind, height, width, 1)


def png_chunks(file: BinaryIO) -> Iterator[tuple[bytes, int, int]]:
    """Name, position and length of the data of each chunk; a chunk is 12 bytes longer. Ends where there is none."""
    position = 8
    for _ in range(MAX_STEPS):
        file.seek(position)
        head = file.read(8)
        if len(head) < 8 or not head[4:].isalpha():
            return
        length, name = struct.unpack(">I4s", head)
        yield name, position, length
        if name == b"IEND":
            return
        position += length + 12


def _read_webp(file: BinaryIO, kind: str) -> Header:
    file.seek(12)
    first = file.read(18)
    if first[:4] == b"VP8X":
        width, height = (1 + int.from_bytes(first[at : at + 3], "little") for at in (12, 15))
    elif first[:4] == b"VP8L":
        sides = int.from_bytes(first[9:13], "little")
        width, height = 1 + (sides & 0x3FFF), 1 + (sides >> 14 & 0x3FFF)
    else:
        width, height = (side & 0x3FFF for side in struct.unpack_from("<HH", first, 14))
    position, orientation = 12, 1
    for _ in range(MAX_STEPS):
        file.seek(position)
        head = file.read(8)
        length = int.from_bytes(head[4:], "little")
        if head[:4] == b"EXIF":
            orientation = exif_orientation(file.read(length).removeprefix(EXIF))
        if len(head) < 8 or head[:4] == b"EXIF":
            break
        position += 8 + length + length % 2
    return Header(kind, height, width, orientation)


def exif_orientation(block: bytes) -> int:
    """The orientation of an EXIF block, 1 to 8; 1 (upright) where it says nothing readable."""
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(block[:4])
    if order is None:
        return 1
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


READERS = {"JPEG": _read_jpeg, "PNG": _read_png, "WEBP": _read_webp}
