"""Tests the table of a comparison on cells with known scores."""

import json
import math

import numpy as np
import pytest
from matplotlib.figure import Figure

from dupr_tf.comparing.grid import Cell
from dupr_tf.comparing.outputs import draw, page, table, write_outputs
from dupr_tf.comparing.results import choose_rates, labels_text, read_result, sentences
from dupr_tf.comparing.statistics import LabelsNeeded, estimate
from dupr_tf.errors import UserError
from tests.comparing.cells_by_hand import comparison, finish

# {backbone: {share: score of each seed}}. DUPR at 100 images has what the reference has at 200: half the labels.
SCORES = {
    "random": {0.25: [0.10, 0.11, 0.12], 1.0: [0.30, 0.31, 0.32]},
    "dupr": {0.25: [0.20, 0.21, 0.22], 1.0: [0.31, 0.312, 0.314]},
}


@pytest.fixture
def folder(tmp_path):
    for backbone, of_share in SCORES.items():
        for share, scores in of_share.items():
            for seed, score in enumerate(scores):
                finish(tmp_path, Cell(backbone, share, seed), score, AP50=2 * score)
    return tmp_path


def matches(value, expected):
    return (value.mean, value.half, value.runs) == pytest.approx((expected.mean, expected.half, expected.runs))


def rows(result):
    return {(row.backbone, row.share): row for row in result.rows}


def test_table_has_means_intervals_and_paired_differences(folder):
    result = read_result(folder, comparison())
    assert (result.metric, result.finished, result.cells) == ("AP", 12, 12)
    row = rows(result)["dupr", 1.0]
    assert row.score == estimate(SCORES["dupr"][1.0]) and row.ap50 == pytest.approx(2 * np.mean(SCORES["dupr"][1.0]))
    assert matches(row.difference, estimate([0.01, 0.002, -0.006]))
    assert rows(result)["random", 1.0].difference is None


def test_pairs_by_seed_decide_what_means_alone_do_not(folder):
    row = rows(read_result(folder, comparison()))["dupr", 0.25]
    assert row.difference.mean == pytest.approx(0.1) and row.difference.half == pytest.approx(0, abs=1e-12)


def test_labels_saved_are_those_of_the_reference_curve(folder):
    needed = rows(read_result(folder, comparison()))["dupr", 0.25].labels_needed
    assert needed.count == pytest.approx(200)


def test_only_seeds_that_both_have_are_compared(tmp_path):
    for backbone, scores in (("random", [0.1, 0.2]), ("dupr", [0.15, 0.3, 0.9])):
        for seed, score in enumerate(scores):
            finish(tmp_path, Cell(backbone, 1.0, seed), score)
    row = rows(read_result(tmp_path, comparison()))["dupr", 1.0]
    assert matches(row.difference, estimate([0.05, 0.1])) and row.score.runs == 3
    assert row.labels_needed is None  # the reference has no complete curve


@pytest.mark.parametrize(("shares", "places"), [((1.0,), [[400], [408]]), ((0.25, 1.0), [[100, 400], [100, 400]])])
def test_plot_of_one_share_draws_backbones_beside_each_other(folder, monkeypatch, shares, places):
    figures = []

    class Kept(Figure):
        def __init__(self, *args, **keywords):
            super().__init__(*args, **keywords)
            figures.append(self)

    monkeypatch.setattr("matplotlib.figure.Figure", Kept)
    made = comparison(shares=shares, steps=(100,) * len(shares), rate_share=1.0)
    assert draw(made, read_result(folder, made)).startswith(b"\x89PNG")
    lines = {line.get_label(): line.get_xdata() for line in figures[0].axes[0].get_lines()}
    assert [list(lines[label]) for label in SCORES] == places


def test_table_of_no_finished_cell_is_empty(tmp_path):
    result = read_result(tmp_path, comparison())
    assert (result.metric, result.rows, result.finished) == (None, [], 0)
    assert draw(comparison(), result) is None and "0 of 12" in page(
        comparison(), result, choose_rates(tmp_path, comparison())
    )


def test_scores_of_masks_and_of_segments_are_used(tmp_path):
    finish(tmp_path, Cell("random", 1.0, 0), 0.9, masks={"AP": 0.3, "AP50": 0.5})
    assert read_result(tmp_path, comparison()).rows[0].score.mean == 0.3
    finish(tmp_path / "fcn", Cell("random", 1.0, 0), 0.4, name="mIoU", pixel_accuracy=0.8)
    result = read_result(tmp_path / "fcn", comparison())
    assert (result.metric, result.rows[0].score.mean, result.rows[0].ap50) == ("mIoU", 0.4, None)


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"AP": "high"}', '{"AP": null}'])
def test_damaged_metrics_are_named(tmp_path, content):
    place = tmp_path / Cell("random", 1.0, 0).folder
    place.mkdir(parents=True)
    (place / "metrics.json").write_text(content)
    with pytest.raises(UserError, match=r"metrics\.json"):
        read_result(tmp_path, comparison())


def test_rate_with_the_best_score_on_held_out_images_is_chosen(tmp_path):
    tried = comparison(rates=(0.001, 0.002, 0.004))
    scores = {"random": [0.1, 0.3, 0.2], "dupr": [0.2, 0.2, 0.1]}
    for backbone, values in scores.items():
        assert choose_rates(tmp_path, tried)[backbone].chosen is None
        for rate, score in zip(tried.rates, values, strict=True):
            finish(tmp_path, Cell(backbone, 0.25, 0, rate), score)
    chosen = choose_rates(tmp_path, tried)
    assert (chosen["random"].chosen, chosen["dupr"].chosen) == (0.002, 0.001)  # the smaller of equals
    assert chosen["random"].scores == {0.001: 0.1, 0.002: 0.3, 0.004: 0.2}


def test_one_rate_is_the_rate_of_all(tmp_path):
    assert {one.chosen for one in choose_rates(tmp_path, comparison()).values()} == {0.001}


def test_sentences_say_what_is_decided_and_what_is_not(folder):
    first, second, note = sentences(read_result(folder, comparison()), comparison())
    assert "better" in first and "200" in first
    assert "undecided" in second and "more" in second
    assert note.startswith("dupr: one pre-training")


def test_single_seed_decides_nothing(tmp_path):
    for backbone, score in (("random", 0.1), ("dupr", 0.5)):
        finish(tmp_path, Cell(backbone, 1.0, 0), score)
    sentence = sentences(read_result(tmp_path, comparison()), comparison())[0]
    assert "cannot decide" in sentence and "--seeds" in sentence


def test_group_of_runs_needs_no_note(tmp_path):
    from dupr_tf.comparing.grid import Backbone

    grouped = comparison(backbones=(Backbone("random", ("random",)), Backbone("dupr", ("/0", "/1", "/2"))))
    finish(tmp_path, Cell("random", 1.0, 0), 0.1)
    assert sentences(read_result(tmp_path, grouped), grouped) == []


def test_files_hold_the_table(folder):
    made = comparison(rates=(0.001, 0.002))
    result, rates = read_result(folder, made), choose_rates(folder, made)
    write_outputs(folder, made, result, rates)
    content = json.loads((folder / "compare.json").read_text())
    row = next(row for row in content["rows"] if (row["backbone"], row["share"]) == ("dupr", 0.25))
    assert row["scores"] == {"0": 0.2, "1": 0.21, "2": 0.22} and row["labels_needed"]["count"] == pytest.approx(200)
    text = (folder / "compare.md").read_text()
    for cells in table(result, made, rates):
        assert "| " + " | ".join(cells) + " |" in text
    assert (folder / "compare.png").read_bytes().startswith(b"\x89PNG")


def test_scores_near_zero_are_pointed_out(tmp_path):
    for backbone, score in (("random", 0.001), ("dupr", 0.002)):
        finish(tmp_path, Cell(backbone, 1.0, 0), score)
    assert any("next to nothing" in text for text in sentences(read_result(tmp_path, comparison()), comparison()))
    finish(tmp_path, Cell("dupr", 1.0, 1), 0.05)
    assert not any("next to nothing" in text for text in sentences(read_result(tmp_path, comparison()), comparison()))


def test_interval_that_is_out_of_range_as_a_whole_is_not_repeated():
    texts = [labels_text(LabelsNeeded(*values)) for values in ((math.inf,) * 3, (5.0, 4.0, math.inf), (5.0, 5.0, 5.0))]
    assert texts == ["more than compared", "5 (at least 4)", "5 (5 to 5)"]
    assert labels_text(LabelsNeeded(5.0, -math.inf, 6.0)) == "5 (at most 6)"
    assert "covers all" in labels_text(LabelsNeeded(5.0, -math.inf, math.inf))


def test_labels_out_of_range_are_words_in_json(tmp_path):
    for backbone, scores in (("random", [0.1, 0.2]), ("dupr", [0.05, 0.9])):
        for share, score in zip((0.25, 1.0), scores, strict=True):
            finish(tmp_path, Cell(backbone, share, 0), score)
    made = comparison()
    result = read_result(tmp_path, made)
    assert [row.labels_needed.count for row in result.rows if row.labels_needed] == [-math.inf, math.inf]
    write_outputs(tmp_path, made, result, choose_rates(tmp_path, made))
    content = json.loads((tmp_path / "compare.json").read_text(), parse_constant=lambda name: pytest.fail(name))
    assert [row["labels_needed"]["count"] for row in content["rows"] if row["labels_needed"]] == ["below", "above"]
