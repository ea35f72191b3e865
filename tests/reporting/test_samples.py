"""Tests of sample views in the report: the run's own first pairs, or a sentence instead."""

import io
import json

import numpy as np
import pytest
from PIL import Image

from dupr_tf.cli import main
from dupr_tf.data.images.listing import list_images
from dupr_tf.data.images.source import Files
from dupr_tf.reporting.folders import read_folders
from dupr_tf.reporting.samples import sample_views
from tests.reporting.run_folders import CONFIG, Page, write_run


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photos")
    for i in range(6):
        pixels = np.random.default_rng(i).integers(0, 256, (90, 110, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"photo_{i}.png")
    return folder


def run_of(path, photos, count=6, **model):
    run = write_run(path, config={**CONFIG, "data": {**CONFIG["data"], "root": str(photos)},
                                  "model": {**CONFIG["model"], **model}})  # fmt: skip
    digest = Files(list_images(photos)).digest(str(photos))
    (run / "images.json").write_text(json.dumps({"count": count, "sha256": digest}))
    return run


def test_first_pairs_are_drawn_and_described(photos, tmp_path):
    run = run_of(tmp_path / "r", photos)
    assert main(["report", str(run), "--views", "2", "--output", str(tmp_path / "r.html")]) == 0
    page = Page((tmp_path / "r.html").read_text())
    pictures = page.of("img")
    assert len(pictures) == 2 and all("photo_" in a["alt"] and "overlap" in a["alt"] for a in pictures)
    assert all(a["src"].startswith("data:image/jpeg;base64,") for a in pictures)


def test_missing_or_changed_photos_give_a_sentence(photos, tmp_path):
    def drawn(run):
        return sample_views(read_folders([run])[0], 1)

    changed = drawn(run_of(tmp_path / "changed", photos, count=7, patch_weights=[0, 0, 0, 0]))
    assert "now holds 6 images, which are not those of the run" in changed.note and "no patch loss" in changed.note
    size = Image.open(io.BytesIO(changed.pictures[0][0])).size
    assert size[0] > size[1] > 64
    absent = drawn(write_run(tmp_path / "absent"))
    assert absent.pictures == [] and "cannot be read any more" in absent.note and "/photos" in absent.note


def test_photos_that_cannot_be_opened_give_a_sentence(photos, tmp_path, monkeypatch):
    def refuse(*_):
        raise PermissionError(13, "Permission denied", "/mnt/photos")

    monkeypatch.setattr("dupr_tf.training.pool.recorded_pool", refuse)
    drawn = sample_views(read_folders([run_of(tmp_path / "r", photos)])[0], 1)
    assert drawn.pictures == [] and "Permission denied" in drawn.note
