"""Tests that a report shows comparisons, whole, unfinished and damaged."""

import pytest

from dupr_tf.comparing.grid import Cell
from dupr_tf.comparing.outputs import write_outputs
from dupr_tf.comparing.record import RECORD_FILE, write_comparison
from dupr_tf.comparing.results import choose_rates, read_result
from dupr_tf.reporting.folders import COMPARISON, read_folders
from dupr_tf.reporting.page import render
from tests.comparing.cells_by_hand import comparison, finish


@pytest.fixture
def folder(tmp_path):
    made = comparison(seeds=1)
    write_comparison(tmp_path, made)
    for backbone, score in (("random", 0.111), ("dupr", 0.222)):
        for share in made.shares:
            finish(tmp_path, Cell(backbone, share, 0), score + share / 10)
    write_outputs(tmp_path, made, read_result(tmp_path, made), choose_rates(tmp_path, made))
    return tmp_path


def test_page_has_table_plot_and_sentences(folder):
    (run,) = read_folders([folder])
    assert run.kind == COMPARISON and run.notes == []
    page = render([run])
    for text in ("0.1360", "0.2470", "reference", "one seed, which cannot decide", "data:image/png;base64"):
        assert text in page
    assert "No detector was evaluated" not in page


def test_unfinished_comparison_says_so(folder):
    next(folder.glob("cells/*/*/dupr/metrics.json")).unlink()
    (run,) = read_folders([folder])
    assert run.notes == ["3 of 4 cells are finished."]


@pytest.mark.parametrize("name", [RECORD_FILE, "cells/share_1/seed_0/dupr/metrics.json"])
def test_damaged_comparison_is_a_note(folder, name):
    (folder / name).write_text("{")
    (run,) = read_folders([folder])
    assert run.compared is None and len(run.notes) == 1
    assert run.notes[0] in render([run]).replace("&#39;", "'")
