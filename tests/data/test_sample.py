"""Tests of the embedded sample: the same bytes every time, and labels that agree with the painted pixels."""

import hashlib
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pycocotools.coco import COCO

from dupr_tf.data import sample
from tests.refusals import refusal

SIZE = (96, 128)
COUNTS = {"train": 20, "val": 8, "unlabeled": 12}


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    return sample.write_sample(tmp_path_factory.mktemp("sample") / "new" / "folder", **COUNTS, size=SIZE, seed=3)


def digests(root: Path) -> dict[str, str]:
    return {
        path.relative_to(root).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(root.rglob("*"))
        if path.is_file()
    }


def test_sample_has_the_documented_layout(root):
    expected = {"sample.json", "annotations/instances_train.json", "annotations/instances_val.json"}
    expected |= {f"images/train_{i:06d}.jpg" for i in range(20)} | {f"images/val_{i:06d}.jpg" for i in range(8)}
    expected |= {f"unlabeled/{i:06d}.jpg" for i in range(12)}
    assert set(digests(root)) == expected
    for name in expected:
        if name.endswith(".jpg"):
            with Image.open(root / name) as image:
                assert (image.format, image.mode) == ("JPEG", "RGB")
                assert SIZE[0] <= min(image.size) and max(image.size) <= SIZE[1]


def test_same_arguments_give_the_same_bytes(root, tmp_path):
    assert digests(sample.write_sample(tmp_path, **COUNTS, size=SIZE, seed=3)) == digests(root)


def test_bytes_are_the_same_in_another_process(root, tmp_path):
    arguments = {**COUNTS, "size": SIZE, "seed": 3}
    code = f"from dupr_tf.data import sample; sample.write_sample({str(tmp_path)!r}, **{arguments})"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[2])
    assert digests(tmp_path) == digests(root)


def test_scenes_differ_across_splits_and_seeds(root, tmp_path):
    other = sample.write_sample(tmp_path, train=5, val=5, unlabeled=5, size=SIZE, seed=4)
    pictures = [digest for folder in (root, other) for name, digest in digests(folder).items() if name.endswith(".jpg")]
    assert len(set(pictures)) == len(pictures) == 40 + 15


def test_scene_does_not_depend_on_the_number_of_scenes(root, tmp_path):
    fewer = digests(sample.write_sample(tmp_path, train=3, val=2, unlabeled=1, size=SIZE, seed=3))
    kept = {name: digest for name, digest in fewer.items() if name.endswith(".jpg")}
    assert len(kept) == 6 and kept.items() <= digests(root).items()


@pytest.mark.parametrize("split", ["train", "val"])
def test_pycocotools_reads_it_and_boxes_lie_inside(root, split, capsys):
    coco = COCO(str(root / f"annotations/instances_{split}.json"))
    assert [category["name"] for category in coco.loadCats(sorted(coco.getCatIds()))] == list(sample.CLASSES)
    assert len(coco.getImgIds()) == COUNTS[split]
    for image in coco.loadImgs(coco.getImgIds()):
        with Image.open(root / "images" / image["file_name"]) as picture:
            assert picture.size == (image["width"], image["height"])
        found = coco.loadAnns(coco.getAnnIds(imgIds=image["id"]))
        assert 1 <= len(found) <= 5
        for item in found:
            x, y, width, height = item["bbox"]
            assert x >= 0 and y >= 0 and x + width <= image["width"] and y + height <= image["height"]
            assert 0 < item["area"] <= width * height and item["iscrowd"] == 0 and item["id"] > 0


def test_every_class_occurs(root):
    labels = json.loads((root / "annotations/instances_train.json").read_text())
    assert {item["category_id"] for item in labels["annotations"]} == set(range(1, 7))


def layers(index: int):
    """Returns a scene with the backdrop and the pieces that `draw_scene` painted it from."""
    with pytest.MonkeyPatch.context() as patch:
        painted = []
        paint = sample.paint
        patch.setattr(sample, "paint", lambda *parts: painted.extend(parts) or paint(*parts))
        return sample.draw_scene(3, "train", index, SIZE), *painted


def weight(backdrop: np.ndarray, pieces: list, index: int) -> np.ndarray:
    """Returns (h, w): how strongly one piece decides each pixel's colour, from painting it white and black."""
    piece = pieces[index]
    black, white = (
        sample.Piece(piece.shape, piece.top, piece.left, piece.cover, np.full_like(piece.colour, tone))
        for tone in (0, 1)
    )
    before, after = pieces[:index], pieces[index + 1 :]
    difference = sample.paint(backdrop, [*before, white, *after])[0]
    difference -= sample.paint(backdrop, [*before, black, *after])[0]
    return difference[..., 0]


def corners(mask: np.ndarray) -> np.ndarray:
    """Returns (x1, y1, -x2, -y2) around the true pixels: larger means further in, on every side."""
    ys, xs = np.nonzero(mask)
    return np.array([xs.min(), ys.min(), -xs.max() - 1, -ys.max() - 1])


def test_boxes_and_visibility_agree_with_painted_pixels():
    """The owner map is not used: an object's pixels are those whose colour depends on the object's colour."""
    annotated = hidden = 0
    for index in range(120):
        scene, backdrop, pieces = layers(index)
        boxes = {label: [] for label in range(1, 7)}
        for item in scene.objects:
            x, y, width, height = item["bbox"]
            boxes[item["category_id"]].append(np.array([x, y, -x - width, -y - height]))
        matched = 0
        for number, piece in enumerate(pieces):
            decided = weight(backdrop, pieces, number)
            visible = decided.sum() / piece.cover.sum()
            if piece.shape not in sample.CLASSES or visible < sample.MIN_VISIBLE - 0.06:
                hidden += piece.shape in sample.CLASSES
                continue
            inner, outer = corners(decided > 0.5), corners(decided > 0.1)  # edges are antialiased
            of_class = boxes[sample.CLASSES.index(piece.shape) + 1]
            found = [box for box in of_class if (outer <= box).all() and (box <= inner).all()]
            assert found or visible < sample.MIN_VISIBLE + 0.06, (index, number, visible)
            matched += bool(found)
        assert matched == len(scene.objects), index
        annotated += matched
    assert annotated > 300 and hidden > 5  # both outcomes of the rule occurred


def test_image_file_shows_the_labelled_scene(root):
    labels = json.loads((root / "annotations/instances_train.json").read_text())
    for index in range(5):
        scene = sample.draw_scene(3, "train", index, SIZE)
        with Image.open(root / f"images/train_{index:06d}.jpg") as picture:
            difference = np.asarray(picture, float) - scene.image
        assert np.sqrt((difference**2).mean()) < 12
        stored = [item for item in labels["annotations"] if item["image_id"] == index + 1]
        assert [{k: v for k, v in item.items() if k not in ("id", "image_id")} for item in stored] == scene.objects


def test_outlines_have_the_areas_of_their_shapes():
    """Compares the share of the enclosing unit disc that each outline covers with its area worked out by hand."""
    y, x = np.mgrid[-1:1:401j, -1:1:401j]
    middle = type("Middle", (), {"uniform": staticmethod(lambda low, high: (low + high) / 2)})()
    covered = {name: (sample._OUTLINES[name](middle, x, y) < 0).mean() * 4 for name in sample.CLASSES}
    hole, bar = 0.525, 0.26
    expected = {
        "disc": np.pi * 0.95**2,
        "ring": np.pi * (0.95**2 - hole**2),
        "square": 1.4**2,
        "triangle": 3 * np.sqrt(3) / 4,
        "star": 5 * 0.44 * np.sin(np.pi / 5),
        "cross": 2 * (2 * bar * 1.8) - (2 * bar) ** 2,
    }
    assert covered == pytest.approx(expected, rel=0.02)


def test_complete_sample_is_left_unchanged(root, monkeypatch):
    monkeypatch.setattr(sample, "draw_scene", lambda *_: pytest.fail("drew a scene again"))
    before = {path: path.stat().st_mtime_ns for path in root.rglob("*")}
    assert sample.write_sample(root, **COUNTS, size=SIZE, seed=3) == root
    assert {path: path.stat().st_mtime_ns for path in root.rglob("*")} == before


@pytest.mark.parametrize("lost", ["sample.json", "images/val_000001.jpg", "annotations/instances_train.json"])
def test_incomplete_sample_is_redrawn(tmp_path, lost):
    arguments = {"train": 2, "val": 2, "unlabeled": 1, "size": SIZE, "seed": 0}
    whole = digests(sample.write_sample(tmp_path, **arguments))
    (tmp_path / lost).unlink()
    (tmp_path / "unlabeled/000000.jpg").write_bytes(b"half a picture")
    sample.write_sample(tmp_path, **arguments)
    assert digests(tmp_path) == whole


def test_marker_is_written_last(tmp_path, monkeypatch):
    def stopped(seed, split, index, size, draw=sample.draw_scene):
        if split == "unlabeled" and index == 1:
            raise KeyboardInterrupt
        return draw(seed, split, index, size)

    arguments = {"train": 1, "val": 1, "unlabeled": 2, "size": SIZE}
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(sample, "draw_scene", stopped)
        sample.write_sample(tmp_path, **arguments)
    assert not (tmp_path / "sample.json").exists()
    assert len(list((sample.write_sample(tmp_path, **arguments) / "unlabeled").iterdir())) == 2


def test_other_arguments_replace_the_sample(tmp_path):
    sample.write_sample(tmp_path, train=4, val=1, unlabeled=3, size=SIZE)
    sample.write_sample(tmp_path, train=1, val=2, unlabeled=0, size=SIZE)
    names = {name for name in digests(tmp_path) if name.endswith(".jpg")}
    assert names == {"images/train_000000.jpg", "images/val_000000.jpg", "images/val_000001.jpg"}


def test_folder_with_other_files_is_not_touched(tmp_path):
    (tmp_path / "annotations").mkdir()
    (tmp_path / "annotations/instances_train.json").write_text("mine")
    (tmp_path / "images").mkdir()
    (tmp_path / "images/holiday.jpg").write_bytes(b"mine")
    before = digests(tmp_path)
    assert "holiday.jpg" in refusal(sample.write_sample, tmp_path, train=1, val=1, unlabeled=1).problem
    assert digests(tmp_path) == before
    file = tmp_path / "images/holiday.jpg"
    assert f"{file} is a file" in refusal(sample.write_sample, file, train=1, val=1, unlabeled=1).problem


@pytest.mark.parametrize(
    "wrong",
    [
        {"train": -1},
        {"val": 10**6},
        {"size": (40, 100)},
        {"size": (100, 90)},
        {"size": (100, 4000)},
        {"seed": -1},
    ],
)
def test_out_of_range_arguments_are_refused_before_writing(tmp_path, wrong):
    error = refusal(sample.write_sample, tmp_path / "x", **{"train": 1, "val": 1, "unlabeled": 1, **wrong})
    assert [error.field] == list(wrong) and str(*wrong.values()) in error.problem
    assert not (tmp_path / "x").exists()
