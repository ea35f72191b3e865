"""Tests of damaged and hostile run folders: the report shows what is intact and names what is wrong."""

import json
import os

import pytest

from dupr_tf import records
from dupr_tf.config import parse_config
from dupr_tf.data.images.bad_images import write_list
from dupr_tf.reporting import metrics
from dupr_tf.reporting.findings import findings_of, state
from dupr_tf.reporting.folders import labels, read_folders
from dupr_tf.reporting.metrics import read_metrics
from dupr_tf.reporting.page import render
from dupr_tf.training.collapse import patience
from tests.reporting.run_folders import CONFIG, Page, line, write_export, write_run


def read(path):
    (found,) = read_folders([path])
    return found


@pytest.mark.parametrize("text, note", [
    ('{"step": 60, "lo', "was cut short"),
    ("not JSON\n", "1 line of metrics.jsonl could not be read"),
    ("[1, 2]\n\"step\"\n{}\n", "3 lines of metrics.jsonl could not be read"),
    ('{"step": "sixty"}\n', "1 line of"),
    ('{"step": 1e400}\n', "1 line of"),
    ("[" * 100_000 + "\n", "1 line of"),
    ('{"step": 20, "loss": 99}\n', "1 line of metrics.jsonl came after a later step"),
    ('{"step": ' + "9" * 5000 + "}\n", "1 line of"),
    ("\0\0\xff\n", "1 line of"),
])  # fmt: skip
def test_invalid_lines_are_left_out_and_counted(tmp_path, text, note):
    run = read(write_run(tmp_path / "r", [line(20), line(40), text]))
    assert any(note in sentence for sentence in run.notes), run.notes
    assert [row["step"] for row in run.metrics.rows] == [20, 40]
    assert Page(render([run])).unbalanced == []


def test_endless_line_is_not_held_in_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(records, "MOST_LINE", 1000)
    (tmp_path / "m").write_text(json.dumps(line(20)) + "\n" + "x" * 100_000 + "\n" + json.dumps(line(40)) + "\n")
    found = read_metrics(tmp_path / "m")
    assert (found.lines, found.damaged) == (2, 1)


def test_many_lines_are_thinned_evenly_and_keep_the_last(tmp_path, monkeypatch):
    monkeypatch.setattr(metrics, "MOST_ROWS", 100)
    (tmp_path / "m").write_text("".join(json.dumps({"step": s, "loss": 1.0}) + "\n" for s in range(1, 1004)))
    found = read_metrics(tmp_path / "m")
    steps = [row["step"] for row in found.rows]
    assert found.lines == 1003 and found.stride == 16 and len(steps) <= 101
    assert steps == [*range(1, 1003, 16), 1003]


def test_non_finite_numbers_are_gaps_and_are_named(tmp_path):
    lines = [line(20), line(40, loss=None), '{"step": 60, "loss": NaN, "loss/image_P5": 1e999}\n', line(80)]
    run = read(write_run(tmp_path / "r", lines))
    assert run.metrics.points("loss") == [(20, 9.96), (40, None), (60, None), (80, 9.84)]
    (finding,) = findings_of(run)
    assert "loss at step 40, 60" in finding.text and "loss/image_P5 at step 60" in finding.text
    assert "NaN" not in render([run])


def test_divergence_and_later_recovery_are_reported(tmp_path):
    run = write_run(tmp_path / "r", [line(20), line(40)])
    entry = {"step": 41, "loss_terms": {"loss/image_P5": "nan", "loss/patch_P4": 3.0}}
    (run / "diverged.json").write_text(json.dumps(entry))
    (finding,) = findings_of(read(run))
    assert "diverged at step 41 (loss/image_P5 not finite)" in finding.text and finding.grave
    assert state(read(run)) == "stopped: it diverged"
    with (run / "metrics.jsonl").open("a") as file:
        file.write(json.dumps(line(60)) + "\n")
    assert "continued to step 60" in findings_of(read(run))[0].text and state(read(run)) == "at step 60 of 400"


def test_collapse_is_judged_as_in_training(tmp_path):
    first = patience(parse_config(CONFIG))
    late = range(20 * (first // 20 + 1), 401, 20)
    same = [line(s, **({"std/image_P5": 0.001} if s in late else {})) for s in range(20, 401, 20)]
    (finding,) = findings_of(read(write_run(tmp_path / "same", same)))
    assert f"by step {late[4]}" in finding.text and "all keys of image_P5 are the same" in finding.text
    young = [line(s, **{"std/image_P5": 0.001 if s <= first else 0.5}) for s in range(20, 401, 20)]
    assert findings_of(read(write_run(tmp_path / "young", young))) == []


def test_falling_accuracy_is_reported_unless_the_momentum_rises(tmp_path):
    falling = [line(step, **{"accuracy/image_P5": 0.4 if step <= 400 else 0.1}) for step in range(20, 1001, 20)]
    (finding,) = findings_of(read(write_run(tmp_path / "falling", falling)))
    assert "The accuracy of image_P5 fell from 40.0% at step 140 to 10.0% at step 980" in finding.text
    rising = {**CONFIG, "model": {**CONFIG["model"], "momentum_schedule": "cosine"}}
    assert findings_of(read(write_run(tmp_path / "rising", falling, rising))) == []


@pytest.mark.parametrize("name, content", [
    ("images.json", "[]"), ("images.json", '{"count": "many"}'), ("images.json", '{"count": 1e300}'),
    ("images.json", '{"count": -3}'), ("environment.json", "{}"), ("environment.json", "[1, {\"commit\": [1]}]"),
    ("diverged.json", '{"step": null, "loss_terms": 3}'), ("start.json", "{"), ("config.yaml", "model: [1"),
    ("bad_images.tsv", ""), ("bad_images.tsv", "name\treason\nonly a name\n\n\t\t\t\n"),
    ("metrics.json", "{"), ("metrics.json", '{"per_class": 3, "AP": {}}'), ("probe.json", '{"probe": 1}'),
    ("probe.json", '{"probe": "../x", "numbers": {"a": 1, "b": {"c": [], "d": NaN}}}'),
    ("manifest.json", '{"format": "x", "files": {"../../etc": "0", "/etc/passwd": 1}, "checks": [1, {}]}'),
    ("manifest.json", '{"format": {}, "files": {}, "checks": 3, "difference": "<b>", "not_compared": "ab"}'),
])  # fmt: skip
def test_any_damaged_file_still_gives_a_report(tmp_path, name, content):
    run = write_run(tmp_path / "r")
    (run / name).write_text(content)
    page = Page(render([read(run)]))
    assert page.unbalanced == [] and page.row("run")


def test_changed_export_is_named(tmp_path):
    run = write_run(tmp_path / "r")
    (write_export(run / "export") / "backbone.safetensors").write_bytes(b"Weights")
    (finding,) = findings_of(read(run))
    assert "backbone.safetensors" in finding.text and "export again" in finding.text


def test_manifest_cannot_point_outside_its_folder(tmp_path):
    (tmp_path / "secret").write_bytes(b"weights")
    export = write_export(tmp_path / "e")
    manifest = json.loads((export / "manifest.json").read_text())
    digest = manifest["files"]["backbone.safetensors"]
    (export / "manifest.json").write_text(json.dumps({**manifest, "files": {"../secret": digest}}))
    assert read(export).exports[0].wrong == ["../secret"]


def test_links_are_not_followed_and_big_files_not_read(tmp_path):
    run = write_run(tmp_path / "r")
    (run / "loop").symlink_to(run)
    with (run / "environment.json").open("wb") as file:
        os.truncate(file.fileno(), 1 << 30)
    assert any("environment.json" in note and "1,073,741,824 bytes" in note for note in read(run).notes)


def test_images_that_a_list_only_counts_are_in_the_report(tmp_path):
    run = write_run(tmp_path / "r")
    write_list(run / "bad_images.tsv", [("/a.jpg", "empty: 0 bytes"), ("/b.jpg", "empty: 0 bytes")], more=2_000_000)
    bad = read(run).bad
    assert bad.count == 2_000_002 and len(bad.first) == 2
    assert sorted(count for _, count in bad.reasons) == [2, 2_000_000]


def test_labels_are_the_shortest_distinct_path_ends(tmp_path):
    assert labels([tmp_path / "a", tmp_path / "b"]) == ["a", "b"]
    assert labels([tmp_path / "x" / "run", tmp_path / "y" / "run"]) == ["x/run", "y/run"]
    assert labels([tmp_path / "a"] * 2) == ["a", "a (2)"]
