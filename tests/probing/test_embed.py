"""Tests of files of features: their rows, resuming after any stop, bad images and refusals. They load no TensorFlow."""

import json
import math
import os

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from dupr_tf.config import DataConfig
from dupr_tf.data.images import bad_images
from dupr_tf.data.images.decode import Unusable
from dupr_tf.data.parts import list_inputs
from dupr_tf.data.shards.index import read_sealed
from dupr_tf.errors import RunFailed
from dupr_tf.probing import embed as module
from dupr_tf.probing.embed import EmbedRun, EmbedSettings, check_settings, part_size
from dupr_tf.probing.feature_files import FEATURE_FILES, format_of
from tests.refusals import refusal

WEIGHTS = {"file": "backbone.keras", "sha256": "0"}
NEEDS_PYARROW = pytest.mark.skipif(bool(FEATURE_FILES["parquet"].missing), reason="pyarrow is not installed")
FORMATS = ["npy", pytest.param("parquet", marks=NEEDS_PYARROW)]


@pytest.fixture
def photos(tmp_path):
    for k in range(7):
        path = tmp_path / "photos" / ("a", "b")[k % 2] / f"{k}é\n.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((8, 8, 3), 10 * k, np.uint8)).save(path)
    (tmp_path / "photos" / "b" / "1é\n.png").write_bytes(b"")
    return tmp_path / "photos"


@pytest.fixture(autouse=True)
def small_parts(monkeypatch):
    monkeypatch.setattr(module, "PART", 2)


class Grey:
    """Takes the grey value of an image, times 0, 1, …, as its features."""

    def __init__(self, shape=(3,)):
        self.shape, self.seen = shape, 0

    def stream(self, paths):
        for index in reversed(range(len(paths))):
            self.seen += 1
            yield index, self.row(paths[index])

    def row(self, path):
        if not os.path.getsize(path):
            return Unusable("empty: 0 bytes")
        value = np.asarray(Image.open(path))[0, 0, 0]
        return np.arange(math.prod(self.shape), dtype=np.float32).reshape(self.shape) * value

    def view(self, path):
        return np.asarray(Image.open(path))

    def levels(self, views, cells):
        return [{"P5": np.ones((2, 2, 4)) * view.mean()} for view in views]


def start(photos, output, embedder=None, bad=0.5, picture=False, **settings):
    run = EmbedRun(output, *list_inputs([photos]), EmbedSettings(**settings), DataConfig(), Console(quiet=True))
    run.check(WEIGHTS)
    return run.result() if run.finished and not picture else run.run(embedder or Grey(), picture, bad)


def contents(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


NAMES = [rf"{folder}/{k}é\n.png" for folder, numbers in (("a", (0, 2, 4, 6)), ("b", (3, 5))) for k in numbers]


def test_array_has_a_row_for_each_readable_image(photos, tmp_path):
    done = start(photos, tmp_path / "out" / "f.npy")
    assert (done.images, done.shape, done.bad) == (6, (3,), [("b/1é\n.png", "empty: 0 bytes")])
    values = np.load(tmp_path / "out" / "f.npy")
    assert values.dtype == np.float32
    np.testing.assert_array_equal(values, np.outer([0, 20, 40, 60, 30, 50], [0, 1, 2]))
    assert (tmp_path / "out" / "f.npy.names.txt").read_text(encoding="utf-8").split("\n") == [*NAMES, ""]
    assert (tmp_path / "out" / "f.npy.bad_images.tsv").read_text().splitlines()[1:] == [
        r"b/1é\n.png" + "\tempty: 0 bytes"
    ]
    assert sorted(contents(tmp_path / "out")) == ["f.npy", "f.npy.bad_images.tsv", "f.npy.json", "f.npy.names.txt"]


@NEEDS_PYARROW
def test_parquet_has_names_features_and_their_shape(photos, tmp_path):
    import pyarrow.parquet as parquet

    start(photos, tmp_path / "f.parquet", Grey((2, 2, 1)), dense=True)
    table = parquet.read_table(tmp_path / "f.parquet")
    assert table["name"].to_pylist() == NAMES
    np.testing.assert_array_equal(table["feature"].to_pylist(), np.outer([0, 20, 40, 60, 30, 50], range(4)))
    facts = json.loads(table.schema.metadata[b"dupr_tf"])
    assert facts["shape"] == [2, 2, 1] and facts["settings"]["dense"] is True and facts["weights"] == WEIGHTS
    assert facts["source"] == read_sealed(tmp_path / "f.parquet.json")[0]["source"]


@pytest.mark.parametrize("ending", FORMATS)
def test_run_stopped_before_any_file_appears_ends_with_the_same_bytes(photos, tmp_path, monkeypatch, ending):
    whole = Grey()
    start(photos, tmp_path / "whole" / f"f.{ending}", whole, picture=True)
    replace, stops = os.replace, 0
    for stop in range(20):
        left = [stop]

        def stopping(source, target, left=left):
            if left[0] == 0:
                raise KeyboardInterrupt
            left[0] -= 1
            replace(source, target)

        folder = tmp_path / str(stop)
        with monkeypatch.context() as patch:
            patch.setattr(os, "replace", stopping)
            try:
                start(photos, folder / f"f.{ending}", picture=True)
            except KeyboardInterrupt:
                stops += 1
        second = Grey()
        start(photos, folder / f"f.{ending}", second, picture=True)
        assert contents(folder) == contents(tmp_path / "whole"), stop
        assert second.seen == max(0, 7 - 2 * max(0, stop - 1))  # parts follow the record
        if left[0] > 0:
            break
    assert stops == len(contents(tmp_path / "whole")) + 4 + 1  # 4 parts, and the record is written twice


def test_finished_run_computes_nothing_but_a_missing_picture(photos, tmp_path):
    first = start(photos, tmp_path / "f.npy")
    embedder = Grey()
    assert start(photos, tmp_path / "f.npy", embedder) == first
    assert start(photos, tmp_path / "f.npy", embedder, picture=True) == first and embedder.seen == 0
    assert Image.open(tmp_path / "f.npy.features.png").size[0] > 100
    (tmp_path / "f.npy").unlink()
    assert start(photos, tmp_path / "f.npy", embedder) == first and embedder.seen == 7


def test_removed_names_are_written_again(photos, tmp_path):
    start(photos, tmp_path / "out" / "f.npy")
    before = contents(tmp_path / "out")
    (tmp_path / "out" / "f.npy.names.txt").unlink()
    start(photos, tmp_path / "out" / "f.npy")
    assert contents(tmp_path / "out") == before


def test_many_bad_images_are_counted(photos, tmp_path, monkeypatch):
    monkeypatch.setattr(bad_images, "MOST_LISTED", 2)
    for path in list(photos.rglob("*0*.png"))[:2] + list(photos.rglob("*2*.png")):
        path.write_bytes(b"")
    with pytest.raises(RunFailed):
        start(photos, tmp_path / "f.npy", bad=0.4)
    assert not (tmp_path / "f.npy").exists() and (tmp_path / "f.npy.bad_images.tsv").exists()
    for _ in range(2):  # the second call reads the record of the first
        done = start(photos, tmp_path / "f.npy", bad=0.8)
        assert (done.images, done.left_out, len(done.bad)) == (4, 3, 2) and len(np.load(tmp_path / "f.npy")) == 4
    assert (tmp_path / "f.npy.bad_images.tsv").read_text().endswith("\t1 more are not listed\n")


def test_failed_picture_gives_a_warning(photos, tmp_path, caplog):
    class Failing(Grey):
        def levels(self, views, cells):
            raise MemoryError

    assert start(photos, tmp_path / "f.npy", Failing(), picture=True).images == 6
    assert (tmp_path / "f.npy").exists() and [r.levelname for r in caplog.records].count(
        "WARNING"
    ) == 2  # one is skipped


def test_output_of_something_else_is_refused(photos, tmp_path):
    start(photos, tmp_path / "f.npy")
    for settings in ({"level": "P4"}, {"dense": True}, {"image_size": 32}, {"batch_size": 1}):
        assert refusal(start, photos, tmp_path / "f.npy", **settings).field == "--output"
    for name in ("g.npy", "h.npy.names.txt", "i.npy.features.png", "j.npy.json"):
        (tmp_path / name).write_text("{}")
        assert refusal(start, photos, tmp_path / f"{name[0]}.npy").field == "--output"
        assert (tmp_path / name).read_text() == "{}"
    (tmp_path / "k.npy").mkdir()
    assert refusal(start, photos, tmp_path / "k.npy").field == "--output"
    Image.fromarray(np.zeros((9, 9, 3), np.uint8)).save(photos / "new.png")
    assert refusal(start, photos, tmp_path / "f.npy").field == "--output"


@pytest.mark.parametrize(
    ("settings", "field"),
    [({"level": "P6"}, "--level"), ({"image_size": 8}, "--image-size"), ({"batch_size": 0}, "--batch-size")],
)
def test_settings_out_of_range_are_refused(settings, field):
    assert refusal(check_settings, EmbedSettings(**settings)).field == field


@pytest.mark.parametrize("name", ["features", "features.csv", "features.npz"])
def test_other_endings_are_refused(tmp_path, name):
    assert refusal(format_of, tmp_path / name).field == "--output"


def test_parts_have_a_bounded_size(monkeypatch):
    monkeypatch.setattr(module, "PART", 512)
    assert part_size((2048,)) == 512 and part_size((56, 56, 256)) == 20
    assert refusal(part_size, (1024, 1024, 256)).field == "--image-size"


def test_image_left_out_is_embedded_once_it_is_replaced(photos, tmp_path):
    start(photos, tmp_path / "f.npy")
    Image.fromarray(np.full((8, 8, 3), 10, np.uint8)).save(photos / "b" / "1é\n.png")
    assert start(photos, tmp_path / "f.npy").images == 7 and len(np.load(tmp_path / "f.npy")) == 7
