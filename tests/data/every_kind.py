"""Image files of every kind, each with the pixels that Pillow defines for it, to compare all readers of images.

`every_kind()` creates the files. The expected pixels come from `Image.open` or from the array that was encoded, never
from the decoder of this project.
"""

import io
import re
import struct
import zlib
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageOps
from PIL.PngImagePlugin import PngInfo

from tests.data.bad_images import SIZE, SKIPPED, encoded, files, picture, png_bomb, sixteen_bits, with_orientation


class Case(NamedTuple):
    """Holds a file and its expected pixels, or the reason for its refusal."""

    name: str
    content: bytes
    pixels: np.ndarray | None  # (H, W, 3) uint8, upright; None if the file is refused
    reason: str = ""  # kind of reason, as `dupr-tf scan` groups it


def every_kind() -> list[Case]:
    """Returns the files that `dupr-tf scan` is tested with, and those that matter only to a decoder."""
    cases = [
        Case(
            name, content, None if outcome == SKIPPED else pillows_pixels(content), reason if outcome == SKIPPED else ""
        )
        for name, (content, outcome, reason) in files().items()
    ]
    return [*cases, *_jpegs(), *_pngs(), *_others(), *_cut()]


def pillows_pixels(content: bytes) -> np.ndarray:
    """Returns Pillow's pixels of the first frame, upright, without alpha, and the upper 8 bits of 16."""
    with Image.open(io.BytesIO(content)) as image:
        upright = ImageOps.exif_transpose(image)
        if upright.mode.startswith("I;16"):
            return np.repeat((np.asarray(upright) >> 8).astype(np.uint8)[..., None], 3, -1)
        return np.asarray(upright.convert("RGB"))


def chunk(name: bytes, body: bytes) -> bytes:
    """Returns a chunk of a PNG."""
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


def png_of_16_bits(colours: np.ndarray) -> bytes:
    """Returns a PNG of (H, W, C) uint16, for C from 1 to 4: grey, grey with alpha, RGB, RGBA."""
    height, width, channels = colours.shape
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in colours)
    header = struct.pack(">IIBBBBB", width, height, 16, (0, 4, 2, 6)[channels - 1], 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def with_scans(scans: int, size: tuple[int, int] = SIZE) -> bytes:
    """Returns a progressive JPEG with so many scans, by repeating the last one."""
    content = encoded(picture(size=size), quality=60, progressive=True)
    starts = [found.start() for found in re.finditer(b"\xff\xda", content)]
    last = content[starts[-1] : -2]
    return content[:-2] + last * (scans - len(starts)) + content[-2:]


def segment(marker: int, body: bytes) -> bytes:
    """Returns a segment of a JPEG."""
    return bytes([0xFF, marker]) + struct.pack(">H", len(body) + 2) + body


def _jpegs():
    photo = picture(size=(97, 61))
    whole = encoded(photo, quality=90)
    turned = with_orientation(photo, 6)
    profile = segment(0xE2, b"ICC_PROFILE\0\1\1" + bytes(60_000))
    thumbnail = segment(0xE5, encoded(picture(size=(16, 12))))
    files = {
        **{f"subsampling_{i}": encoded(photo, subsampling=i) for i in (0, 1, 2)},
        "subsampling_3_x_1": encoded(photo, subsampling=0).replace(b"\x03\x01\x11\x00", b"\x03\x01\x31\x00", 1),
        "restarts": encoded(photo, restart_marker_blocks=2),
        "adobe_rgb": encoded(photo, keep_rgb=True),
        "cmyk_turned": with_orientation(picture("CMYK"), 8),
        "grey_progressive": encoded(picture("L"), progressive=True),
        "exif_after_a_profile": turned[:2] + profile + turned[2:],
        "exif_after_180_kB": turned[:2] + profile * 3 + turned[2:],
        "thumbnail": whole[:2] + thumbnail + whole[2:],
        "fill_bytes_before_a_marker": whole[:2] + b"\xff" * 9 + whole[2:],
        "garbage_between_segments": whole[:20] + b"abc" + whole[20:],
        "several_pictures": encoded(photo, "MPO", save_all=True, append_images=[picture(seed=1)]),
        "zeros_after_the_end": whole + bytes(300),
        "90_scans": with_scans(90),
    }
    for name, content in files.items():
        yield Case(f"{name}.jpg", content, pillows_pixels(content))
    yield Case("3000_scans.jpg", with_scans(3000), None, "too many scans")
    many_markers = whole + b"\xff\xda" * 3000  # after the end: bytes of another file, not scans
    yield Case("film_after_the_end.jpg", many_markers, pillows_pixels(whole))
    progressive = encoded(photo, progressive=True)
    yield Case(
        "film_after_the_end_of_a_progressive.jpg", progressive + many_markers[-6000:], pillows_pixels(progressive)
    )
    yield Case("two_components.jpg", whole.replace(b"\x03\x01\x22\x00", b"\x02\x01\x22\x00", 1), None, "damaged")
    yield Case("no_height.jpg", _with_height(whole, 0), None, "damaged")
    yield Case("only_a_start.jpg", b"\xff\xd8\xff", None, "cut short")


def _with_height(content, height):
    at = content.index(b"\xff\xc0") + 5
    return content[:at] + struct.pack(">H", height) + content[at + 2 :]


def _pngs():
    rng = np.random.default_rng(0)
    for channels in (1, 2, 3, 4):
        colours = rng.integers(0, 1 << 16, (*SIZE[::-1], channels), np.uint16)
        shown = (colours[..., :3] if channels > 2 else colours[..., :1].repeat(3, -1)) >> 8
        yield Case(f"16_bits_of_{channels}.png", png_of_16_bits(colours), shown.astype(np.uint8))
    text = PngInfo()
    text.add_text("comment", "a" * 5_000_000, zip=True)
    plain = encoded(picture(), "PNG")
    yield Case("text_bomb.png", encoded(picture(), "PNG", pnginfo=text), np.asarray(picture()))
    yield Case("broken_profile.png", plain[:33] + chunk(b"iCCP", b"x") + plain[33:], np.asarray(picture()))
    end = plain.index(b"IEND") - 4
    exif = chunk(b"eXIf", b"II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x03\0\0\0")
    yield Case("exif_at_the_end.png", plain[:end] + exif + plain[end:], np.asarray(picture())[::-1, ::-1])
    yield Case("no_end_chunk.png", plain[:end], np.asarray(picture()))
    twice = plain[:33] + chunk(b"IHDR", struct.pack(">IIBBBBB", 30000, 30000, 8, 2, 0, 0, 0)) + plain[33:]
    yield Case("two_headers.png", twice, None, "damaged")
    files = {
        "bilevel": encoded(picture("1"), "PNG"),
        "bilevel_bomb_that_is_none": png_bomb(800),
        "transparent_colour": encoded(picture(), "PNG", transparency=(1, 2, 3)),
        "transparent_palette": encoded(picture("P"), "PNG", transparency=bytes(range(256))),
        "animated": encoded(picture(), "PNG", save_all=True, append_images=[picture(seed=1)]),
        "alpha_16": encoded(picture("LA"), "PNG"),
    }
    for name, content in files.items():
        yield Case(f"{name}.png", content, pillows_pixels(content))


def _others():
    photo = picture(size=(61, 47))
    lossless = {"lossless": True, "exact": True}
    small = picture("P", size=(8, 8))
    files = {
        "transparent.gif": encoded(picture("P"), "GIF", transparency=3),
        "grey.gif": encoded(picture("L"), "GIF"),
        "frame_larger_than_the_screen.gif": _with_screen(encoded(small, "GIF"), 4),
        "lossless.webp": encoded(photo, "WEBP", lossless=True),
        "alpha.webp": encoded(picture("RGBA"), "WEBP", **lossless),
        "palette.bmp": encoded(picture("P"), "BMP"),
        "bilevel.bmp": encoded(picture("1"), "BMP"),
        "alpha.bmp": encoded(picture("RGBA"), "BMP"),
        "cmyk.tif": encoded(picture("CMYK"), "TIFF"),
        "alpha.tif": encoded(picture("RGBA"), "TIFF"),
        "fax.tif": encoded(picture("1"), "TIFF", compression="group4"),
        "lab.tif": encoded(Image.new("LAB", SIZE, (90, 20, 200)), "TIFF"),
        "big.tif": encoded(photo, "TIFF", big_tiff=True),
        "big_endian_16.tif": encoded(sixteen_bits().convert("I;16B"), "TIFF"),
        **{f"{how}.tif": encoded(photo, "TIFF", compression=how) for how in ("tiff_lzw", "jpeg", "tiff_deflate")},
        **{f"turned_{i}_{kind}": with_orientation(photo, i, kind) for i in range(1, 9) for kind in ("PNG", "TIFF")},
        **{f"turned_{i}_WEBP": with_orientation(photo, i, "WEBP", **lossless) for i in range(1, 9)},
    }
    for name, content in files.items():
        yield Case(name, content, pillows_pixels(content))
    yield Case("32_bits.tif", encoded(sixteen_bits().convert("I"), "TIFF"), None, "no defined white")
    for kind, start in (("gif", b"GIF89a"), ("bmp", b"BM"), ("tif", b"II*\0"), ("webp", b"RIFF\0\0\0\0WEBP")):
        yield Case(f"only_a_start.{kind}", start, None, "damaged")


def _with_screen(gif, side):
    return gif[:6] + struct.pack("<HH", side, side) + gif[10:]


def _cut():
    """Returns files that end too early, at several points."""
    photo = picture(size=(97, 61))
    files = {
        "baseline.jpg": encoded(photo, quality=90),
        "progressive.jpg": encoded(photo, quality=90, progressive=True),
        "cmyk.jpg": encoded(picture("CMYK")),
        "plain.png": encoded(photo, "PNG"),
    }
    for name, content in files.items():
        for end in (9, 20, len(content) // 3, len(content) * 2 // 3, len(content) - 30):
            yield Case(f"cut_at_{end}_{name}", content[:end], None, "cut short")
    for end in range(1, 8):
        yield Case(f"cut_by_{end}_baseline.jpg", files["baseline.jpg"][:-end], None, "cut short")
        yield Case(f"cut_by_{end}_progressive.jpg", files["progressive.jpg"][:-end], None, "cut short")
    without_end = encoded(picture("L", size=(4, 33)), quality=20)[:-2]
    assert pillows_pixels(without_end).shape == (33, 4, 3)  # all rows exist: Pillow does not look for the end
    yield Case("cut_after_all_rows.jpg", without_end, None, "cut short")
