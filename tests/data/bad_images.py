"""Writes odd image files of every kind, and states the outcome of each: `write_bad_images(folder)`.

`python -m tests.data.bad_images FOLDER` writes them, to be looked at with `dupr-tf scan FOLDER`.
"""

import functools
import io
import os
import struct
import sys
import zlib
from pathlib import Path

import numpy as np
from PIL import Image

USED, SKIPPED = "used", "skipped"
SIZE = (48, 36)  # width, height
ORIENTATIONS = {  # as Pillow's `exif_transpose` turns them
    2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_270, 7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}  # fmt: skip


def picture(mode="RGB", size=SIZE, seed=0):
    """Returns a smooth picture without symmetry."""
    coarse = np.random.default_rng(seed).integers(0, 256, (5, 6, 3), np.uint8)
    return Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC).convert(mode)


def encoded(image, kind="JPEG", **options):
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def with_orientation(image, value, kind="JPEG", endian="<", **options):
    """Returns the file of a picture that is upright as given, with its pixels stored in the orientation `value`."""
    exif = Image.Exif()
    exif.endian = endian
    exif[0x0112] = value
    undo = {6: 8, 8: 6}.get(value, value)  # apart from 6 and 8, each orientation is its own inverse
    stored = image if value == 1 else image.transpose(ORIENTATIONS[undo])
    return encoded(stored, kind, exif=exif, **options)


@functools.cache
def png_bomb(side):
    """Returns a PNG of side² black pixels, one bit each; 8 kB for every 100 million."""

    def chunk(name, body):
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    packer, rows = zlib.compressobj(9), bytes((side + 7) // 8 + 1) * 100
    body = b"".join(packer.compress(rows) for _ in range(side // 100)) + packer.flush()
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", body) + chunk(b"IEND", b"")


def claiming(content, side):
    """Returns a JPEG, GIF, BMP or WebP whose header claims side × side."""
    content = bytearray(content)
    if content.startswith(b"\xff\xd8"):
        at = next(i for i in range(len(content)) if content[i] == 0xFF and content[i + 1] in (0xC0, 0xC2))
        content[at + 5 : at + 9] = struct.pack(">HH", side, side)
    elif content.startswith(b"GIF"):
        content[6:10] = struct.pack("<HH", side, side)
    elif content.startswith(b"BM"):
        content[18:26] = struct.pack("<ii", side, side)
    else:
        at = content.index(b"\x9d\x01\x2a") + 3
        content[at : at + 4] = struct.pack("<HH", side, side)
    return bytes(content)


def tiff_bomb(side):
    entries = [(256, 4, side), (257, 4, side), (258, 3, 8), (259, 3, 1), (262, 3, 1), (273, 4, 8), (277, 3, 1),
               (278, 4, side), (279, 4, side * side)]  # fmt: skip
    body = b"".join(struct.pack("<HHII", tag, kind, 1, value) for tag, kind, value in entries)
    return b"II*\0" + struct.pack("<IH", 8, len(entries)) + body + bytes(4)


def sixteen_bits():
    grey = (np.arange(SIZE[0] * SIZE[1], dtype=np.uint16) * 37).reshape(SIZE[1], SIZE[0])
    return Image.fromarray(grey)


def files():
    """Returns {name: (content, outcome, reason as `dupr-tf scan` groups it)} of all plain files."""
    jpeg = encoded(picture(), quality=90)
    flipped = bytearray(encoded(picture(size=(96, 96)), quality=90))
    for at in range(len(flipped) // 2, len(flipped) // 2 + 40, 8):
        flipped[at] = (flipped[at] ^ 0x55) & 0x7F  # not the start of any marker
    frames = [picture("P", seed=i) for i in range(3)]
    animation = {"save_all": True, "append_images": [picture(seed=i) for i in (1, 2)]}
    many = "too many pixels"
    return {
        "plain.jpg": (jpeg, USED, "JPEG"),
        "progressive.jpg": (encoded(picture(), progressive=True), USED, "JPEG"),
        "trailing.jpg": (jpeg + b"made by a camera that adds a trailer", USED, "JPEG"),
        "cut_half.jpg": (jpeg[: len(jpeg) // 2], SKIPPED, "cut short"),
        "cut_two_bytes.jpg": (jpeg[:-2], SKIPPED, "cut short"),
        "cut_to_header.jpg": (jpeg[: jpeg.index(b"\xff\xda")], SKIPPED, "cut short"),
        "flipped_bytes.jpg": (bytes(flipped), USED, "JPEG"),
        "flipped_header.jpg": (jpeg[:20] + b"\0\0" + jpeg[22:], SKIPPED, "damaged"),
        "cmyk.jpg": (encoded(picture("CMYK")), USED, "JPEG, CMYK to RGB"),
        "grey.jpg": (encoded(picture("L")), USED, "JPEG, grey"),
        "grey16.png": (encoded(sixteen_bits(), "PNG"), USED, "PNG, 16 bits to 8"),
        "palette.png": (encoded(picture("P"), "PNG"), USED, "PNG, palette to RGB"),
        "rgba.png": (encoded(picture("RGBA"), "PNG"), USED, "PNG, alpha dropped"),
        "la.png": (encoded(picture("LA"), "PNG"), USED, "PNG, alpha dropped"),
        "cut.png": (encoded(picture(), "PNG")[:-400], SKIPPED, "cut short"),
        "exif_1.jpg": (with_orientation(picture(), 1), USED, "JPEG"),
        **{f"exif_{i}.jpg": (with_orientation(picture(), i), USED, "JPEG, turned upright") for i in ORIENTATIONS},
        "exif_big_endian.jpg": (with_orientation(picture(), 6, endian=">"), USED, "JPEG, turned upright"),
        "exif_6.png": (with_orientation(picture(), 6, "PNG"), USED, "PNG, turned upright"),
        "exif_6.webp": (with_orientation(picture(), 6, "WEBP"), USED, "WEBP, turned upright"),
        "animated.gif": (encoded(frames[0], "GIF", **animation), USED, "GIF, palette to RGB, first frame"),
        "animated.webp": (encoded(picture(), "WEBP", **animation), USED, "WEBP, first frame"),
        "plain.webp": (encoded(picture(), "WEBP"), USED, "WEBP"),
        "cut.webp": (encoded(picture(), "WEBP")[:-30], SKIPPED, "damaged"),
        "plain.tiff": (encoded(picture(), "TIFF"), USED, "TIFF"),
        "pages.tif": (encoded(picture(), "TIFF", **animation), USED, "TIFF, first frame"),
        "grey16.tif": (encoded(sixteen_bits(), "TIFF"), USED, "TIFF, 16 bits to 8"),
        "float.tif": (encoded(picture("F"), "TIFF"), SKIPPED, "no defined white"),
        "plain.bmp": (encoded(picture(), "BMP"), USED, "BMP"),
        "cut.bmp": (encoded(picture(), "BMP")[:-30], SKIPPED, "damaged"),
        "cut.gif": (encoded(frames[0], "GIF")[:100], SKIPPED, "damaged"),
        "one_pixel.png": (encoded(picture(size=(1, 1)), "PNG"), USED, "PNG"),
        "one_pixel.jpg": (encoded(picture(size=(1, 1))), USED, "JPEG"),
        "3x4000.jpg": (encoded(picture(size=(3, 4000))), USED, "JPEG"),
        "4000x3.png": (encoded(picture(size=(4000, 3)), "PNG"), USED, "PNG"),
        "bomb_20000.png": (png_bomb(20000), SKIPPED, many),
        "bomb_30000.png": (png_bomb(30000), SKIPPED, many),
        "bomb.jpg": (claiming(jpeg, 30000), SKIPPED, many),
        "bomb_progressive.jpg": (claiming(encoded(picture(), progressive=True), 30000), SKIPPED, many),
        "bomb.gif": (claiming(encoded(frames[0], "GIF"), 30000), SKIPPED, many),
        "bomb.bmp": (claiming(encoded(picture(), "BMP"), 30000), SKIPPED, many),
        "bomb.webp": (claiming(encoded(picture(), "WEBP"), 16383), SKIPPED, many),
        "bomb.tif": (tiff_bomb(30000), SKIPPED, many),
        "zero.jpg": (b"", SKIPPED, "empty"),
        "text.jpg": (b"This is no image.\n", SKIPPED, "no image"),
        "one_byte.jpg": (b"\xff", SKIPPED, "no image"),
        "png_inside.jpg": (encoded(picture(), "PNG"), USED, "PNG"),
        "jpeg_inside.png": (jpeg, USED, "JPEG"),
        "größe 象.jpg": (jpeg, USED, "JPEG"),
        "new\nline\tand\\tab.jpg": (jpeg, USED, "JPEG"),
        "[bold]brackets[/bold].jpg": (jpeg, USED, "JPEG"),
        os.fsdecode(b"not_utf8_\xff.jpg"): (jpeg, USED, "JPEG"),
        "a folder.jpg/inside.jpg": (jpeg, USED, "JPEG"),
    }  # fmt: skip


def write_bad_images(folder):
    """Writes all files below a folder. Returns {path: (outcome, reason)} of those that are listed as images."""
    folder, expected = Path(folder), {}
    for name, (content, *outcome) in files().items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        expected[str(path)] = tuple(outcome)
    for name, target in (("dangling.jpg", "nowhere.jpg"), ("loop_a.jpg", "loop_b.jpg"), ("loop_b.jpg", "loop_a.jpg")):
        (folder / name).symlink_to(target)
        expected[str(folder / name)] = (SKIPPED, "no file")
    (folder / "linked.jpg").symlink_to("plain.jpg")
    expected[str(folder / "linked.jpg")] = (USED, "JPEG")
    (folder / "folder_loop").symlink_to(".")  # links to folders are not followed
    os.mkfifo(folder / "pipe.jpg")  # not an image, and opening it would block forever
    return expected


if __name__ == "__main__":
    write_bad_images(sys.argv[1])
