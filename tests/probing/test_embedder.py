"""Tests of features of arrays, files and PIL images, and of `dupr-tf embed` with a report of its picture."""

import numpy as np
import pytest
from PIL import Image

import dupr_tf
from dupr_tf.cli import main
from dupr_tf.models import build_backbone
from dupr_tf.probing.embedder import Embedder
from dupr_tf.probing.image_views import whole_view
from tests.refusals import refusal
from tests.reporting.run_folders import write_run

SIZES = [(50, 90), (64, 64), (31, 7), (80, 40), (64, 65)]


@pytest.fixture(scope="module")
def images():
    rng = np.random.default_rng(0)
    return [rng.integers(0, 255, (*size, 3)).astype(np.uint8) for size in SIZES]


@pytest.fixture(scope="module")
def backbone():
    return build_backbone("resnet18", width=0.125)


@pytest.fixture(scope="module")
def embedder(backbone):
    return Embedder(backbone, image_size=64, batch_size=2)


@pytest.fixture(scope="module")
def weights(backbone, tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "tiny.keras"
    backbone.save(path)
    return path


def test_dense_features_are_those_of_the_squeezed_image_normalised_once(backbone, embedder, images):
    normalising = build_backbone("resnet18", width=0.125, include_normalization=True)
    normalising.set_weights(backbone.get_weights())
    dense = dupr_tf.embed(normalising, images, pooled=False, image_size=64, batch_size=2)
    maps = list(embedder.levels([whole_view(image, 64) for image in images], 64))
    expected = np.stack([one["P5"] for one in maps])
    assert dense.shape == expected.shape == (5, 2, 2, 64) and np.ptp(expected) > 0
    assert [maps[0][level].shape[0] for level in ("P2", "P3", "P4")] == [16, 8, 4]
    np.testing.assert_allclose(dense, expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(embedder.embed(images), dense.mean((1, 2)), rtol=1e-4, atol=1e-5)


def test_features_do_not_depend_on_the_other_images(embedder, images):
    whole = embedder.embed(images)
    assert whole.shape == (5, *embedder.shape) == (5, 64)
    for k, image in enumerate(images):
        np.testing.assert_array_equal(embedder.embed(image), whole[k])
    np.testing.assert_array_equal(embedder.embed(images[::-1]), whole[::-1])


def test_files_arrays_and_pil_images_have_the_same_features(embedder, images, tmp_path):
    Image.fromarray(images[0]).save(tmp_path / "0.png")
    rows = embedder.embed([tmp_path / "0.png", str(tmp_path / "0.png"), Image.fromarray(images[0]), images[0]])
    np.testing.assert_array_equal(rows, np.repeat(rows[:1], 4, 0))
    assert embedder.embed([]).shape == (0, 64)


def test_unusable_arguments_are_refused(backbone, embedder, images, tmp_path):
    (tmp_path / "bad.jpg").write_bytes(b"text")
    for wrong in (tmp_path / "bad.jpg", np.zeros((0, 4, 3), np.uint8), images[0].astype(float)):
        assert refusal(embedder.embed, [images[0], wrong]).field == "images"
    assert refusal(dupr_tf.embed, 5, images).field == "weights"
    assert refusal(dupr_tf.embed, backbone, images, "P7").field is not None
    assert refusal(dupr_tf.embed, backbone, images, image_size=0).field == "image_size"


def test_command_writes_the_same_features_and_report_shows_the_picture(weights, embedder, images, tmp_path):
    (tmp_path / "photos").mkdir()
    for k, image in enumerate(images):
        Image.fromarray(image).save(tmp_path / "photos" / f"{k}.png")
    run = write_run(tmp_path / "run")
    arguments = ["embed", str(weights), "--images", str(tmp_path / "photos"), "--output", str(run / "f.npy")]
    assert main([*arguments, "--image-size", "64", "--batch-size", "2", "--picture"]) == 0
    np.testing.assert_array_equal(np.load(run / "f.npy"), embedder.embed(images))
    assert (run / "f.npy.names.txt").read_text().split() == [f"{k}.png" for k in range(5)]
    assert Image.open(run / "f.npy.features.png").size[0] > 4 * 144  # the photo and four levels
    assert main([*arguments, "--level", "P4"]) == 2
    assert main(["report", str(run), "--views", "0", "--output", str(tmp_path / "page.html")]) == 0
    assert (tmp_path / "page.html").read_text().count("f.npy.features.png") == 1
