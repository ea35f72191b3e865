"""Tests of the lists of images that commands take, and of parts that a resumed run keeps."""

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from dupr_tf.config import DataConfig
from dupr_tf.data.images import bad_images
from dupr_tf.data.images.decode import Unusable
from dupr_tf.data.parts import ImageParts, list_inputs, source_facts
from dupr_tf.errors import RunFailed
from tests.refusals import refusal


@pytest.fixture
def photos(tmp_path):
    for name in ("a/0", "a/2", "a/4", "b/1", "b/3"):
        (tmp_path / "photos" / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.zeros((4, 4, 3), np.uint8)).save(tmp_path / "photos" / f"{name}.png")
    return tmp_path / "photos"


def test_inputs_are_folders_and_files_below_one_root(photos, tmp_path):
    root, names = list_inputs([photos / "a", photos / "b" / "1.png"])
    assert (root, names) == (str(photos), ["a/0.png", "a/2.png", "a/4.png", "b/1.png"])
    assert list_inputs([photos / "b" / "1.png", photos / "b" / "1.png"]) == (str(photos / "b"), ["1.png"])
    (tmp_path / "empty").mkdir()
    for paths in ([], [tmp_path / "none"], [tmp_path / "empty"], [photos, tmp_path / "none.jpg"]):
        assert refusal(list_inputs, paths).field == "--images"


def test_facts_of_a_source_distinguish_names():
    facts = [source_facts("/r", names) for names in (["a", "b"], ["ab"], ["b", "a"], ["a", "b\udce9"])]
    assert [entry["files"] for entry in facts] == [2, 1, 2, 2] and len({entry["sha256"] for entry in facts}) == 4


def parts_of(folder, names, run_id="run", bad=(), size=2):
    """Returns parts whose results are the names in capitals, and a function that computes them."""
    parts, seen = ImageParts(folder, ".txt", "/r", names, size, run_id, DataConfig()), []

    def stream(paths):
        for index in reversed(range(len(paths))):
            seen.append(paths[index])
            yield index, Unusable("empty") if paths[index][3:] in bad else paths[index][3:].upper()

    def compute(share=0.5, listed=True):
        seen.clear()
        found = parts.compute(
            stream, lambda name, result: f"{name}{result} ".encode(), share, folder / "bad.tsv", Console(quiet=True)
        )
        return (found.listed if listed else found), len(seen)

    return parts, compute


def test_parts_hold_results_in_order_without_bad_images(tmp_path):
    parts, compute = parts_of(tmp_path, ["a", "b", "c", "d", "e"], bad=("b", "e"))
    assert compute() == ([("b", "empty"), ("e", "empty")], 5)
    assert list(parts.read()) == [(["a"], b"aA "), (["c", "d"], b"cC dD "), ([], b"")]
    assert compute() == ([("b", "empty"), ("e", "empty")], 0)


def test_missing_damaged_and_foreign_parts_are_computed_again(tmp_path):
    names = ["a", "b", "c", "d", "e"]
    parts, compute = parts_of(tmp_path, names)
    compute()
    first, second, third = sorted(tmp_path.glob("part-*"))
    first.unlink()
    second.write_bytes(second.read_bytes()[:-1])
    assert compute() == ([], 4) and [content for _, content in parts.read()] == [b"aA bB ", b"cC dD ", b"eE "]
    third.write_bytes(second.read_bytes())  # a part of another number
    assert compute() == ([], 1)
    _, other = parts_of(tmp_path, names, run_id="other")
    assert other() == ([], 5)


def test_bad_images_count_over_a_resume(tmp_path):
    _, compute = parts_of(tmp_path, ["a", "b", "c", "d"], bad=("a", "d"))
    for _ in range(2):  # the second time, the first part is kept
        with pytest.raises(RunFailed):
            compute(0.25)
        assert (tmp_path / "bad.tsv").read_text().splitlines()[1:] == ["a\tempty", "d\tempty"]
        assert len(list(tmp_path.glob("part-*"))) == 1
    assert compute(0.5) == ([("a", "empty"), ("d", "empty")], 2)
    _, none = parts_of(tmp_path / "none", ["a", "d"], bad=("a", "d"))
    with pytest.raises(RunFailed):
        none(1.0)


def test_many_bad_images_are_counted_but_not_held(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(bad_images, "MOST_LISTED", 3)
    names = [f"{number:02}" for number in range(12)]
    _, compute = parts_of(tmp_path, names, bad=names[1:])
    left_out, _ = compute(1.0, listed=False)
    first = [(name, "empty") for name in names[1:4]]
    assert (left_out.count, left_out.listed) == (11, first)
    assert len(caplog.messages) == 4 and caplog.messages[-1].startswith("skipped more than 3 images")
    (tmp_path / "part-000000.txt").unlink()  # the images of the first part are met last, and listed first
    (tmp_path / "part-000004.txt").unlink()
    caplog.clear()
    left_out, _ = compute(1.0, listed=False)
    assert (left_out.count, left_out.listed) == (11, first) and len(caplog.messages) == 1
    (tmp_path / "part-000004.txt").unlink()
    with pytest.raises(RunFailed, match=r"^10 of 12 images"):
        compute(9 / 12)
    lines = (tmp_path / "bad.tsv").read_text().splitlines()
    assert lines == ["name\treason", "01\tempty", "02\tempty", "03\tempty", "\t7 more are not listed"]
