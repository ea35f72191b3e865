"""Decodes the bytes of a file to upright RGB pixels. The name of the file does not matter.

simplejpeg decodes JPEGs. Pillow decodes all other kinds, and the JPEGs that simplejpeg cannot decode. Where both can
decode a file they give the same pixels. Size and number of scans are checked before anything is decoded.
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
from PIL.AvifImagePlugin import AvifImageFile
from PIL.BmpImagePlugin import BmpImageFile
from PIL.GifImagePlugin import GifImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.TiffImagePlugin import ImageFileDirectory_v2, TiffImageFile
from PIL.WebPImagePlugin import WebPImageFile

from dupr_tf.errors import UserError
from dupr_tf.text import escape, one_line

MAX_PIXELS = 100_000_000  # the default of data.max_pixels; 300 MB once decoded
MAX_SCANS = 100  # of a JPEG: usual encoders write up to 10; each one takes as long as decoding the image once
MAX_STEPS = 1_000_000  # steps through segments or chunks; damaged files may have one every 4 bytes
START_BYTES = 1 << 17  # bytes of a JPEG within which nearly every header ends
FACTORS = (8, 4, 2, 1)  # an image can be decoded at 1/8, 1/4, 1/2 of its size


def _open_heif(file: io.BytesIO) -> ImageFile.ImageFile:
    """Opens a HEIC file as a Pillow image. The package is an extra because of libheif's licence (LGPL)."""
    try:
        from pillow_heif.as_plugin import HeifImageFile
    except ImportError:
        raise Unusable("HEIC needs the extra heic: pip install 'dupr_tf[heic]'") from None
    return HeifImageFile(file)


DEEP = ("I", "F")  # modes with pixels of 32 bits
LITTLE = ("L", "N") if sys.byteorder == "little" else ("L",)  # ends of raw modes whose lower byte comes first
DEEP_COLOURS = ("RGB;16", "RGBA;16", "LA;16")  # raw modes with 16 bits a channel
GAIN = 1 << 14  # a 16-bit image gains from `data.depth: auto` if its values span less than a quarter of their range
NAMES = "JPEG, PNG, GIF, BMP, TIFF, WebP, AVIF or HEIC"
KINDS = {  # the Pillow class of each kind and the first bytes of its files; `Image.open` has a global limit of pixels
    "JPEG": (JpegImageFile, rb"\xff\xd8\xff"),
    "PNG": (PngImageFile, rb"\x89PNG\r\n\x1a\n"),
    "GIF": (GifImageFile, rb"GIF8[79]a"),
    "BMP": (BmpImageFile, rb"BM"),
    "TIFF": (TiffImageFile, rb"II[*+]\0|MM\0[*+]"),
    "WEBP": (WebPImageFile, rb"(?s)RIFF....WEBP"),
    "AVIF": (AvifImageFile, rb"(?s)....ftypavi[fs]"),
    "HEIC": (_open_heif, rb"(?s)....ftyp(hei[cxms]|hev[cxms]|mif1|msf1)"),
}
EXIF, ORIENTATION = b"Exif\0\0", 0x0112  # start of a block, tag
PHOTOMETRIC, SAMPLES, EXTRA_SAMPLES = 262, 277, 338  # tags of a TIFF; below, values of the first and the last tag
RGB, CMYK, ALPHA = 2, 5, (1, 2)
BIG_TIFF = 43  # third byte
EOI, SOS, APP1 = 0xD9, 0xDA, 0xE1  # markers of a JPEG
SOF, PROGRESSIVE = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}, {0xC2, 0xC6, 0xCA, 0xCE}
MARKER = re.compile(rb"\xff([^\x00\xff\xd0-\xd7])")  # second bytes of a segment; the others are part of a scan
CHUNK = re.compile(rb"(?s)(....)([A-Za-z]{4})")  # bytes of a PNG chunk's length and name
MODES = {1: "L", 3: "RGB", 4: "CMYK"}  # modes of a JPEG, by its channels
FLIPPED_Y, FLIPPED_X = (3, 4, 7, 8), (2, 3, 6, 7)  # orientations; from 5 on, rows and columns are swapped first
COLOUR_NOTES = {"CMYK": "CMYK to RGB", "P": "palette to RGB", "I": "16 bits to 8", "LA": "alpha dropped"}
COLOUR_NOTES |= {"RGBA": "alpha dropped", "PA": "alpha dropped", "L": "grey", "1": "grey"}

# Pillow warns of damage that it ignores, and of large images, which `max_pixels` limits here.
warnings.filterwarnings("ignore", module=r"PIL\.")
logging.getLogger("PIL").setLevel(logging.CRITICAL)
with contextlib.suppress(AttributeError, OSError):  # libtiff prints what is damaged; Pillow raises an error too
    ctypes.CDLL(Image.core.__file__).TIFFSetErrorHandler(None)


class Unusable(ValueError):
    """Says that an image cannot be used. The text is the reason in one line, as `kind of reason: details`."""


class Header(NamedTuple):
    """Facts about an image that are known before it is decoded."""

    kind: str  # a key of KINDS
    height: int  # px, upright
    width: int  # px, upright
    orientation: int  # EXIF's orientation of the decoded pixels, 1 to 8; 1 for a TIFF, which Pillow turns
    mode: str  # Pillow's
    many_scans: bool = False  # whether it is a JPEG that may have any number of scans

    @property
    def stored_size(self) -> tuple[int, int]:
        """Returns width and height before the image is turned."""
        return (self.height, self.width) if self.orientation >= 5 else (self.width, self.height)


def kind_of(content: bytes) -> str | None:
    """Returns the key of `KINDS` that matches the first bytes of a file. None if it is no image."""
    return next((kind for kind, (_, start) in KINDS.items() if re.match(start, content)), None)


def read_header(content: bytes, max_pixels: int = MAX_PIXELS) -> Header:
    """Reads kind, upright size and orientation of an encoded image.

    Args:
        content: the bytes of an image of one of KINDS.
        max_pixels: an image of more is refused.

    Raises:
        Unusable: the bytes are no image, or an image that must not be decoded.
    """
    kind = kind_of(content)
    if kind is None:
        raise Unusable(f"no image: not a {NAMES} inside" if content else "empty: 0 bytes")
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


def decode(
    content: bytes, max_pixels: int = MAX_PIXELS, header: Header | None = None, factor: int = 1, depth: str = "full"
) -> np.ndarray:
    """Decodes an image to upright pixels. Of an animation it decodes the first frame.

    Args:
        content: the bytes of an image of one of KINDS.
        max_pixels: an image of more is refused.
        header: of these bytes, if it was read before.
        factor: 1, 2, 4 or 8. The sides of the image are divided by it and rounded up. A JPEG is decoded at that size,
            which saves time. Other images are shrunk after decoding.
        depth: "full" keeps the upper 8 of 16 bits. "auto" scales an image of 16 or 32 bits by its minimum and maximum,
            taken over all colours.

    Returns:
        (H, W, 3) uint8 RGB. Alpha is dropped.

    Raises:
        Unusable: the image cannot be decoded, or has pixels without a defined white.
    """
    header = header or read_header(content, max_pixels)
    _check_pixels(header, max_pixels)
    try:
        pixels = _decode_jpeg(content, header, factor) if header.kind == "JPEG" else None
        if pixels is None:
            pixels = _decode_with_pillow(content, header, factor, depth)
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


def describe(content: bytes, header: Header | None = None, depth: str = "full") -> str:
    """Describes how a usable image is used, with its stored size: `JPEG, turned upright: 640 x 480`."""
    header = header or read_header(content)
    turned, animated = header.orientation > 1, False
    if header.kind in ("GIF", "WEBP", "TIFF"):
        image = _open(content, header.kind)
        turned |= header.kind == "TIFF" and image.getexif().get(ORIENTATION) in range(2, 9)
        with contextlib.suppress(Exception):  # a damaged second frame: the first one is still used
            animated = image.is_animated
    colours = COLOUR_NOTES.get(header.mode.split(";")[0])
    deep = _deep_values(content, header.kind)
    if deep is not None:
        scaled = depth == "auto"
        advice = ", would gain from data.depth auto" if _is_narrow(deep) and not scaled else ""
        deep = f"16 bits to 8{' by its own range' if scaled else advice}"
        colours = None if header.mode.startswith("I;16") else colours
    notes = [header.kind, colours, deep, "first frame" if animated else None, "turned upright" if turned else None]
    return ", ".join(filter(None, notes)) + ": {} x {}".format(*header.stored_size)


def uses_few_levels(content: bytes) -> bool:
    """Returns True if an image has 16 bits and uses a small part of their range. Raises Unusable if it is damaged."""
    kind = read_header(content).kind
    try:
        deep = _deep_values(content, kind)
    except Exception as error:
        raise Unusable(_reason(error, content, kind)) from None
    return deep is not None and _is_narrow(deep)


def _is_narrow(deep: np.ndarray) -> bool:
    return np.ptp(deep.astype(np.int64)) < GAIN


def _check_pixels(header: Header, max_pixels: int) -> None:
    if header.height * header.width > max_pixels:
        raise Unusable("too many pixels: {} x {}, see data.max_pixels".format(*header.stored_size))


def _reason(error: Exception, content: bytes, kind: str) -> str:
    """Turns an exception into a reason. A damaged file can make Pillow raise nearly any error."""
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
    if kind == "TIFF":
        _check_channels(content)
    image = _open(content, kind)
    orientation = 1 if kind == "TIFF" else _orientation(image.info.get("exif") or b"")
    sides = image.size if orientation >= 5 else image.size[::-1]
    return Header(kind, *sides, orientation, image.mode)


def _check_channels(content: bytes) -> None:
    """Refuses a TIFF with more bands than colours and alpha. Pillow would silently use the first three."""
    tags, file = ImageFileDirectory_v2(content[: 16 if content[2] == BIG_TIFF else 8]), io.BytesIO(content)
    file.seek(tags.next)
    tags.load(file)
    channels, colours, extra = tags.get(SAMPLES, 1), tags.get(PHOTOMETRIC), tags.get(EXTRA_SAMPLES, (ALPHA[0],))
    with_alpha = channels == 4 and colours == RGB and extra[0] in ALPHA
    if channels > 3 and not with_alpha and (channels, colours) != (4, CMYK):
        raise Unusable(f"more than three channels: TIFF with {channels}, write the three to train on as an RGB image")


def _orientation(block: bytes) -> int:
    """Returns the orientation in an EXIF block, 1 to 8. It is 1 (upright) if the block has none that can be read."""
    exif = Image.Exif()
    with contextlib.suppress(Exception):  # an image with a damaged block is not turned
        exif.load(block)
        value = exif.get(ORIENTATION)
        return int(value) if value in range(1, 9) else 1
    return 1


def _segments(content: bytes) -> Iterator[tuple[int, int]]:
    """Yields marker and data position of each segment of a JPEG. Garbage between segments is skipped."""
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
    """Decodes the pixels as stored. None means that Pillow must decode: it recovers more, and it converts CMYK."""
    if header.many_scans and sum(marker == SOS for marker, _ in _segments(content)) > MAX_SCANS:
        raise Unusable(f"too many scans: JPEG of more than {MAX_SCANS}")
    if header.mode == "CMYK":
        return None
    width, height = (-(-side // factor) for side in header.stored_size)
    try:
        # With both arguments, libjpeg takes exactly 1/factor, and no other fraction that gives the same size.
        return simplejpeg.decode_jpeg(content, min_height=height, min_width=width, min_factor=factor)
    except ValueError:
        return None


def _decode_with_pillow(content: bytes, header: Header, factor: int, depth: str) -> np.ndarray:
    """Decodes the pixels as stored; those of a TIFF upright."""
    with _open(content, header.kind) as image:
        if image.size != header.stored_size:
            raise ValueError("two headers with different sizes")
        image.load()
        if header.kind == "JPEG" and _is_cut(content, "JPEG"):
            raise ValueError("no end")
        deep = _deep_values(content, header.kind) if depth == "auto" else None
        if deep is not None or image.mode in DEEP or image.mode.startswith("I;16"):
            image = Image.fromarray(_to_8_bits(np.asarray(image) if deep is None else deep, image.mode, depth))
        pixels = image.convert("RGB")
        return np.asarray(pixels.reduce(factor) if factor > 1 else pixels)


def _to_8_bits(values: np.ndarray, mode: str, depth: str) -> np.ndarray:
    """Converts the values of a deeper image to (H, W) uint8."""
    if depth == "full":
        if mode in DEEP:
            raise Unusable(f"no defined white: pixels of 32 bits (mode {mode}), data.depth auto scales them")
        return (values.astype(np.uint16) >> 8).astype(np.uint8)
    values = values.astype(np.float64)
    if not np.isfinite(values).all():
        raise Unusable("no defined white: some pixels are not finite")
    low, span = values.min(), np.ptp(values)
    return np.rint((values - low) * (255 / span if span else 0)).astype(np.uint8)


def _deep_values(content: bytes, kind: str) -> np.ndarray | None:
    """Returns the 16-bit values, (H, W) grey or (H, W, 3), of an image without alpha. None for any other depth.

    Pillow reads only the upper byte of a colour value. With the other byte order it reads the lower one.
    """
    if kind not in ("PNG", "TIFF"):
        return None
    image, other = _open(content, kind), _open(content, kind)
    if image.mode.startswith("I;16"):
        return np.asarray(image)
    names = {tile.args if isinstance(tile.args, str) else tile.args[0] for tile in image.tile}
    if len(names) != 1 or not (name := names.pop()).startswith(DEEP_COLOURS):
        return None
    grey = name.startswith("LA")  # this mode has no other byte order, so its four bytes are read as RGBA
    swapped = "RGBA" if grey else name[:-1] + ("B" if name.endswith(LITTLE) else "L")
    other.tile = [
        tile._replace(args=swapped if isinstance(tile.args, str) else (swapped, *tile.args[1:])) for tile in other.tile
    ]
    upper, lower = np.asarray(image)[..., :3], np.asarray(other)[..., :3]
    if grey:
        upper, lower = lower[..., 0], lower[..., 1]
    return upper.astype(np.uint16) << 8 | lower


def _open(content: bytes, kind: str) -> ImageFile.ImageFile:
    """Opens a Pillow image without decoding it."""
    return KINDS[kind][0](io.BytesIO(_essential_chunks(content) if kind == "PNG" else content))


def _essential_chunks(content: bytes) -> bytes:
    """Returns a PNG with its EXIF first, and without frames, profiles, and texts that may unpack to gigabytes."""
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
