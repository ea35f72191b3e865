"""Tests a comparison from end to end on tiny pictures: pairing, resuming, additions, failures."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from dupr_tf.comparing import cell as cells
from dupr_tf.comparing import runner
from dupr_tf.comparing.compare import _scored_tasks
from dupr_tf.comparing.grid import Backbone, Cell, Task
from dupr_tf.comparing.progress import CellProgress
from dupr_tf.comparing.record import read_comparison, write_comparison
from dupr_tf.comparing.results import choose_rates
from dupr_tf.config import load_config, parse_config
from dupr_tf.errors import Diverged, RunFailed, UserError
from dupr_tf.models.resnet import build_backbone
from tests.comparing.cells_by_hand import CONFIG as LIGHT
from tests.comparing.cells_by_hand import comparison, finish
from tests.labelled_scenes import pictures, write_coco

ROOT = Path(__file__).resolve().parents[2]
CONFIG = """
data: {image_size: 64}
model: {backbone: resnet18, width: 0.125}
optimizer: {learning_rate: 0.01, warmup_steps: 2}
train: {batch_size: 2, epochs: 1, log_every: 1, checkpoint_every: 2}
detector: {fpn_channels: 8, head_channels: 8, head_convs: 1, short_sides: [64], score_threshold: 0.001}
"""
SLOW = 1200  # seconds, for a machine with other work
FAKE = """
import json, os, pathlib, sys, time
_parent, folder, backbone, share, seed, rate, purpose = sys.argv[1:]
place = pathlib.Path(os.environ["PLACE"])
(place / f"started-{os.getpid()}").write_text(f"{backbone} {seed} {sorted(os.sched_getaffinity(0))}")
"""


@pytest.fixture
def fake(monkeypatch, tmp_path):
    """Replaces the process of a cell by a script. Returns a function that sets what the script does."""

    def use(body):
        script = tmp_path / "cell.py"
        script.write_text(FAKE + body)
        real = subprocess.Popen
        monkeypatch.setenv("PLACE", str(tmp_path))
        monkeypatch.setattr(
            subprocess, "Popen", lambda words, **keywords: real([words[0], str(script), *words[3:]], **keywords)
        )

    return use


SCORE = """
from dupr_tf.comparing.grid import Cell, Task
cell = pathlib.Path(folder) / Cell(backbone, float(share), int(seed)).folder / "metrics.json"
"""
TWO = [Task((Cell("a", 1.0, 0),), 0.1), Task((Cell("b", 1.0, 0),), 0.1)]


def started(tmp_path):
    return [file.read_text() for file in tmp_path.glob("started-*")]


def test_cells_that_are_finished_do_not_run_again(fake, tmp_path):
    fake(SCORE + "cell.write_text(json.dumps({'AP': 0.5}))")
    ended = []
    for _ in range(2):
        runner.run_cells(tmp_path, TWO, 1, 0, lambda running, one: ended.append(one) if one else None)
    assert ended == [task.cells[0] for task in TWO] and len(started(tmp_path)) == 2


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="one core")
def test_jobs_run_at_a_time_on_cores_of_their_own(fake, tmp_path):
    fake("time.sleep(1.5)\n" + SCORE + "cell.write_text(json.dumps({'AP': 0.5}))")
    most = []
    runner.run_cells(tmp_path, TWO, 2, 0, lambda running, one: most.append(len(running)))
    assert max(most) == 2
    first, second = (json.loads(text.split(" ", 2)[2]) for text in started(tmp_path))
    assert not set(first) & set(second)


def test_failed_cell_is_named_with_its_last_line_and_stops_the_others(fake, tmp_path):
    fake("""
if backbone == "a":
    print("first\\nerror: the loss is not finite.", file=sys.stderr)
    sys.exit(1)
time.sleep(60)
""")
    start = time.monotonic()
    with pytest.raises(RunFailed, match=r"a, share 1, seed 0.*the loss is not finite"):
        runner.run_cells(tmp_path, TWO, 2, 0, lambda *_: None)
    assert time.monotonic() - start < 30


def test_signal_stops_all_cells_and_waits_for_them(fake, tmp_path):
    fake("""
import signal
def save(*_):
    time.sleep(0.5)
    (place / f"saved-{backbone}").touch()
    sys.exit(143)
signal.signal(signal.SIGTERM, save)
(place / f"ready-{backbone}").touch()
time.sleep(60)
""")
    interrupted = []

    def interrupt(*_):
        if len(list(tmp_path.glob("ready-*"))) == 2 and not interrupted:
            interrupted.append(True)
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(KeyboardInterrupt) as caught:
        runner.run_cells(tmp_path, TWO, 2, 0, interrupt)
    assert caught.value.code == 143 and len(list(tmp_path.glob("saved-*"))) == 2


def test_each_job_has_a_gpu(fake, tmp_path):
    fake("(place / f'gpu-{backbone}').write_text(os.environ['CUDA_VISIBLE_DEVICES'])\ntime.sleep(1)")
    runner.run_cells(tmp_path, TWO, 2, 2, lambda *_: None)
    assert sorted(file.read_text() for file in tmp_path.glob("gpu-*")) == ["0", "1"]


def test_cells_of_a_share_and_a_seed_differ_in_nothing_but_the_weights():
    made = comparison()
    first, second = (cells.cell_config(made, Cell(label, 0.25, 2), 0.001) for label in ("random", "dupr"))
    assert first == second
    assert (first.data.share, first.data.share_seed, first.train.seed, first.total_steps(5)) == (0.25, 2, 2, 100)


def test_rate_is_tried_on_held_out_training_images():
    config = cells.cell_config(comparison(), Cell("random", 0.25, 0, 0.02), 0.02)
    assert (config.data.val_share, config.data.held_out, config.optimizer.learning_rate) == (None, 0.2, 0.02)


def test_milestones_follow_the_steps_of_every_share():
    optimizer = {"learning_rate": 0.1, "schedule": "milestones", "milestones": [4, 6, 8]}
    config = parse_config({**LIGHT, "optimizer": optimizer, "train": {"epochs": 8, "batch_size": 7}})
    made = comparison(config=config, steps=(200, 400))
    for share, steps in zip(made.shares, made.steps, strict=True):
        drawn = cells.cell_config(made, Cell("random", share, 0), 0.1)
        assert drawn.optimizer.milestone_steps == (steps // 2, steps * 3 // 4) and not drawn.finetune_problems()
        assert parse_config(drawn.model_dump(mode="json")) == drawn
    config = parse_config({**LIGHT, "optimizer": {**optimizer, "schedule": "cosine"}})
    assert [problem.field for problem in config.finetune_problems()] == ["optimizer.schedule"]


def test_rate_that_diverges_is_not_chosen(tmp_path, monkeypatch):
    def diverge(*_):
        raise Diverged("The loss is nan at step 3.")

    monkeypatch.setattr("dupr_tf.detection.finetune.finetune", diverge)
    for check in ("_check_unchanged", "check_same_labels"):
        monkeypatch.setattr(cells, check, lambda *_: None)
    made = comparison(rates=(0.1, 10.0))
    write_comparison(tmp_path, made)
    for cell in made.rate_cells():
        if cell.rate == 10.0:
            (tmp_path / cell.folder).mkdir(parents=True)
            cells.run_cell(tmp_path, cell, cell.rate)
        else:
            finish(tmp_path, cell, 0.001)
    assert {one.chosen for one in choose_rates(tmp_path, made).values()} == {0.1}
    (tmp_path / made.rate_cells()[0].folder / "metrics.json").write_text('{"AP": 0, "diverged": "nan"}')
    assert choose_rates(tmp_path, made)["random"].chosen is None
    with pytest.raises(RunFailed, match="random is not finite"):
        _scored_tasks(tmp_path, made)
    with pytest.raises(Diverged):
        cells.run_cell(tmp_path, Cell("random", 1.0, 0), 10.0)


def test_checkpoints_of_finished_cells_are_removed(tmp_path):
    made = comparison()
    done, unfinished = made.scored_cells()[:2]
    finish(tmp_path, done, 0.1)
    for cell in (done, unfinished):
        (tmp_path / cell.folder / "checkpoints").mkdir(parents=True)
    CellProgress(tmp_path, made, print)  # an earlier call was killed before it removed them
    assert list(tmp_path.rglob("checkpoints")) == [tmp_path / unfinished.folder / "checkpoints"]


def run(tmp_path, data, *flags, wait=True):
    (tmp_path / "detector.yaml").write_text(CONFIG)
    words = [sys.executable, "-m", "dupr_tf", "compare", str(tmp_path / "detector.yaml"), "--data", str(data)]
    process = subprocess.Popen(
        [*words, "--output", str(tmp_path / "out"), *flags],
        cwd=ROOT,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    return (process, *process.communicate(timeout=SLOW)) if wait else process


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_coco(tmp_path_factory.mktemp("data") / "set", {"train": pictures(12), "val": pictures(3, seed=1)})


def test_comparison_from_end_to_end(tmp_path, data):
    process, output, errors = run(tmp_path, data, "--backbones", "random", "b=random", "--seeds", "1", "--jobs", "2")
    assert process.returncode == 0, errors
    out = tmp_path / "out"
    assert "b at 12 images" in output and {"compare.md", "compare.json", "compare.png"} <= set(os.listdir(out))
    rows = json.loads((out / "compare.json").read_text())["rows"]
    # The same weights and seed give the same detector.
    assert [row["backbone"] for row in rows] == ["random", "b"] and rows[0]["scores"] == rows[1]["scores"]
    assert not list(out.rglob("checkpoints"))
    assert read_comparison(out).steps == (6,)


@pytest.mark.slow
def test_comparison_resumes_after_a_kill_and_takes_additions(tmp_path, data):
    flags = ("--backbones", "random", "b=random", "--shares", "0.5", "--seeds", "2", "--steps", "60")
    process, out = run(tmp_path, data, *flags, wait=False), tmp_path / "out"
    try:
        deadline = time.monotonic() + SLOW
        while not list(out.glob("cells/*/*/*/checkpoints/*.index")):
            assert time.monotonic() < deadline and process.poll() is None
            time.sleep(0.2)
    finally:
        process.kill()
        process.communicate()
    process, _, errors = run(tmp_path, data, *flags)
    assert process.returncode == 0, errors
    assert sum("resuming at step" in file.read_text() for file in out.rglob("log.txt")) == 1
    scores = {file: file.read_text() for file in out.rglob("metrics.json")}
    assert len(scores) == 4
    ids = {path.parent.name: path.read_text() for path in out.glob("cells/share_0.5/seed_1/*/image_ids.txt")}
    assert len(ids) == 2 and len(set(ids.values())) == 1
    other = next(out.glob("cells/share_0.5/seed_0/b/image_ids.txt")).read_text()
    assert other not in ids.values()
    process, _, errors = run(tmp_path, data, "--backbones", "c=random")
    assert process.returncode == 0, errors
    assert all(file.read_text() == content for file, content in scores.items())
    assert len(list(out.rglob("metrics.json"))) == 6
    process, _, errors = run(tmp_path, data, "--train.batch_size", "4")
    assert process.returncode == 2 and "train.batch_size" in errors and errors.count("dupr-tf:") == 1


@pytest.mark.slow
def test_each_backbone_is_scored_with_the_rate_it_chose(tmp_path, data):
    flags = ("--backbones", "random", "b=random", "--seeds", "1", "--steps", "20", "--learning-rates", "0.01", "0.02")
    process, _, errors = run(tmp_path, data, *flags)
    assert process.returncode == 0, errors
    out = tmp_path / "out"
    assert len(list(out.glob("rates/*/*/metrics.json"))) == 4 and len(list(out.glob("cells/**/metrics.json"))) == 2
    for backbone, tried in json.loads((out / "compare.json").read_text())["rates"].items():
        config = load_config(out / "cells/share_1/seed_0" / backbone / "config.yaml")
        assert config.optimizer.learning_rate == tried["chosen"]
        assert tried["scores"][f"{tried['chosen']:g}"] == max(tried["scores"].values())


ORPHAN = """
import sys, time
from dupr_tf.comparing import cell
cell.PARENT_CHECK, cell.run_cell = 0.1, lambda *arguments: time.sleep(300)
print(flush=True)
time.sleep(float(sys.argv[1]))
cell.main([*sys.argv[2:], "folder", "dupr", "1.0", "0", "", "score"])
"""
PARENT = """
import os, subprocess, sys
words = [sys.executable, "-c", *sys.argv[1:], str(os.getpid())]
child = subprocess.Popen(words, stdout=subprocess.PIPE)
child.stdout.read(1)
print(child.pid, flush=True)
sys.stdin.read()
"""


@pytest.mark.parametrize("late", ["0", "1"])  # 1: the parent ends while the cell starts
def test_cell_whose_parent_was_killed_is_asked_to_save_and_end(late):
    command = [sys.executable, "-c", PARENT, ORPHAN, late]
    parent = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT)
    number = int(parent.stdout.readline())
    parent.kill()
    parent.communicate()
    deadline = time.monotonic() + 30
    while Path(f"/proc/{number}").exists() and "Z" not in Path(f"/proc/{number}/stat").read_text().split()[2]:
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_weights_that_have_changed_are_refused(tmp_path, monkeypatch):
    made = comparison(digests={"/runs/dupr": "c" * 64})
    write_comparison(tmp_path, made)
    lines = cells.CHECK + json.dumps([0, "d" * 64, "", ""])
    monkeypatch.setattr(
        subprocess, "run", lambda words, **_: subprocess.CompletedProcess(words, 0, stdout=lines, stderr="")
    )
    with pytest.raises(ValueError, match="dupr"):
        cells.check_backbones(made)
    monkeypatch.setattr(
        subprocess,
        "run",
        lambda words, **_: subprocess.CompletedProcess(words, 0, cells.CHECK + json.dumps([0, "c" * 64, "", ""]), ""),
    )
    assert cells.check_backbones(made) == {"/runs/dupr": "c" * 64}


@pytest.mark.parametrize("probe", [None, "svm"])
def test_weights_that_change_between_cells_are_refused(tmp_path, monkeypatch, probe):
    file, started = tmp_path / "dupr.keras", []
    trained = "dupr_tf.detection.finetune.finetune" if probe is None else "dupr_tf.comparing.probes.run_probe"
    monkeypatch.setattr(trained, lambda *arguments: started.append(arguments))
    monkeypatch.setattr(cells, "check_same_labels", lambda *_: None)
    backbones = [build_backbone("resnet18", 0.125) for _ in range(2)]
    config = parse_config({**LIGHT, "model": {"backbone": "resnet18", "width": 0.125}})
    kind = {} if probe is None else {"probe": probe, "level": "P5"}
    made = comparison(config=config, backbones=(Backbone("dupr", (str(file),)),), reference="dupr", **kind)
    backbones[0].save(file)
    write_comparison(tmp_path, dataclasses.replace(made, digests=cells.check_backbones(made)))
    cells.run_cell(tmp_path, made.scored_cells()[0], 0.001)
    assert len(started) == 1
    backbones[1].save(file)
    with pytest.raises(UserError, match="other weights than when this comparison began"):
        cells.run_cell(tmp_path, made.scored_cells()[1], 0.001)
    assert len(started) == 1
