"""Tests the decoder against Pillow's definition for every kind of file, and on damaged bytes."""

import io
import math
import struct
import subprocess
import sys
import zlib

import numpy as np
import pytest
from PIL import Image

from dupr_tf.data.images.decode import MAX_SCANS, Unusable, decode, describe, read_header, upright_size
from dupr_tf.data.images.resize import resize
from dupr_tf.data.pipeline import SURPLUS
from tests.data.bad_images import ORIENTATIONS, SIZE, encoded, files, picture, with_orientation
from tests.data.every_kind import every_kind, with_scans
from tests.refusals import refusal

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:PIL")  # pytest removes the filter that `decode` sets
CASES = {case.name: case for case in every_kind()}
USABLE = {name: case for name, case in CASES.items() if case.pixels is not None}


def photo(height, width):
    """Returns noise at several scales, with the spectrum of a photograph."""
    rng = np.random.default_rng(0)
    layers = [
        np.asarray(Image.fromarray(rng.integers(0, 256, (n, n, 3), np.uint8)).resize((width, height), Image.BICUBIC))
        for n in (4, 16, 64)
    ]
    return Image.fromarray(np.mean(layers, 0).astype(np.uint8))


def kind_of_reason(call, *arguments):
    with pytest.raises(Unusable) as caught:
        call(*arguments)
    text = str(caught.value)
    assert text.isprintable() and ": " in text
    return text.split(":")[0]


@pytest.mark.parametrize("name", CASES)
def test_every_kind_is_decoded_as_pillow_defines_it_or_refused(name, capfd):
    case = CASES[name]
    if case.pixels is None:
        assert kind_of_reason(decode, case.content) == case.reason
    else:
        pixels = decode(case.content)
        assert pixels.dtype == np.uint8
        np.testing.assert_array_equal(pixels, case.pixels)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("name", USABLE)
def test_header_size_equals_decoded_size_at_every_factor(name, tmp_path):
    content, (height, width, _) = USABLE[name].content, USABLE[name].pixels.shape
    header = read_header(content)
    assert (header.height, header.width) == (height, width)
    (tmp_path / "image").write_bytes(content)
    assert upright_size(tmp_path / "image") == (height, width)
    assert describe(content).startswith(header.kind)
    for factor in (1, 2, 4, 8):
        assert decode(content, header=header, factor=factor).shape == (-(-height // factor), -(-width // factor), 3)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("value", range(1, 9))
def test_image_is_decoded_upright(kind, value):
    options = {"WEBP": {"lossless": True}, "JPEG": {"quality": 95, "subsampling": 0}}.get(kind, {})
    for endian in "<>":
        seen = decode(with_orientation(picture(), value, kind, endian, **options)).astype(int)
        difference = np.abs(seen - np.asarray(picture(), int))
        assert difference.mean() < (4 if kind == "JPEG" else 1e-9)


@pytest.mark.parametrize("value", ORIENTATIONS)
def test_rotated_jpeg_equals_its_upright_twin_at_all_factors(value):
    image = photo(240, 320)  # multiples of 8 and of the blocks of a JPEG: nothing is rounded
    upright, turned = (with_orientation(image, v, quality=95, subsampling=0) for v in (1, value))
    for factor in (1, 2, 4, 8):
        one, other = (decode(content, factor=factor).astype(int) for content in (upright, turned))
        difference = np.abs(one - other)  # the two files have their blocks rounded in different places
        assert difference.mean() < 0.7 and difference.max() <= 8


def test_damaged_exif_rotates_nothing():
    content = with_orientation(picture(), 6)
    start = content.index(b"Exif\0\0") + 6
    for at, byte in ((start + 4, 0xFF), (start + 12, 0xFF), (start, 0x00)):  # offset, type, byte order
        assert decode(content[:at] + bytes([byte]) + content[at + 1 :]).shape[:2] == (48, 36)  # as stored
    assert decode(encoded(picture(), "BMP") + content).shape[:2] == (36, 48)


@pytest.mark.parametrize("factor", [2, 4, 8])
def test_view_of_shrunk_jpeg_is_within_a_grey_level_on_average(factor):
    content = encoded(photo(64 * factor * 3, 64 * factor * 4), quality=92)
    small, full = decode(content, factor=factor), decode(content)
    least = math.ceil(SURPLUS * 64)  # decoded pixels of the smallest crop of a view of 64 px
    for y, x, side in ((0, 0, least), (31, 55, least + 17), (5, 7, least + 44)):
        view = resize(small[y : y + side, x : x + side], 64, 64).astype(int)
        y, x, side = y * factor, x * factor, side * factor
        difference = np.abs(view - resize(full[y : y + side, x : x + side], 64, 64))
        assert difference.mean() < 0.85 and np.quantile(difference, 0.99) <= 3 and difference.max() <= 5


def test_given_pixel_limit_holds_above_that_of_pillow():
    for name in ("plain.png", "plain.jpg", "plain.webp", "plain.bmp", "plain.tiff"):
        kind = {"jpg": "JPEG"}.get(name.split(".")[1], name.split(".")[1].upper())
        content = encoded(picture(), kind)
        assert decode(content, 36 * 48).shape == (36, 48, 3)
        for call in (decode, read_header):
            assert kind_of_reason(call, content, 36 * 48 - 1) == "too many pixels"
        assert kind_of_reason(decode, content, 36 * 48 - 1, read_header(content)) == "too many pixels"


def test_pixel_limit_of_pillow_is_neither_used_nor_changed(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    for kind in ("JPEG", "PNG", "BMP"):
        assert decode(encoded(picture(), kind)).shape == (36, 48, 3)
    assert kind_of_reason(decode, encoded(picture(), "WEBP")) == "too many pixels"  # Pillow's plugin uses it
    assert Image.MAX_IMAGE_PIXELS == 10


def test_scans_are_counted_up_to_the_limit():
    assert decode(with_scans(MAX_SCANS)).shape == (36, 48, 3)
    assert kind_of_reason(decode, with_scans(MAX_SCANS + 1)) == "too many scans"


def test_memory_error_is_a_reason_for_refusal(monkeypatch):
    def fail(*_, **__):
        raise MemoryError

    monkeypatch.setattr("dupr_tf.data.images.decode.simplejpeg.decode_jpeg", fail)
    assert kind_of_reason(decode, encoded(picture())) == "too large"


def test_size_of_a_file_that_is_no_image_is_refused(tmp_path):
    for content in (b"", b"text", encoded(picture())[:20]):
        (tmp_path / "a.jpg").write_bytes(content)
        assert refusal(upright_size, tmp_path / "a.jpg").fix
    assert refusal(upright_size, tmp_path / "none.jpg").fix


DAMAGED = [
    *("plain.jpg", "progressive.jpg", "cmyk.jpg", "exif_6.jpg", "grey16.png", "palette.png", "rgba.png", "exif_6.png"),
    *("transparent_palette.png", "exif_6.webp", "animated.gif", "animated.webp", "plain.bmp", "plain.tiff"),
    *("pages.tif", "grey16.tif", "jpeg.tif", "tiff_lzw.tif"),
]


@pytest.mark.parametrize("name", DAMAGED)
def test_flipped_bytes_are_decoded_or_refused(name, capfd):
    """Half of the damage is in the first 100 bytes, which hold the headers."""
    outcomes = {_outcome(damaged) for damaged in _damaged(USABLE[name].content, 100)}
    reasons = {"damaged", "cut short", "no image", "empty", "too many pixels", "too many scans"}
    assert outcomes <= {"decoded", "no defined white", "more than three channels", *reasons}
    assert len(outcomes) >= 2  # at least some damage is noticed
    assert capfd.readouterr() == ("", "")


def _damaged(content, count):
    rng = np.random.default_rng(len(content))
    for i in range(count):
        damaged = bytearray(content)
        for _ in range(rng.integers(1, 6)):
            reach = min(100, len(damaged)) if i % 2 else len(damaged)
            damaged[rng.integers(reach)] = rng.choice([0, 0xFF, rng.integers(256)])
        yield bytes(damaged[: rng.integers(len(damaged))] if i % 5 == 0 else damaged)


def _outcome(content):
    try:
        header = read_header(content, 10**6)
        pixels = decode(content, 10**6, header, 2)
    except Unusable as error:
        assert str(error).isprintable()
        return str(error).split(":")[0]
    assert pixels.dtype == np.uint8 and pixels.shape == (-(-header.height // 2), -(-header.width // 2), 3)
    return "decoded"


SILENCE = """
import sys
from pathlib import Path
from dupr_tf.data.images.bad_images import unusable_reason
print(sum(unusable_reason(path) == "" for path in Path(sys.argv[1]).iterdir()))
"""


def test_nothing_is_printed_about_damaged_files(tmp_path):
    """Runs in a separate process, since pytest has its own filters of warnings."""
    for name in ("plain.tiff", "jpeg.tif", "tiff_lzw.tif", "pages.tif", "exif_6.jpg"):
        for i, content in enumerate(_damaged(USABLE[name].content, 60)):
            (tmp_path / f"{name}_{i}").write_bytes(content)
    command = [sys.executable, "-c", SILENCE, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.stderr == "" and 0 < int(done.stdout) < 300


MEASURE = """
import resource, sys
from dupr_tf.data.images.bad_images import unusable_reason
unusable_reason(sys.argv[1])  # a good image: all is loaded now
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for path in sys.argv[2:]:
    assert unusable_reason(path).startswith("too many"), path
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024, "tensorflow" in sys.modules)
"""


def test_bombs_take_no_memory(tmp_path):
    bombs = {name: case.content for name, case in CASES.items() if case.reason.startswith("too many")}
    assert len(bombs) == 9
    for name, content in {"good.jpg": files()["plain.jpg"][0], **bombs}.items():
        (tmp_path / name).write_bytes(content)
    command = [sys.executable, "-c", MEASURE, str(tmp_path / "good.jpg"), *(str(tmp_path / name) for name in bombs)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    megabytes, tensorflow = done.stdout.split()
    assert done.stderr == "" and int(megabytes) < 50  # the largest decoded is 2,700
    assert tensorflow == "False"


def test_sizes_of_one_pixel():
    for kind in ("JPEG", "PNG", "GIF", "BMP", "WEBP", "TIFF"):
        for factor in (1, 8):
            assert decode(encoded(picture(size=(1, 1)), kind), factor=factor).shape == (1, 1, 3)
    assert SIZE == (48, 36)


def deep(low, high, mode=np.uint16):
    """Returns a grey image of 16 or 32 bits, a ramp from `low` to `high`."""
    return encoded(Image.fromarray(np.linspace(low, high, 48 * 36).reshape(36, 48).astype(mode)), "TIFF")


@pytest.mark.parametrize(("low", "high", "mode"), [(700, 1900, np.uint16), (-5, 2, np.float32), (-9, 90000, np.int32)])
def test_depth_auto_scales_by_minimum_and_maximum(low, high, mode):
    grey = decode(deep(low, high, mode), depth="auto")[..., 0].ravel()
    ramp = np.linspace(low, high, 48 * 36).astype(mode).astype(float)
    np.testing.assert_allclose(grey, (ramp - low) / (high - low) * 255, atol=0.51)
    assert (decode(deep(3, 3, mode), depth="auto") == 0).all()


def test_depth_full_keeps_upper_bits_and_names_gaining_files():
    dark, wide = deep(700, 1900), deep(0, 60000)
    assert np.unique(decode(dark)).tolist() == [2, 3, 4, 5, 6, 7]
    gain = "data.depth auto"
    assert gain in describe(dark) and gain not in describe(wide) and gain not in describe(dark, depth="auto")


def deep_colours(kind, channels, values):
    """Returns a file of 16-bit values (H, W, channels): a PNG, or a TIFF of either byte order, compressed or not."""
    height, width = values.shape[:2]
    if kind == "PNG":
        rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
        start = struct.pack(">IIBBBBB", width, height, 16, {2: 4, 3: 2, 4: 6}[channels], 0, 0, 0)
        parts = [(b"IHDR", start), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
        chunks = [struct.pack(">I", len(d)) + n + d + struct.pack(">I", zlib.crc32(n + d)) for n, d in parts]
        return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)
    order, compressed = ("<", ">")[kind.startswith("MM")], kind.endswith("zip")
    pixels = values.astype(f"{order}u2").tobytes()
    pixels = zlib.compress(pixels) if compressed else pixels
    tags = {256: [width], 257: [height], 258: [16] * channels, 259: [8 if compressed else 1], 262: [2], 277: [channels]}
    return tiff_file(
        {**tags, 278: [height], 279: [len(pixels)], **({338: [2]} if channels == 4 else {})}, pixels, order
    )


@pytest.mark.parametrize(("kind", "channels"), [
    ("PNG", 2), ("PNG", 3), ("PNG", 4), ("II", 3), ("II", 4), ("MM", 3), ("II zip", 3), ("MM zip", 4),
])  # fmt: skip
def test_depth_auto_scales_16_bit_colours_together(kind, channels):
    values = np.random.default_rng(0).integers(700, 1900, (6, 8, channels)).astype(np.uint16)
    content, colours = deep_colours(kind, channels, values), values[..., :1] if channels == 2 else values[..., :3]
    expected = (colours - float(colours.min())) / np.ptp(colours) * 255
    np.testing.assert_allclose(decode(content, depth="auto"), np.broadcast_to(expected, (6, 8, 3)), atol=0.51)
    np.testing.assert_array_equal(decode(content), np.broadcast_to(colours >> 8, (6, 8, 3)))
    assert "data.depth auto" in describe(content) and "own range" in describe(content, depth="auto")


def test_pixels_that_are_not_finite_are_refused():
    with pytest.raises(Unusable, match="no defined white"):
        decode(deep(0, np.inf, np.float32), depth="auto")


def tiff(samples, photometric, extra=None):
    """Returns an uncompressed TIFF of 6 x 4 pixels with `samples` channels of 8 bits, and values of ExtraSamples."""
    pixels = np.arange(24 * samples, dtype=np.uint8).tobytes()
    tags = {256: [6], 257: [4], 258: [8] * samples, 259: [1], 262: [photometric], 277: [samples], 278: [4]}
    return tiff_file(tags | {279: [len(pixels)]} | ({} if extra is None else {338: extra}), pixels)


def tiff_file(tags, pixels, order="<"):
    """Returns a TIFF of {tag: values} in a byte order, with one strip of pixels."""
    end = 8 + 2 + 12 * (len(tags) + 1) + 4
    entries, blocks = [], b""
    for tag, values in sorted({**tags, 273: [0]}.items()):
        value = struct.pack(f"{order}{len(values)}H", *values)
        if len(value) > 4:
            value, blocks = struct.pack(f"{order}I", end + len(blocks)), blocks + value
        entries.append([tag, len(values), value.ljust(4, b"\0")])
    for entry in entries:
        if entry[0] == 273:
            entry[2] = struct.pack(f"{order}I", end + len(blocks))
    rows = [struct.pack(f"{order}HHI", tag, 4 if tag == 273 else 3, count) + value for tag, count, value in entries]
    start = {"<": b"II*\0", ">": b"MM\0*"}[order] + struct.pack(f"{order}IH", 8, len(entries))
    return start + b"".join(rows) + bytes(4) + blocks + pixels


@pytest.mark.parametrize(
    ("samples", "photometric", "extra", "usable"),
    [
        (3, 2, None, True),
        (4, 2, None, True),
        (4, 2, [1], True),
        (4, 2, [2], True),
        (4, 5, None, True),
        (4, 2, [0], False),
        (5, 2, [0, 0], False),
        (6, 2, [0, 0, 0], False),
        (5, 2, [2, 0], False),
        (5, 1, [0] * 4, False),
        (5, 5, [0], False),
    ],
)
def test_more_than_three_channels_are_refused(samples, photometric, extra, usable):
    content = tiff(samples, photometric, extra)
    if usable:
        assert decode(content).shape == (4, 6, 3)
        return
    with pytest.raises(Unusable, match=f"more than three channels.*{samples}"):
        read_header(content)


def test_avif_is_decoded_upright():
    content = encoded(picture(), "AVIF", quality=95)
    assert np.abs(decode(content).astype(int) - np.asarray(picture())).mean() < 4
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = decode(encoded(picture().transpose(Image.Transpose.ROTATE_90), "AVIF", quality=95, exif=exif))
    assert np.abs(turned.astype(int) - np.asarray(picture())).mean() < 4


def test_heic_without_its_extra_names_the_package_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "pillow_heif.as_plugin", None)
    with pytest.raises(Unusable, match=r"pip install 'dupr_tf\[heic\]'"):
        decode(b"\0\0\0\x18ftypheic" + bytes(500))


def test_heic_is_decoded():
    heif = pytest.importorskip("pillow_heif")
    file = io.BytesIO()
    heif.from_pillow(picture()).save(file, quality=95)
    assert read_header(file.getvalue())[:3] == ("HEIC", *picture().size[::-1])
    assert np.abs(decode(file.getvalue()).astype(int) - np.asarray(picture())).mean() < 8
    with pytest.raises(Unusable):
        decode(file.getvalue()[:-200])
