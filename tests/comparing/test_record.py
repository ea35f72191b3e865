"""Tests the record of a comparison: round trip, damage, and what a later call may add."""

import dataclasses
import json

import pytest

from dupr_tf.comparing.grid import Backbone
from dupr_tf.comparing.record import RECORD_FILE, extend, read_comparison, write_comparison
from dupr_tf.config import parse_config
from dupr_tf.errors import UserError
from dupr_tf.training.pool import ValOverlap
from tests.comparing.cells_by_hand import CONFIG, comparison
from tests.refusals import refusal


def test_record_is_read_back_as_written(tmp_path):
    overlaps = {"/runs/dupr": ValOverlap(9, 4, 2, 1, 0), "imagenet/resnet18": ValOverlap(unknown="no record")}
    written = comparison(digests={"/runs/dupr": "c" * 64}, rates=(0.001, 0.002), overlaps=overlaps)
    write_comparison(tmp_path, written)
    assert read_comparison(tmp_path) == written


def test_record_of_an_earlier_version_has_no_overlaps(tmp_path):
    write_comparison(tmp_path, comparison())
    content = json.loads((tmp_path / RECORD_FILE).read_text())
    del content["overlaps"]
    (tmp_path / RECORD_FILE).write_text(json.dumps(content))
    assert read_comparison(tmp_path) == comparison()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("format", 2), ("shares", [0.25]), ("shares", [0.25, 2]), ("shares", "x"), ("steps", [1.5, 1]),
        ("labels", {"train": "a"}), ("reference", "absent"), ("backbones", {"random": "random"}),
        ("overlaps", {"x": {"images": -1}}), ("overlaps", []),
        ("rates", [0]), ("seeds", -1), ("digests", {"x": 3}), ("counts", {"train": 1}),
    ],
)  # fmt: skip
def test_damaged_record_is_an_error(tmp_path, name, value):
    write_comparison(tmp_path, comparison())
    content = json.loads((tmp_path / RECORD_FILE).read_text())
    (tmp_path / RECORD_FILE).write_text(json.dumps({**content, name: value}))
    with pytest.raises(UserError):
        read_comparison(tmp_path)


def test_later_call_adds_backbones_shares_and_seeds():
    added = comparison(
        backbones=(Backbone("moco", ("/runs/moco",)),), shares=(0.5,), steps=(100,), seeds=5, reference="dupr"
    )
    both = extend(comparison(), added)
    assert [one.label for one in both.backbones] == ["random", "dupr", "moco"]
    assert (both.shares, both.steps, both.seeds, both.reference) == ((0.25, 0.5, 1.0), (100,) * 3, 5, "dupr")


def test_later_call_with_less_removes_nothing():
    less = comparison(backbones=(Backbone("dupr", ("/runs/dupr",)),), shares=(1.0,), steps=(100,), seeds=1)
    assert extend(comparison(), less) == comparison()


def test_runs_can_be_added_to_a_group():
    saved = comparison(backbones=(Backbone("a", ("/0", "/1")), Backbone("b", ("random",))), seeds=2, reference="b")
    more = dataclasses.replace(saved, backbones=(Backbone("a", ("/0", "/1", "/2")),), seeds=3)
    assert extend(saved, more).backbone("a").weights == ("/0", "/1", "/2")
    one = dataclasses.replace(saved, backbones=(Backbone("a", ("/0",)), Backbone("b", ("random",))), seeds=1)
    assert extend(one, more).backbone("a").weights == ("/0", "/1", "/2")


def test_comparison_of_an_earlier_version_is_not_continued():
    error = refusal(extend, comparison(contents={}), comparison())
    assert error.field == "--output" and "report" in error.fix
    probe = {"probe": "svm", "level": "P5", "rates": ()}
    assert extend(comparison(contents={}, **probe), comparison(**probe)).contents


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"config": parse_config({**CONFIG, "train": {"batch_size": 4}})}, "train.batch_size"),
        ({"labels": {"train": "c" * 64, "val": "b" * 64}}, "--data"),
        ({"labels": {"train": "a" * 64, "val": "c" * 64}}, "--data"),
        ({"contents": {"train": "e" * 64, "val": "a" * 64}}, "--data"),
        ({"steps": (100, 200)}, "--steps"),
        ({"rates": (0.001, 0.002)}, "--learning-rates"),
        ({"rate_share": 1.0}, "--rate-share"),
        ({"backbones": (Backbone("dupr", ("/runs/other",)),)}, "--backbones"),
        ({"backbones": (Backbone("random", ("/runs/other",)),)}, "--backbones"),
        (
            {"backbones": (Backbone("dupr", ("/runs/dupr", "/runs/b", "/runs/c")),)},
            "--backbones",
        ),  # all seeds had the first
    ],
)
def test_call_that_makes_cells_incomparable_is_refused(changes, field):
    with pytest.raises(UserError) as caught:
        extend(comparison(), comparison(**changes))
    assert caught.value.fields == (field,)
