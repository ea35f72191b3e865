"""Tests of a report's verdict: groups of seeds, their spread, and when a difference counts as clear."""

import itertools
import json

import numpy as np
import pytest

from dupr_tf.config import dump_config, parse_config
from dupr_tf.reporting.folders import read_folders
from dupr_tf.reporting.page import render
from dupr_tf.reporting.verdict import CLEAR, MOST_SPLITS, chance_of, group_table, groups_of, verdicts
from tests.refusals import refusal
from tests.reporting.run_folders import CONFIG, Page, write_detector, write_probe, write_run


def detector(path, score, seed, weights="random", metric="AP", **sections):
    """Writes an evaluated detector of one seed."""
    write_detector(path)
    config = {"detector": {}, "optimizer": {"learning_rate": 0.01}, "train": {"seed": seed}, **sections}
    (path / "config.yaml").write_text(dump_config(parse_config(config)))
    (path / "metrics.json").write_text(json.dumps({metric: score, "weights": str(weights)}))
    return path


@pytest.fixture
def folders(tmp_path):
    """Writes four detectors from two pre-training runs that differ in their seed, and four from random weights."""
    starts = [
        write_run(tmp_path / f"pre{seed}", config={**CONFIG, "train": {**CONFIG["train"], "seed": seed}})
        for seed in (0, 1)
    ]
    good = [detector(tmp_path / f"good{k}", 0.12 + k / 100, k, starts[k % 2] / "backbone.keras") for k in range(4)]
    poor = [detector(tmp_path / f"poor{k}", 0.08 + k / 100, k) for k in range(4)]
    return [*starts, *good, *poor]


def test_seeds_of_both_stages_form_groups(folders):
    groups = groups_of(read_folders(folders))
    assert [sorted(group.scores) for group in groups] == [
        pytest.approx([0.12, 0.13, 0.14, 0.15]),
        pytest.approx([0.08, 0.09, 0.1, 0.11]),
    ]
    table = group_table(groups)
    assert [row[:4] for row in table.rows] == [
        ["1", "good0, good1, good2, good3", "AP", "0.1350 ± 0.0129"],
        ["2", "poor0, poor1, poor2, poor3", "AP", "0.0950 ± 0.0129"],
    ]
    assert table.head[7] == "start: weights"


def test_verdict_needs_four_seeds_and_a_clear_lead(folders, tmp_path):
    (clear,) = verdicts(groups_of(read_folders(folders)))
    assert "is better" in clear and "2.9%" in clear  # 2 of 70 splits differ by as much
    near = [detector(tmp_path / f"near{k}", 0.085 + k / 100, k, detector={"head_convs": 2}) for k in range(4)]
    (close,) = verdicts(groups_of(read_folders([*folders[6:], *near])))
    (few,) = verdicts(groups_of(read_folders([*folders[:5], *folders[6:9]])))
    assert "3 and 3 seeds cannot tell: a verdict needs about four of each" in few
    assert "do not differ clearly" in close and "detector.head_convs" in close


def test_metrics_are_not_compared_with_each_other(tmp_path):
    runs = read_folders([detector(tmp_path / "a", 0.4, 0), detector(tmp_path / "b", 0.6, 0, metric="mIoU")])
    assert [group.metric for group in groups_of(runs)] == ["mIoU", "AP"]
    assert all("no other group" in sentence for sentence in verdicts(groups_of(runs)))


def test_chance_counts_splits_that_differ_by_as_much():
    assert chance_of([3, 4], [1, 2]) == pytest.approx(2 / 6)
    assert chance_of([5], [1, 2]) == pytest.approx(1 / 3)
    assert chance_of([1, 1], [1, 1]) == 1


def test_page_shows_the_verdict_before_its_summary(folders):
    words = Page(render(read_folders(folders))).words
    assert words.index("The first is better") < words.index("mean loss, last fifth")


def test_probe_is_assigned_to_a_run_by_its_weights(folders, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, weights in (("mine", folders[0]), ("other", tmp_path / "absent")):
        probe = write_probe(tmp_path / "runs" / "probes" / name)
        content = json.loads((probe / "probe.json").read_text())
        (probe / "probe.json").write_text(json.dumps({**content, "weights": {"run": str(weights)}}))
    runs = read_folders(folders[:2])
    assert [[probe.path.name for probe in run.probes] for run in runs] == [["mine"], []]


def test_folder_of_runs_is_refused_with_the_names_of_runs(folders, tmp_path):
    write_probe(folders[0] / "probes")
    error = refusal(read_folders, [tmp_path])
    assert str(folders[2]) in error.fix


@pytest.mark.parametrize("name, content", [
    ("metrics.json", '{"accuracy": 1}'), ("metrics.jsonl", '{"epoch": 1}\n'), ("config.yaml", "optimizer: sgd\n"),
])  # fmt: skip
def test_files_of_another_program_are_not_a_run(tmp_path, name, content):
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign" / name).write_text(content)
    assert refusal(read_folders, [tmp_path / "foreign"]).field is None


@pytest.mark.parametrize("lead", [0.6, 1.2])
def test_chance_of_many_splits_is_that_of_all(lead):
    scores = np.random.default_rng(1).normal(size=18)
    high, low = scores[:9] + lead, scores[9:]
    both = np.concatenate([high, low])
    parts = np.array([*itertools.combinations(both, 9)])  # 48,620, more than are drawn
    leads = parts.mean(1) - (both.sum() - parts.sum(1)) / 9
    exact = np.mean(np.abs(leads) >= high.mean() - low.mean() - 1e-12)
    assert chance_of(list(high), list(low)) == pytest.approx(exact, abs=4 * np.sqrt(exact / MOST_SPLITS))


def test_equal_groups_are_rarely_called_better():
    random = np.random.default_rng(0)
    scores = random.normal(size=(400, 8))
    best = [sorted((row[:4], row[4:]), key=np.mean, reverse=True) for row in scores]
    assert np.mean([chance_of(list(high), list(low)) <= CLEAR for high, low in best]) <= 0.05
