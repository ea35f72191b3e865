"""Tests the cells of a comparison and the labels of its backbones."""

import pytest

from dupr_tf.comparing.grid import Backbone, Cell, middle_share, parse_backbones
from tests.comparing.cells_by_hand import comparison
from tests.refusals import refusal

TWO = (Backbone("a", ("random",)), Backbone("b", ("/x0", "/x1")))


def test_labels_come_from_paths_or_are_given(tmp_path):
    run = tmp_path / "dupr"
    run.mkdir()
    parsed = parse_backbones([str(run), "random", f"many={run},{tmp_path}", f"file={run}"])
    assert [one.label for one in parsed] == ["dupr", "random", "many", "file"]
    assert [one.weights for one in parsed] == [(str(run),), ("random",), (str(run), str(tmp_path)), (str(run),)]


def test_relative_paths_become_absolute(tmp_path, monkeypatch):
    (tmp_path / "dupr").mkdir()
    monkeypatch.chdir(tmp_path)
    assert parse_backbones(["x=dupr"])[0].weights == (str(tmp_path / "dupr"),)


def test_path_with_an_equals_sign_is_a_path(tmp_path):
    odd = tmp_path / "rate=3"
    odd.mkdir()
    assert parse_backbones([str(odd)])[0].weights == (str(odd),)


def test_names_and_addresses_of_public_weights_stay_as_they_are(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "imagenet").mkdir()
    names = ["imagenet", "torchvision/resnet50", "hf:a/b", "https://example.org/w.npz?dl=1"]
    parsed = parse_backbones(names)
    assert [one.weights for one in parsed] == [(name,) for name in names]
    assert [one.label for one in parsed] == ["imagenet", "torchvision_resnet50", "b", "w.npz"]
    parsed = parse_backbones(["./imagenet", "x=imagenet,hf:a/b", "y=https://example.org/w.npz?dl=1"])
    assert [one.weights for one in parsed] == [(str(tmp_path / "imagenet"),), ("imagenet", "hf:a/b"), (names[3],)]


@pytest.mark.parametrize(
    "texts", [["random", "random"], ["a b=random", "a_b=random"], ["../x=random"], ["=random"], ["a=random,"]]
)
def test_labels_that_cannot_name_a_folder_are_refused(texts):
    with pytest.raises(ValueError) as caught:
        parse_backbones(texts)
    assert caught.value.fields[0] == "--backbones"


def test_equal_labels_are_named():
    with pytest.raises(ValueError, match="x"):
        parse_backbones(["x=random", "X=random"])


def test_each_seed_starts_from_its_own_run_of_a_group():
    assert [TWO[1].weights_of(seed) for seed in (0, 1)] == ["/x0", "/x1"]
    assert [TWO[0].weights_of(seed) for seed in (0, 1)] == ["random"] * 2


def test_first_cells_compare_all_backbones_at_the_middle_share():
    cells = comparison(backbones=TWO, shares=(0.05, 0.2, 1.0), seeds=2).scored_cells()
    assert cells[:2] == [Cell("a", 0.2, 0), Cell("b", 0.2, 0)]
    assert len(cells) == len(set(cells)) == 12 and [cell.seed for cell in cells] == [0] * 6 + [1] * 6


def test_middle_of_an_even_number_of_shares_is_the_smaller_one():
    assert middle_share((1.0, 0.05, 0.5, 0.2)) == 0.2 and middle_share((0.5, 1.0)) == 0.5


def test_one_rate_needs_no_choice():
    assert comparison(backbones=TWO, rates=(0.1,)).rate_cells() == []
    assert len(comparison(backbones=TWO, rates=(0.1, 0.2)).rate_cells()) == 4


def test_every_cell_has_its_own_folder():
    made = comparison(backbones=TWO, shares=(0.05, 0.2, 1.0), rates=(1e-3, 2e-3))
    cells = [*made.scored_cells(), *made.rate_cells()]
    assert len(cells) == 22
    assert len({cell.folder for cell in cells}) == len(cells)


def test_no_weights_is_an_error():
    assert refusal(parse_backbones, ["a="]).field == "--backbones"
