"""Tests of the report: self-contained, escaped, machine-readable, and with the numbers of the files."""

import json
import math
import re

import pytest

from dupr_tf.cli import main
from dupr_tf.reporting.folders import read_folders
from dupr_tf.reporting.page import render
from dupr_tf.reporting.samples import Samples
from tests.reporting.run_folders import (
    CONFIG,
    PNG,
    Page,
    line,
    write_detector,
    write_export,
    write_probe,
    write_run,
)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("runs")
    write_run(root / "dupr")
    write_export(root / "dupr" / "exports" / "torch")
    write_probe(root / "dupr" / "probes" / "matching")
    other = {**CONFIG, "model": {**CONFIG["model"], "patch_weights": [0, 0, 0, 0]}}
    write_run(root / "moco", [line(s, valid_share=0.5) for s in range(20, 201, 20)], other)
    (root / "moco" / "bad_images.tsv").write_text("name\treason\n/a.jpg\tempty: 0 bytes\n/b.jpg\tcut short: JPEG\n")
    write_probe(root / "moco" / "probes", "other", 0.2345)
    write_detector(root / "detector")
    return [root / name for name in ("dupr", "moco", "detector")]


@pytest.fixture(scope="module")
def html(folders):
    views = Samples("dupr", [(PNG, "Two views of a.jpg")])
    return render(read_folders(folders), [views], "today")


@pytest.fixture(scope="module")
def page(html):
    return Page(html)


def test_page_fetches_nothing_and_runs_nothing(html, page):
    assert not re.search(r"https?:", html) and "url(" not in html and "@import" not in html
    assert not {"script", "link", "iframe", "object", "embed", "base", "form"} & {tag for tag, _ in page.tags}
    for tag, attributes in page.tags:
        assert not [name for name in attributes if name.startswith("on")], tag
        for name in ("src", "href", "xlink:href", "srcset", "poster", "data", "action"):
            assert attributes.get(name, "#").startswith(("#", "data:image/")), (tag, attributes)
    policy = next(m["content"] for m in page.of("meta") if m.get("http-equiv") == "Content-Security-Policy")
    assert policy.startswith("default-src 'none'") and "script-src" not in policy


def test_tags_are_balanced_ids_unique_and_links_valid(page):
    assert page.open == [] and page.unbalanced == []
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    targets = [a["href"].removeprefix("#") for a in page.of("a")]
    targets += [i for _, a in page.tags for i in a.get("aria-labelledby", "").split()]
    assert len(targets) > 20 and set(targets) <= set(ids)


def test_pictures_and_charts_have_descriptions(page):
    assert len(page.of("img")) == 6 and all(len(a["alt"]) > 10 for a in page.of("img"))
    charts = [a for a in page.of("svg") if a.get("role") == "img"]
    assert len(charts) >= 12 and all(a["aria-labelledby"] for a in charts)
    assert all(a.get("aria-hidden") == "true" for a in page.of("svg") if a.get("role") != "img")
    assert "loss, image P5 against the step: dupr from 4.98 at step 20 to 4.6 at step 400" in page.words


def test_wide_tables_can_be_scrolled_with_the_keyboard(page):
    regions = [a for a in page.of("div") if a.get("class") == "scroll"]
    assert len(regions) == len(page.of("table")) and all(a["tabindex"] == "0" and a["aria-label"] for a in regions)


def test_terms_are_means_of_the_last_fifth(page):
    steps = range(340, 401, 20)  # of 400 steps, those after 320
    loss = sum(5.0 - s / 1000 for s in steps) / 4
    accuracy = sum(0.2 + s / 1000 for s in steps) / 4
    assert page.row("image P5")[1:3] == [f"{loss:.4g}", f"{accuracy:.4g}"]
    assert page.row("term")[1] == f"dupr, loss (guessing {math.log(257):.2f})"


def test_summary_has_speed_overlap_and_skipped_images(page):
    assert page.row("dupr")[1:] == ["pre-training", "finished", f"{10 - 2 * 0.37:.4g}", "32.0", "97.0%", "0"]
    assert page.row("moco")[2:] == ["at step 200 of 400", f"{10 - 2 * 0.19:.4g}", "32.0", "50.0%", "2"]
    assert page.row("detector")[1:4] == ["fine-tuning", "finished and evaluated", "1.7"]


def test_only_fields_that_differ_are_compared(page):
    assert page.row("model.patch_weights")[1:3] == ["[0.0, 0.0, 1.0, 1.0]", "[0.0, 0.0, 0.0, 0.0]"]
    assert not [row for row in page.rows if row[:1] in (["model.head"], ["detector.kind"])]


def test_probes_exports_and_detectors_have_file_numbers(page):
    probed = {
        row[0]: row for row in page.rows if row[1:4] in (["0.4321", "0.1234", "1.5"], ["0.2345", "0.1234", "1.5"])
    }
    assert len(probed) == 2  # a single table, since both have the same settings
    assert page.row("torchvision 0.29.1")[1:] == ["P2", "4.0e-06", "2.0e-06"]
    assert "All 1 files have the sha256 of the manifest" in page.words
    assert "Not compared with timm, which is not installed" in page.words
    assert page.row("AP")[1] == "0.09412" and page.row("AP_small")[1] == "–" and page.row("star")[1] == "0.123"
    assert page.row("commit")[1] == "abc123" and page.row("versions keras")[1] == "3.15.1"


def test_time_is_computed_from_the_speed(tmp_path):
    lines = [line(20, images_per_second=8.0), line(40), line(60), line(80, images_per_second=4.0)]
    words = Page(render(read_folders([write_run(tmp_path / "r", lines)]))).words
    # The lines of 320 images take 40 s, 10 s, 10 s and 80 s: a median of 32 images/s without the first line.
    for expected in ("140.0 s, 1,280 images", "40.0 s, 32.0 images/s", "30.0 s: tracing", "70.0 s in 1 stretches"):
        assert expected in words
    changed = write_run(tmp_path / "changed", [{**entry, "batch_size": 8} for entry in lines])  # half of the config's
    assert "70.0 s, 640 images" in Page(render(read_folders([changed]))).words


def test_little_overlap_and_missing_files_are_noted(page, tmp_path):
    assert "Only 50.0% of the pairs overlapped" in page.words and "1 empty, 1 cut short" in page.words
    (tmp_path / "bare").mkdir()
    (tmp_path / "bare" / "config.yaml").write_text("{}")
    words = Page(render(read_folders([tmp_path / "bare"]))).words
    for sentence in (
        "There is no metrics.jsonl", "have no probe.json", "have no export", "no readable environment.json",
        "No folder is a fine-tuning run", "No views were drawn", "their number is not recorded",
        "the time is unknown",
    ):  # fmt: skip
        assert sentence in words


def test_markup_in_names_reasons_and_values_stays_text(tmp_path):
    evil = "<img src=x onerror=alert(1)>\"'&{{7*7}}"
    run = write_run(tmp_path / evil.replace("/", ""), [line(20, **{f"loss/{evil}": 1.0}), line(40)])
    (run / "bad_images.tsv").write_text(f"name\treason\n{evil}\t{evil}: x\n")
    (run / "environment.json").write_text(json.dumps([{evil: {evil: evil}}]))
    (run / "start.json").write_text(json.dumps({"weights": evil, "sha256": evil}))
    (run / "diverged.json").write_text(json.dumps({"step": 41, "loss_terms": {evil: "nan"}}))
    probe = write_probe(run / "probes", evil)
    (probe / "probe.json").write_text((probe / "probe.json").read_text().replace("matching", "m</table><script>"))
    html = render(read_folders([run]), [Samples(evil, [(PNG, evil)], evil)])
    page = Page(html)
    assert not page.of("script") and len(page.of("img")) == 1 and page.of("img")[0]["alt"] == evil
    assert evil in page.words and "49" not in re.sub(r"\d*\.\d+", "", page.of("img")[0]["alt"])
    assert page.open == [] and page.unbalanced == []


def test_command_writes_a_file_and_replaces_only_reports(folders, tmp_path, capsys):
    output = tmp_path / "new" / "r.html"
    command = ["report", *map(str, folders), "--views", "0", "--output", str(output)]
    assert main(command) == 0 and main(command) == 0
    assert "<h1>Report: dupr, moco, detector</h1>" in output.read_text()
    capsys.readouterr()
    output.write_text("my diary")
    assert main(command) == 2 and str(output) in capsys.readouterr().err and output.read_text() == "my diary"


@pytest.mark.parametrize("arguments, expected", [
    (["nowhere"], "nowhere"),
    ([], "RUNS: "),
    (["."], ". holds"),
    (["file"], "file is a file"),
    ([".", "--views", "-1"], "--views: "),
    (["run", "--output", "."], "--output: . "),
    (["run", "--output", "file/x.html"], "--output: file/x.html "),
])  # fmt: skip
def test_wrong_report_input_gives_one_line_and_exit_2(tmp_path, monkeypatch, capsys, arguments, expected):
    write_run(tmp_path / "other" / "folder" / "run")
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "run").symlink_to(tmp_path / "other" / "folder" / "run")
    (tmp_path / "here" / "file").write_text("")
    monkeypatch.chdir(tmp_path / "here")
    assert main(["report", *arguments, *([] if "--views" in arguments else ["--views", "0"])]) == 2
    error = capsys.readouterr().err.strip().splitlines()
    assert len(error) == 1 and expected in error[0]
