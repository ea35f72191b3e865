"""Tests the checks of a comparison that need no training, on tiny data sets."""

import json

import pytest
from PIL import Image, ImageOps

from dupr_tf.comparing import plan
from dupr_tf.comparing.cell import cell_config, run_cell
from dupr_tf.comparing.compare import plan_comparison
from dupr_tf.comparing.grid import Backbone, Cell
from dupr_tf.comparing.labels import check_same_labels
from dupr_tf.comparing.plan import (
    Settings,
    filled_in,
    grid_problems,
    lost_classes,
    lost_of_images,
    plan_problems,
    schedule_warnings,
    set_by_cells,
)
from dupr_tf.comparing.record import write_comparison
from dupr_tf.config import DataConfig, parse_config
from dupr_tf.data.labels.split import draw_positions
from dupr_tf.detection.task_labels import read_evaluated, read_splits
from dupr_tf.errors import UserError
from tests.comparing.cells_by_hand import CONFIG, comparison
from tests.labelled_scenes import pictures, write_coco
from tests.refusals import refusal

TWO = (Backbone("random", ("random",)), Backbone("again", ("random",)))


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_coco(tmp_path_factory.mktemp("data") / "set", {"train": pictures(12), "val": pictures(3, seed=1)})


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"shares": (0.0,)}, "--shares"),
        ({"shares": (1.5,)}, "--shares"),
        ({"shares": (0.5, 0.5)}, "--shares"),
        ({"seeds": 0}, "--seeds"),
        ({"seeds": 101}, "--seeds"),
        ({"steps": (1, 2, 3)}, "--steps"),
        ({"steps": (0,)}, "--steps"),
        ({"rates": (0.1, 0.1)}, "--learning-rates"),
        ({"rates": (-0.1,)}, "--learning-rates"),
        ({"rates": (0.001, 0.0010000001)}, "--learning-rates"),  # their folders have the same name
        ({"backbones": (*TWO, Backbone("gone", ("/no/such/run",)))}, "--backbones"),
        ({"backbones": (*TWO, Backbone("other", ("imagenet/resnet34",)))}, "--backbones"),
        ({"backbones": (*TWO, Backbone("malformed", ("hf:a",)))}, "--backbones"),
    ],
)
def test_wrong_flag_is_named(changes, field):
    settings = Settings(TWO, (0.5, 1.0), 3)._replace(**changes)
    assert [error.field for error in plan_problems(parse_config(CONFIG), settings)] == [field]


@pytest.mark.parametrize(
    ("section", "name", "value"),
    [("data", "share", 0.5), ("data", "share_seed", 1), ("train", "seed", 1), ("data", "held_out", 0.1)],
)
def test_fields_that_cells_set_are_refused(section, name, value):
    config = parse_config({**CONFIG, section: {name: value}})
    assert [error.field for error in set_by_cells(config)] == [f"{section}.{name}"]


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"reference": "absent"}, "--reference"),
        ({"rates": (0.1, 0.2), "rate_share": 0.3}, "--rate-share"),
        ({"rate_share": 20.0}, "--rate-share"),
        ({"backbones": (TWO[0], Backbone("pair", ("/a", "/b")))}, "--backbones"),
        ({"backbones": (TWO[0], Backbone("my run", ("/a",)), Backbone("my_run", ("/b",)))}, "--backbones, --shares"),
        ({"shares": (1 / 3, 0.3333333), "rate_share": 1 / 3}, "--backbones, --shares"),
        ({"config": parse_config({**CONFIG, "optimizer": {"schedule": "milestones", "milestone_steps": [100]}})},
         "optimizer.milestone_steps"),
    ],
)  # fmt: skip
def test_cells_that_could_not_run_are_refused(changes, field):
    assert [error.field for error in grid_problems(comparison(**changes))] == [field]
    assert not list(grid_problems(comparison(backbones=(TWO[0], Backbone("three", ("/a", "/b", "/c"))))))


def test_group_with_too_few_runs_is_refused(data, tmp_path):
    config = parse_config(CONFIG)
    write_comparison(tmp_path, plan_comparison(config, data, tmp_path, Settings(TWO, (1.0,), 4)).comparison)
    group = Settings((Backbone("pair", ("random", "random")),), seeds=2)
    assert refusal(plan_comparison, config, data, tmp_path, group).field == "--backbones"


def test_share_without_boxes_is_refused_before_any_cell(tmp_path):
    scenes = pictures(12)
    for picture in scenes[1:]:
        picture.things.clear()
    root = write_coco(tmp_path / "set", {"train": scenes, "val": pictures(3, seed=1)})
    error = refusal(plan_comparison, parse_config(CONFIG), root, tmp_path / "out", Settings(TWO, (0.25, 1.0), 3))
    assert error.field == "--shares" and "Share 0.25 with seed" in error.problem and "larger share" in error.fix


def test_share_is_drawn_from_the_images_that_can_be_used(tmp_path):
    root = write_coco(tmp_path / "set", {"train": pictures(12), "val": pictures(3, seed=1)})
    (root / "images/train_004.png").write_bytes(b"broken")
    config = parse_config({**CONFIG, "data": {"max_bad_share": 0.1}})
    planned = plan_comparison(config, root, tmp_path / "out", Settings(TWO, (0.25,), 6))
    made = planned.comparison
    for cell in made.scored_cells():
        train, _, _ = read_splits(cell_config(made, cell, 1e-3), root, "boxes")
        drawn = draw_positions(made.counts["train"], cell.share, cell.seed)
        assert train.paths == planned.train.select(drawn).paths and len(train) == made.images_of(cell.share) == 3


def test_changed_photos_are_refused(tmp_path):
    root = write_coco(tmp_path / "set", {"train": pictures(12), "val": pictures(3, seed=1)})
    config, settings, output = parse_config(CONFIG), Settings(TWO, (1.0,), 1), tmp_path / "out"
    made = plan_comparison(config, root, output, settings).comparison
    write_comparison(output, made)
    assert plan_comparison(config, root, output, settings).comparison == made
    file = root / "images/train_004.png"
    ImageOps.invert(Image.open(file).convert("RGB")).save(file)
    assert refusal(plan_comparison, config, root, output, settings).field == "--data"


def test_fields_that_may_change_are_those_of_the_later_call(data, tmp_path):
    write_comparison(
        tmp_path, plan_comparison(parse_config(CONFIG), data, tmp_path, Settings(TWO, (1.0,), 1)).comparison
    )
    config = parse_config({**CONFIG, "data": {"threads": 1}})
    assert plan_comparison(config, data, tmp_path, Settings()).comparison.config.data.threads == 1


def test_schedule_that_a_share_does_not_reach_is_named():
    optimizer = {"learning_rate": 0.001, "warmup_steps": 80}
    (warning,) = schedule_warnings(comparison(config=parse_config({**CONFIG, "optimizer": optimizer}), steps=(50, 100)))
    assert warning.startswith("share 0.25: optimizer.warmup_steps")
    optimizer = {"learning_rate": 0.001, "schedule": "milestones", "milestones": [6.0, 6.1]}
    config = parse_config({**CONFIG, "optimizer": optimizer, "train": {"epochs": 10}})
    (warning,) = schedule_warnings(comparison(config=config, steps=(5, 100)))
    assert warning.startswith("share 0.25: the learning rate falls at 1 of 2 milestones in 5 steps")


def test_milestones_are_those_of_the_images_with_boxes(tmp_path):
    scenes = pictures(12)
    for picture in scenes[:6]:
        picture.things.clear()
    root = write_coco(tmp_path / "set", {"train": scenes, "val": pictures(3, seed=1)})
    optimizer = {"learning_rate": 0.001, "schedule": "milestones", "milestones": [6]}
    config = parse_config({**CONFIG, "optimizer": optimizer, "train": {"batch_size": 2, "epochs": 99, "max_steps": 24}})
    made = plan_comparison(config, root, tmp_path / "out", Settings(TWO, (1.0,), 1)).comparison
    assert cell_config(made, Cell("random", 1.0, 0), 0.001).optimizer.milestone_steps == (18,)  # 3 steps an epoch


def test_learning_rates_need_boxes_that_are_not_held_out(tmp_path):
    root = write_coco(tmp_path / "set", {"train": pictures(6), "val": pictures(3, seed=1)})
    settings = Settings(TWO, (1.0,), 1, rates=(0.1, 0.2))
    made = plan_comparison(parse_config(CONFIG), root, tmp_path / "out", settings).comparison
    _, held_out, _ = read_splits(cell_config(made, made.rate_cells()[0], 0.1), root, "boxes")
    file = root / "annotations/instances_train.json"
    content = json.loads(file.read_text())
    content["annotations"] = [one for one in content["annotations"] if str(one["image_id"]) in held_out.ids]
    file.write_text(json.dumps(content))
    assert plan_comparison(parse_config(CONFIG), root, tmp_path / "out", settings._replace(rates=()))
    error = refusal(plan_comparison, parse_config(CONFIG), root, tmp_path / "out", settings)
    assert "None of the 5 training images has a box" in error.problem


def test_detector_and_unfinished_run_are_no_backbones(tmp_path):
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    (tmp_path / "run" / "checkpoints" / "ckpt-5.index").touch()
    (tmp_path / "run" / "config.yaml").write_text("{}")
    settings = Settings((*TWO, Backbone("run", (str(tmp_path / "run"),))), (1.0,), 3)
    problems = plan_problems(parse_config(CONFIG), settings)
    assert [error.field for error in problems] == ["--backbones"] and "not ended" in problems[0].problem


def test_imagenet_is_that_of_the_config_and_is_not_downloaded(data, tmp_path, monkeypatch):
    monkeypatch.setattr("dupr_tf.weights.download.transfer", None)
    backbones = (*TWO, Backbone("imagenet", ("imagenet",)), Backbone("hub", ("hf:a/b",)))
    for name in ("resnet18", "resnet34"):
        config = parse_config({**CONFIG, "model": {"backbone": name}})
        made = plan_comparison(config, data, tmp_path, Settings(backbones)).comparison
        assert [one.weights for one in made.backbones[2:]] == [(f"imagenet/{name}",), ("hf:a/b",)]
    write_comparison(tmp_path, made)
    again = plan_comparison(config, data, tmp_path, Settings((Backbone("imagenet", ("imagenet",)),)))
    assert again.comparison == made


def test_steps_and_rate_come_from_the_config(data, tmp_path):
    config = parse_config({**CONFIG, "train": {"batch_size": 2, "epochs": 5}})
    made = plan_comparison(config, data, tmp_path, Settings(TWO, (0.5, 1.0))).comparison
    assert (made.steps, made.seeds, made.rates, made.reference) == ((30, 30), 3, (0.001,), "random")
    assert made.counts == {"train": 12, "val": 3} and made.images_of(0.5) == 6


def test_cells_do_not_validate_while_they_train(data, tmp_path):
    config = parse_config({**CONFIG, "detector": {"kind": "retinanet", "validate_every": 1, "patience": 2}})
    detector = plan_comparison(config, data, tmp_path, Settings(TWO)).comparison.config.detector
    assert (detector.validate_every, detector.patience) == (0, None)  # they would select by the scores on val


def test_steps_can_differ_by_share_whatever_the_order(data, tmp_path):
    made = plan_comparison(parse_config(CONFIG), data, tmp_path, Settings(TWO, (1.0, 0.5), 1, (200, 100))).comparison
    assert (made.shares, made.steps) == ((0.5, 1.0), (100, 200))


def test_later_call_inherits_what_it_does_not_give():
    saved = comparison(seeds=5, rates=(0.1, 0.2), steps=(100, 100))
    filled = filled_in(Settings(), saved)
    assert filled == Settings(saved.backbones, saved.shares, 5, (100, 100), (0.1, 0.2), 0.25, "random")
    assert filled_in(Settings(shares=(0.5, 1.0)), saved).steps == (100, 100)
    uneven = comparison(steps=(100, 200))
    assert refusal(filled_in, Settings(shares=(0.5, 1.0)), uneven).field == "--steps"
    assert filled_in(Settings(shares=(0.5,), steps=(150,)), uneven).steps == (150,)


@pytest.mark.parametrize("count", [0, 1])
def test_fewer_than_two_backbones_are_refused(data, tmp_path, count):
    with pytest.raises(UserError) as caught:
        plan_comparison(parse_config(CONFIG), data, tmp_path, Settings(TWO[:count], (1.0,), 1))
    assert caught.value.fields == ("--backbones",)


def test_one_more_backbone_is_enough_for_a_comparison(data, tmp_path):
    first = plan_comparison(parse_config(CONFIG), data, tmp_path, Settings(TWO, (1.0,), 1)).comparison
    write_comparison(tmp_path, first)
    third = Settings((Backbone("third", ("random",)),))
    assert len(plan_comparison(parse_config(CONFIG), data, tmp_path, third).comparison.backbones) == 3


def test_val_without_boxes_is_refused(tmp_path):
    empty = pictures(2, seed=1)
    for picture in empty:
        picture.things.clear()
    root = write_coco(tmp_path / "set", {"train": pictures(4), "val": empty})
    with pytest.raises(UserError, match="boxes"):
        plan_comparison(parse_config(CONFIG), root, tmp_path / "out", Settings(TWO, (1.0,), 1))


def test_classes_that_a_share_lacks_are_named(data, tmp_path):
    planned = plan_comparison(parse_config(CONFIG), data, tmp_path, Settings(TWO, (0.1, 1.0), 3))
    (warning,) = lost_classes(planned.comparison, planned.train)
    assert "share 0.1" in warning and any(name in warning for name in ("bus", "cat", "dog"))


def test_class_that_only_a_later_seed_lacks_is_named():
    classes = [{0}, {0}]
    classes[draw_positions(2, 0.5, 0)[0]] = {0, 1}
    one, many = (comparison(counts={"train": 2, "val": 1}, shares=(0.5,), steps=(1,), seeds=seeds) for seeds in (1, 6))
    assert list(lost_of_images(one, classes, ("bus", "cat"))) == []
    (warning,) = lost_of_images(many, classes, ("bus", "cat"))
    assert "cat" in warning and "bus" not in warning


def test_many_lost_classes_are_counted(data, tmp_path, monkeypatch):
    planned = plan_comparison(parse_config(CONFIG), data, tmp_path, Settings(TWO, (0.1,), 3))
    monkeypatch.setattr(plan, "MOST_NAMED", 0)
    assert " more" in next(iter(lost_classes(planned.comparison, planned.train)))


def test_held_out_images_are_drawn_from_train_and_val_is_not_read(data):
    section = DataConfig(held_out=0.25)
    train, val, _ = read_splits(parse_config({**CONFIG, "data": section.model_dump()}), data, "boxes")
    assert (len(train), len(val)) == (9, 3) and all("train_" in path for path in (*train.paths, *val.paths))
    assert not set(train.paths) & set(val.paths)
    assert read_evaluated(data, "val", section, "boxes", train.class_names).paths == val.paths


def test_old_config_without_held_out_images_is_read():
    assert parse_config({"data": {"held_out": False}}).data.held_out is None
    with pytest.raises(UserError, match="held_out"):
        parse_config({"data": {"held_out": True}})


def test_all_cells_are_scored_on_the_same_drawn_val(tmp_path):
    root = write_coco(tmp_path / "set", {"train": pictures(12)})
    config = parse_config({**CONFIG, "data": {"val_share": 0.25}})
    planned = plan_comparison(config, root, tmp_path / "out", Settings(TWO, (0.5, 1.0), 3, rates=(1e-3, 2e-3)))
    made = planned.comparison
    assert (made.counts, len(planned.val)) == ({"train": 9, "val": 3}, 3)
    for cell in (*made.scored_cells(), *made.rate_cells()):
        train, val, _ = read_splits(cell_config(made, cell, 1e-3), root, "boxes")
        assert not set(train.paths) & set(planned.val.paths)
        assert (val.paths == planned.val.paths) == (cell.rate is None)
        assert cell.rate is None or not set(val.paths) & {*train.paths, *planned.val.paths}


def test_run_is_no_comparison(data, tmp_path):
    (tmp_path / "format.json").write_text("{}")
    with pytest.raises(UserError, match="holds a run"):
        plan_comparison(parse_config(CONFIG), data, tmp_path, Settings(TWO, (1.0,), 3))


def test_cell_refuses_labels_and_images_that_have_changed(tmp_path, monkeypatch):
    root, output = write_coco(tmp_path / "set", {"train": pictures(8), "val": pictures(3, seed=1)}), tmp_path / "out"
    planned = plan_comparison(parse_config(CONFIG), root, output, Settings(TWO, (0.5, 1.0), 2))
    check_same_labels(planned.comparison, planned.results)
    file, image = root / "annotations" / "instances_val.json", root / "images" / "train_003.png"
    text, pixels = file.read_text(), image.read_bytes()
    content = json.loads(text)
    content["annotations"][0]["bbox"][2] -= 1
    file.write_text(json.dumps(content))
    assert "labels of val have changed" in refusal(check_same_labels, planned.comparison, planned.results).problem
    file.write_text(text)
    ImageOps.mirror(Image.open(image)).save(image)
    assert "labels of train have changed" in refusal(check_same_labels, planned.comparison, planned.results).problem
    write_comparison(output, planned.comparison)
    monkeypatch.setattr("dupr_tf.detection.finetune.finetune", lambda *_: pytest.fail("trained"))
    assert "have changed" in refusal(run_cell, output, Cell("random", 1.0, 0), 0.001).problem
    image.write_bytes(pixels)
    check_same_labels(planned.comparison, planned.results)
