"""Tests of images as probes read them: in order, without unreadable ones, and the same by threads or processes."""

import io
import logging
import threading

import numpy as np
import pytest
from PIL import Image

from dupr_tf.config import DataConfig
from dupr_tf.data.images.decode import decode
from dupr_tf.data.views import DRAWS, uniform
from dupr_tf.probing.image_views import centre_view, random_view, read_each, whole_view
from tests.refusals import refusal

SIDE = 16


def encoded(pixels, kind="PNG", **options):
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind, **options)
    return file.getvalue()


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Writes seven grey images, of which the third (text) and the sixth (missing) cannot be read."""
    folder = tmp_path_factory.mktemp("files")
    paths = [folder / f"{n}.png" for n in range(7)]
    for n, path in enumerate(paths):
        path.write_bytes(encoded(np.full((20, 30, 3), 30 * n, np.uint8)))
    paths[2].write_bytes(b"text")
    paths[5].unlink()
    return [str(path) for path in paths]


def read(paths, batch_size):
    return [(index.tolist(), batch) for index, batch in read_each(paths, lambda _, c: whole_view(c, SIDE), batch_size)]


def test_full_batches_skip_unreadable_images_in_order(files, caplog):
    with caplog.at_level(logging.WARNING):
        batches = read(files, 2)
    assert [index for index, _ in batches] == [[0, 1], [3, 4], [6]]
    assert [batch.shape for _, batch in batches] == [(2, SIDE, SIDE, 3)] * 2 + [(1, SIDE, SIDE, 3)]
    assert all((batch == 30 * np.array(index)[:, None, None, None]).all() for index, batch in batches)
    (record,) = caplog.records
    assert record.args[:2] == (2, 7) and files[2] in record.args[2]


def test_dicts_are_batched_by_name(files):
    def make(index, image):
        return {"view": whole_view(image, SIDE), "twice": 2 * index}

    ((index, batch),) = read_each(files, make, 9)
    assert batch["view"].shape == (5, SIDE, SIDE, 3) and (batch["twice"] == 2 * index).all()


def test_probes_use_the_data_settings_of_training(tmp_path):
    path = tmp_path / "deep.png"
    path.write_bytes(encoded(np.linspace(700, 1900, 600).reshape(20, 30).astype(np.uint16)))

    def top(**settings):
        ((_, views),) = read_each([str(path)], lambda _, image: image, 1, DataConfig(**settings))
        return int(views.max())

    assert top() == 1900 >> 8 and top(depth="auto") == 255
    assert refusal(top, max_pixels=599).field == "data"


def test_folder_without_readable_images_is_refused(files):
    assert refusal(read, [files[2], files[5]], 4).field == "data"


def test_error_of_the_caller_is_not_an_unreadable_image(files):
    with pytest.raises(ZeroDivisionError):
        list(read_each(files, lambda index, _: 1 // index, 2))


def test_no_thread_remains_after_a_partial_read(files):
    before = set(threading.enumerate())
    batches = read_each(files * 20, lambda _, c: whole_view(c, SIDE), 1)
    next(batches)
    reading = set(threading.enumerate()) - before
    batches.close()
    for thread in reading:
        thread.join(timeout=20)
    assert reading and not any(thread.is_alive() for thread in reading)


def test_views_are_the_centre_and_the_whole_image():
    ramp = np.zeros((64, 128, 3), np.uint8)
    ramp[..., 0] = np.arange(128) * 2
    centre, whole = centre_view(ramp, 56), whole_view(ramp, 64)
    np.testing.assert_allclose(centre[30, :, 0], 2 * (36 + np.arange(56)), atol=1)  # 56 of 64 px, in the middle of 128
    assert whole[10, 0, 0] < 6 and whole[10, -1, 0] > 248


def test_random_views_follow_their_numbers_and_mirror_half():
    ramp = np.repeat(np.arange(60, dtype=np.uint8)[None, :, None] * 4, 40, 0).repeat(3, 2)
    views = [random_view(ramp, SIDE, uniform(3, epoch, 7, DRAWS), (0.2, 1.0)) for epoch in range(40)]
    again = random_view(ramp, SIDE, uniform(3, 5, 7, DRAWS), (0.2, 1.0))
    np.testing.assert_array_equal(again, views[5])
    assert len({view.tobytes() for view in views}) > 30
    mirrored = sum(int(view[0, 0, 0]) > int(view[0, -1, 0]) for view in views)
    assert 10 <= mirrored <= 30


def test_rotated_and_16_bit_images_are_read_upright():
    pixels = np.zeros((32, 48, 3), np.uint8)
    pixels[:, 24:] = 200
    turned = Image.Exif()
    turned[0x0112] = 3  # upside down: the left half is stored on the right
    upside_down = encoded(pixels[::-1, ::-1], "JPEG", quality=95, exif=turned.tobytes())
    wide = np.zeros((32, 48), np.uint16)
    wide[:, 24:] = 200 << 8
    for content in (upside_down, encoded(wide)):
        view = whole_view(decode(content), SIDE).astype(int)
        assert abs(view[:, :6]).max() <= 4 and abs(view[:, -6:] - 200).max() <= 4
