"""JPEGs decoded only where and as large as two views need them, against Pillow decoding all of it."""

import io

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from dupr_tf.config import ViewsConfig
from dupr_tf.data.decoding import read_image, read_pair
from dupr_tf.data.views import draw_pair

VIEWS = ViewsConfig(min_overlap=8)
SEEDS = [tf.constant([3, i], tf.int64) for i in range(6)]


def photo(height, width, mode="RGB"):
    """Noise at several scales, the spectrum of a photograph."""
    rng = np.random.default_rng(0)
    layers = [
        np.asarray(Image.fromarray(rng.integers(0, 256, (n, n, 3), np.uint8)).resize((width, height), Image.BICUBIC))
        for n in (4, 16, 64)
    ]
    return Image.fromarray(np.mean(layers, 0).astype(np.uint8)).convert(mode)


def encoded(image, kind="JPEG", **options):
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def pillows_views(content, size, seed):
    """The same draws through Pillow: decode all, crop, resize, mirror."""
    image = Image.open(io.BytesIO(content)).convert("RGB")
    crops, flipped = (x.numpy() for x in draw_pair(image.height, image.width, seed, size, VIEWS))
    side = (crops[:, 2:] - crops[:, :2]).min()
    factor = max(f for f in (1, 2, 4, 8) if f == 1 or side >= 2 * size * f)
    crops = np.rint(crops / factor).astype(int) * factor  # a crop moves to whole pixels of what is decoded
    for (y1, x1, y2, x2), mirror in zip(crops, flipped, strict=True):
        view = image.crop((x1, y1, x2, y2)).resize((size, size), Image.Resampling.BILINEAR)
        yield np.asarray(view, int)[:, ::-1] if mirror else np.asarray(view, int)


@pytest.mark.parametrize("options", [{"quality": 90}, {"quality": 75, "progressive": True}])
def test_a_window_holds_pillows_pixels(options):
    content = encoded(photo(181, 263), **options)
    for seed in SEEDS:
        pair = read_pair(tf.constant(content), seed, 64, VIEWS)
        for name, expected in zip(("view_1", "view_2"), pillows_views(content, 64, seed), strict=True):
            assert np.abs(pair[name].numpy().astype(int) - expected).max() <= 1


@pytest.mark.parametrize("side", [500, 1100, 2100])  # decoded at 1/1 to 1/2, 1/2 to 1/4, 1/4 to 1/8
def test_a_large_jpeg_is_decoded_small_and_gives_pillows_views_within_two_grey_levels(side):
    content = encoded(photo(side, side + side // 3), quality=92)
    for seed in SEEDS[:3]:
        pair = read_pair(tf.constant(content), seed, 64, VIEWS)
        for name, expected in zip(("view_1", "view_2"), pillows_views(content, 64, seed), strict=True):
            difference = np.abs(pair[name].numpy().astype(int) - expected)
            assert difference.mean() < 0.6 and np.quantile(difference, 0.99) <= 2 and difference.max() <= 4


@pytest.mark.parametrize("side", [150, 700, 1500])
def test_cells_of_both_views_show_the_same_place_however_the_jpeg_was_decoded(side):
    from dupr_tf.ops import roi_align

    rows, columns = np.mgrid[0:side, 0:side] * 255.0 / side
    content = encoded(Image.fromarray(np.stack([rows, columns, rows * 0], -1).astype(np.uint8)), quality=95)
    for seed in SEEDS:
        pair = read_pair(tf.constant(content), seed, 64, VIEWS)
        if not pair["valid"]:
            continue
        cells = [
            roi_align(
                tf.cast(pair[f"view_{v}"][None, ..., :2], tf.float32), pair[f"boxes_{v}"][None], 3, 1.0, 2,
                pair[f"flipped_{v}"][None],
            ).numpy()
            for v in (1, 2)
        ]  # fmt: skip
        assert np.abs(cells[0] - cells[1]).max() < 0.015 * 255


@pytest.mark.parametrize("kind", ["PNG", "BMP", "GIF"])
def test_other_kinds_are_decoded_whole(kind):
    content = encoded(photo(90, 120, "P" if kind == "GIF" else "RGB"), kind)
    pair = read_pair(tf.constant(content), SEEDS[0], 32, VIEWS)
    for name, expected in zip(("view_1", "view_2"), pillows_views(content, 32, SEEDS[0]), strict=True):
        assert np.abs(pair[name].numpy().astype(int) - expected).max() <= 1


@pytest.mark.parametrize("mode", ["L", "CMYK"])
def test_grey_and_cmyk_jpegs_become_rgb(mode):
    content = encoded(photo(90, 120, mode))
    views = [read_pair(tf.constant(content), SEEDS[0], 32, VIEWS)[name].numpy() for name in ("view_1", "view_2")]
    whole = read_image(content).numpy()
    for view in views:
        assert view.shape == (32, 32, 3)
        assert np.abs(view.mean((0, 1)) - whole.mean((0, 1))).max() < 40  # the same picture, not its negative


@pytest.mark.parametrize(
    "content", [b"", b"no image", encoded(photo(90, 120))[:200], encoded(photo(90, 120), "PNG")[:300]]
)
def test_what_cannot_be_decoded_raises_inside_tensorflow(content):
    with pytest.raises(tf.errors.InvalidArgumentError):
        read_pair(tf.constant(content), SEEDS[0], 32, VIEWS)
