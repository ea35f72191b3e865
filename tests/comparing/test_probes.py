"""Tests comparisons by probes: their plan, their processes, their scores on made-up features, and one small run."""

import dataclasses
import json
import os
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from dupr_tf.commands.compare import Compare
from dupr_tf.comparing import probes
from dupr_tf.comparing.cell import run_cell
from dupr_tf.comparing.compare import plan_comparison
from dupr_tf.comparing.grid import Backbone, Cell, probe_tasks
from dupr_tf.comparing.outputs import head, page, table
from dupr_tf.comparing.plan import Settings
from dupr_tf.comparing.probe_plan import ProbedImages, lost_probed_classes, read_probed
from dupr_tf.comparing.record import extend, read_comparison, write_comparison
from dupr_tf.comparing.results import choose_rates, is_finished, read_result, sentences
from dupr_tf.config import DataConfig, parse_config
from dupr_tf.errors import UserError
from tests.comparing.cells_by_hand import CONFIG, comparison, finish
from tests.labelled_scenes import COLOURS, pictures, write_coco, write_masks
from tests.refusals import refusal

TWO = (Backbone("random", ("random",)), Backbone("dupr", ("/runs/dupr",)))
RANDOM_TWICE = (Backbone("random", ("random",)), Backbone("again", ("random",)))


def probed(probe="knn", **changes):
    return comparison(config=parse_config({}), rates=(), steps=(1, 1), probe=probe, level="P5", **changes)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Writes 8 + 2 small pictures of each of three classes, which differ by colour."""
    root, rng = tmp_path_factory.mktemp("folders"), np.random.default_rng(0)
    for split, count in (("train", 8), ("val", 2)):
        for name, colour in COLOURS.items():
            (root / split / name).mkdir(parents=True)
            for number in range(count):
                pixels = np.clip(np.array(colour) + rng.normal(0, 20, (40, 40, 3)), 0, 255).astype(np.uint8)
                Image.fromarray(pixels).save(root / split / name / f"{number}.png")
    return root


@pytest.fixture(scope="module")
def boxes(tmp_path_factory):
    return write_coco(tmp_path_factory.mktemp("boxes") / "set", {"train": pictures(12), "val": pictures(3, seed=1)})


def test_cells_with_the_same_weights_share_a_process():
    group = (*TWO, Backbone("group", ("/0", "/1")))
    tasks = probe_tasks(group, comparison(backbones=group, shares=(0.1, 1.0), seeds=2).scored_cells())
    sizes = {(task.cells[0].backbone, len(task.cells), len({cell.seed for cell in task.cells})) for task in tasks}
    assert sizes == {("random", 2, 1), ("dupr", 4, 2), ("group", 2, 1)} and len(tasks) == 5
    assert {task.rate for task in tasks} == {None}


def test_knn_reads_class_folders_and_svm_both_layouts(folders, boxes):
    section = DataConfig()
    for probe in ("knn", "svm"):
        train = read_probed(probe, str(folders), section)["train"]
        assert (len(train), train.labels.shape, train.class_names) == (24, (24,), tuple(sorted(COLOURS)))
    assert read_probed("svm", str(boxes), section)["train"].labels.shape == (12, 3)


def test_layouts_that_a_probe_cannot_use_are_refused(boxes, tmp_path):
    assert refusal(read_probed, "knn", str(boxes), DataConfig()).field == "--probes"
    masks = write_masks(tmp_path, {"train": pictures(2), "val": pictures(2)})
    assert refusal(read_probed, "svm", str(masks), DataConfig()).field == "--data"
    with pytest.raises(UserError):
        read_probed("svm", str(tmp_path / "train" / "images"), DataConfig())


def test_classes_of_images_and_of_objects_become_a_matrix():
    images = ProbedImages(("a", "b"), np.array([1, 0]), ("x", "y"))
    np.testing.assert_array_equal(images.matrix(), [[0, 1], [1, 0]])
    assert images.classes() == [{1}, {0}]
    objects = ProbedImages(("a", "b"), np.array([[1, -1], [1, 1]], np.int8), ("x", "y"))
    assert objects.matrix() is objects.labels and objects.classes() == [{0}, {0, 1}]


def test_plan_keeps_only_the_fields_that_a_probe_uses(folders, tmp_path):
    config = parse_config({**CONFIG, "model": {"backbone": "resnet18", "width": 0.5}, "data": {"max_pixels": 5000}})
    made = plan_comparison(config, folders, tmp_path, Settings(RANDOM_TWICE, (1.0, 0.5)), "knn").comparison
    assert (made.config.detector, made.config.optimizer) == (None, parse_config({}).optimizer)
    assert (made.config.model.width, made.config.data.max_pixels) == (0.5, 5000)
    assert (made.probe, made.level, made.shares, made.steps, made.rates) == ("knn", "P5", (0.5, 1.0), (1, 1), ())
    assert made.counts == {"train": 24, "val": 6} and made.seeds == 3
    write_comparison(tmp_path, made)
    assert read_comparison(tmp_path) == made


def test_later_call_adds_to_a_comparison_by_a_probe(folders, tmp_path):
    config = parse_config(CONFIG)
    first = plan_comparison(config, folders, tmp_path, Settings(RANDOM_TWICE, (1.0,), 1, level="P4"), "knn")
    write_comparison(tmp_path, first.comparison)
    more = Settings((Backbone("third", ("random",)),), (0.25, 0.5), 2)
    both = plan_comparison(config, folders, tmp_path, more, "knn").comparison
    assert (both.shares, both.seeds, len(both.backbones), both.level) == ((0.25, 0.5, 1.0), 2, 3, "P4")


@pytest.mark.parametrize(
    ("changes", "field"), [({"level": "P3"}, "--level"), ({"probe": "svm"}, "--output"), ({"probe": None}, "--output")]
)
def test_comparison_of_another_kind_is_refused(changes, field):
    new = comparison() if changes.get("probe", "knn") is None else probed(changes.get("probe", "knn"))
    if "level" in changes:
        new = dataclasses.replace(new, **changes)
    with pytest.raises(UserError) as caught:
        extend(probed(), new)
    assert field in caught.value.fields


@pytest.mark.parametrize(("name", "value"), [("probe", "linear"), ("probe", None), ("level", "P9"), ("level", None)])
def test_damaged_record_of_a_probe_is_an_error(tmp_path, name, value):
    write_comparison(tmp_path, probed())
    file = tmp_path / "comparison.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), name: value}))
    with pytest.raises(UserError):
        read_comparison(tmp_path)


def test_share_in_which_svm_learns_no_class_is_refused(folders, tmp_path):
    settings = Settings(RANDOM_TWICE, (0.04, 1.0), 1)
    assert refusal(plan_comparison, parse_config(CONFIG), folders, tmp_path, settings, "svm").field == "--shares"
    planned = plan_comparison(parse_config(CONFIG), folders, tmp_path, settings, "knn")
    (warning,) = lost_probed_classes(planned.comparison, planned.train)
    assert "share 0.04" in warning and sum(name in warning for name in COLOURS) == 2


def clusters(count, classes, seed):
    rng = np.random.default_rng(seed)
    labels = np.arange(count) % classes
    images = ProbedImages(tuple(map(str, range(count))), labels, tuple("abcd"[:classes]))
    return np.arange(count), np.eye(classes, 6)[labels] + 0.05 * rng.normal(size=(count, 6)), images


@pytest.mark.parametrize(("probe", "metric"), [("knn", "top1"), ("svm", "mAP")])
def test_scores_use_the_drawn_images_alone(probe, metric):
    train, val = clusters(40, 4, seed=0), clusters(20, 4, seed=1)
    found = probes.score(probe, train, val, range(0, 40, 1))
    assert (found[metric], found["train_images"]) == (1.0, 40)
    drawn = [i for i in range(40) if i % 4 < 2]  # images of two of four classes
    found = probes.score(probe, train, val, drawn)
    assert found["train_images"] == 20
    if probe == "knn":
        assert found["top1"] == 0.5 and found["k"] == 5
    else:
        assert found["per_class"] == {"a": 1.0, "b": 1.0, "c": None, "d": None}


def test_images_that_cannot_be_read_are_left_out_of_a_draw():
    kept, rows, images = clusters(40, 4, seed=0)
    readable = kept[kept != 4]
    val = clusters(20, 4, seed=1)
    assert probes.score("knn", (readable, rows[readable], images), val, [3, 4, 5])["train_images"] == 2
    assert refusal(probes.score, "knn", (readable, rows[readable], images), val, [4]).field == "--shares"


def test_backbones_are_scored_on_the_same_images_and_finished_cells_stay(tmp_path):
    made, draws = probed(seeds=2), []

    def score(drawn):
        draws.append(drawn)
        return {"top1": len(draws) / 10}

    for label in ("dupr", "random"):
        cells = [cell for cell in made.scored_cells() if cell.backbone == label]
        probes.score_cells(tmp_path, made, cells, score)
    assert draws[:3] == draws[3:]  # two seeds of the small share, and all images once
    assert [len(drawn) for drawn in draws[:3]] == [100, 400, 100] and draws[0] != draws[2]
    probes.score_cells(tmp_path, made, made.scored_cells(), lambda drawn: pytest.fail("scored again"))
    added = probed(seeds=3)
    probes.score_cells(tmp_path, added, added.scored_cells(), score)
    assert len(draws) == 8


def test_changed_labels_are_refused(folders, tmp_path):
    planned = plan_comparison(parse_config(CONFIG), folders, tmp_path, Settings(RANDOM_TWICE, (1.0,), 1), "knn")
    changed = dataclasses.replace(planned.comparison, labels={"train": "a" * 64, "val": "b" * 64})
    cells = changed.scored_cells()[:1]
    assert refusal(probes.run_probe, tmp_path, changed, cells).field == "--data"


def test_table_of_a_probe_has_no_columns_of_detectors(tmp_path):
    made = probed("svm")
    for cell in made.scored_cells():
        finish(tmp_path, cell, cell.share / 2 + 0.01 * cell.seed + 0.1 * (cell.backbone == "dupr"), name="mAP")
    result, rates = read_result(tmp_path, made), choose_rates(tmp_path, made)
    assert result.metric == "mAP" and {"AP50", "rate"}.isdisjoint(head(result, made))
    assert {len(row) for row in table(result, made, rates)} == {len(head(result, made))}
    assert "svm on P5" in page(made, result, rates)


def test_seeds_that_repeat_a_score_are_counted_once(tmp_path):
    pair = (Backbone("moco", ("/runs/moco",)), *TWO)
    made = probed(backbones=pair, reference="moco")
    for cell in made.scored_cells():
        varies = 0.0 if cell.share == 1 and cell.backbone != "random" else 0.01 * cell.seed**2
        finish(tmp_path, cell, 0.5 + 0.1 * (cell.backbone == "dupr") + varies, name="top1")
    rows = {(row.backbone, row.share): row for row in read_result(tmp_path, made).rows}
    assert (rows["dupr", 1.0].score.runs, rows["dupr", 0.25].score.runs) == (1, 3)
    assert rows["dupr", 1.0].difference.half is None and not rows["dupr", 1.0].difference.decided
    assert rows["random", 1.0].difference.runs == 3 and rows["random", 1.0].difference.half > 0
    text = next(one for one in sentences(read_result(tmp_path, made), made) if one.startswith("dupr at 400"))
    assert "cannot decide" in text


@pytest.mark.parametrize(
    ("flags", "overrides", "field"),
    [
        ({"steps": (3,)}, {}, "--steps"),
        ({"learning_rates": (0.1,)}, {}, "--learning-rates"),
        ({"rate_share": 1.0}, {}, "--rate-share"),
        ({}, {"train.batch_size": "4"}, "--train.batch_size"),
        ({"probes": (), "level": "P4"}, {}, "--level"),
    ],
)
def test_flags_without_meaning_are_refused(tmp_path, folders, flags, overrides, field):
    (tmp_path / "detector.yaml").write_text("{}")
    settings = {"probes": ("knn",), "backbones": ("random", "b=random"), **flags}
    command = Compare(tmp_path / "detector.yaml", folders, tmp_path / "out", **settings)
    with pytest.raises(UserError) as caught:
        command.run(overrides)
    assert field in caught.value.fields and not (tmp_path / "out").exists()


def test_dry_run_lists_cells_without_tensorflow(tmp_path, folders):
    words = [sys.executable, "-X", "importtime", "-m", "dupr_tf", "compare", str(tmp_path / "detector.yaml")]
    (tmp_path / "detector.yaml").write_text("model: {backbone: resnet18, width: 0.125}\n")
    words += ["--data", str(folders), "--output", str(tmp_path / "out"), "--backbones", "random", "b=random"]
    words += ["--probes", "knn", "svm", "--shares", "0.5", "1", "--dry-run"]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 0 and done.stdout.count("12") == 2
    assert " tensorflow\n" not in done.stderr and " yaml\n" in done.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("probe", "metric"), [("knn", "top1"), ("svm", "mAP")])
def test_random_features_tell_colours_apart(tmp_path, folders, probe, metric):
    config = parse_config({"model": {"backbone": "resnet18", "width": 0.125}})
    made = plan_comparison(config, folders, tmp_path, Settings(RANDOM_TWICE, (0.5, 1.0), 1), probe).comparison
    write_comparison(tmp_path, made)
    run_cell(tmp_path, Cell("again", 1.0, 0), None)
    cells = [cell for cell in made.scored_cells() if is_finished(tmp_path / cell.folder)]
    assert cells == [Cell("again", 0.5, 0), Cell("again", 1.0, 0)]
    scores = [json.loads((tmp_path / cell.folder / "metrics.json").read_text()) for cell in cells]
    assert [one["train_images"] for one in scores] == [12, 24] and scores[1][metric] == 1.0


@pytest.mark.slow
def test_comparison_by_knn_from_end_to_end(tmp_path, folders):
    flags = ("--probes", "knn", "--shares", "0.5", "1", "--seeds", "2", "--jobs", "2")
    (tmp_path / "detector.yaml").write_text("model: {backbone: resnet18, width: 0.125}\n")
    words = [sys.executable, "-m", "dupr_tf", "compare", str(tmp_path / "detector.yaml"), "--data", str(folders)]
    words += ["--output", str(tmp_path / "out"), "--backbones", "random", "b=random", *flags]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    out = tmp_path / "out" / "knn"
    assert {"compare.md", "compare.json", "compare.png"} <= set(os.listdir(out)) and "b at 24 images" in done.stdout
    content = json.loads((out / "compare.json").read_text())
    scores = {(row["backbone"], row["share"]): row["scores"] for row in content["rows"]}
    assert content["metric"] == "top1" and scores["random", 0.5] == scores["b", 0.5]
    assert scores["random", 1.0]["0"] == 1.0
