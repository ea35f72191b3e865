"""Tests of the schema, and of the files in configs/ against the table of presets (docs/method.md, Presets)."""

import math
import re
from pathlib import Path

import pytest

from dupr_tf.config import LEVELS, Config, dump_config, field_rows, load_config, parse_config
from dupr_tf.config.probing import LinearConfig
from dupr_tf.errors import UserError
from tests.refusals import refusal

ELSEWHERE = ("detectron2", "detection", "cluster")  # these have separate tests
CONFIGS = sorted(path for path in Path("configs").rglob("*.yaml") if path.parent.name not in ELSEWHERE)
GRADED, NONE, LAST = (0.1, 0.4, 0.7, 1.0), (0, 0, 0, 0), (0, 0, 0, 1)
PAPER = {  # file: alpha, beta, head, photometric, tau, rate, schedule, epochs
    "dupr_r50_imagenet_200ep": (GRADED, (0, 0, 1, 1), "mlp", "moco_v2", 0.2, 0.06, "cosine", 200),
    "moco_v2_r50_imagenet_200ep": (LAST, NONE, "mlp", "moco_v2", 0.2, 0.03, "epoch", 200),
    "paper/moco_v1": (LAST, NONE, "linear", "moco_v1", 0.07, 0.03, "milestones", 200),
    "paper/moco_v2_800ep": (LAST, NONE, "mlp", "moco_v2", 0.2, 0.03, "epoch", 800),
    "paper/dupr_800ep": (GRADED, (0, 0, 1, 1), "mlp", "moco_v2", 0.2, 0.06, "cosine", 800),
    "paper/dupr_coco_2000ep": (GRADED, (0, 0, 1, 1), "mlp", "moco_v2", 0.2, 0.06, "cosine", 2000),
    "paper/moco_v2_coco_2000ep": (LAST, NONE, "mlp", "moco_v2", 0.2, 0.03, "epoch", 2000),
    "paper/tab1_a0001": (LAST, NONE, "mlp", "moco_v2", 0.2, 0.03, "cosine", 200),
    "paper/tab1_a0011": ((0, 0, 1, 1), NONE, "mlp", "moco_v2", 0.2, 0.03, "cosine", 200),
    "paper/tab1_a1111": ((1, 1, 1, 1), NONE, "mlp", "moco_v2", 0.2, 0.03, "cosine", 200),
    "paper/tab1_a_graded": (GRADED, NONE, "mlp", "moco_v2", 0.2, 0.03, "cosine", 200),
    "paper/tab2a_s3": (GRADED, LAST, "mlp", "moco_v2", 0.2, 0.03, "cosine", 200),
    "paper/tab2a_s7": (GRADED, LAST, "mlp", "moco_v2", 0.2, 0.03, "cosine", 200),
    "paper/tab2b_b0011": (GRADED, (0, 0, 1, 1), "mlp", "moco_v2", 0.2, 0.03, "cosine", 200),
    "paper/tab2c_patch": (NONE, LAST, "mlp", "moco_v2", 0.2, 0.03, "cosine", 200),
}


@pytest.mark.parametrize("path", CONFIGS, ids=str)
def test_every_file_loads_and_starts_with_a_header(path):
    config = load_config(path)
    problems = config.pretrain_problems() if config.detector is None else config.finetune_problems()
    assert problems == []
    header = [line for line in path.read_text().splitlines() if line.startswith("#")]
    assert re.search(r"Expected|expected", " ".join(header)), "a header says what to expect"
    assert re.search(r"(Command|command|Run).*:", " ".join(header)), "a header gives the command"


@pytest.mark.parametrize("name", PAPER)
def test_presets_have_the_papers_settings(name):
    config = load_config(Path("configs") / f"{name}.yaml")
    model = config.model
    resolved = (
        model.image_weights, model.patch_weights, model.head, config.views.photometric, model.temperature,
        config.learning_rate, config.optimizer.schedule, config.train.epochs,
    )  # fmt: skip
    assert resolved == PAPER[name]
    assert model.roi_sizes == (56, 28, 14, 3 if name.endswith("s3") else 7)
    assert (model.embedding_dim, model.bank_size, model.momentum, model.patch_keys_per_image) == (
        128,
        65536,
        0.999,
        4,
    )
    assert (config.train.batch_size, config.train.micro_batches) == (256, 8)
    assert (config.optimizer.momentum, config.optimizer.weight_decay) == (0.9, 1e-4)


def test_defaults_are_the_papers():
    assert (
        Config().model_dump()
        == load_config("configs/dupr_r50_imagenet_200ep.yaml")
        .model_copy(update={"train": Config().train, "optimizer": Config().optimizer})
        .model_dump()
    )
    assert Config().learning_rate == pytest.approx(0.06)
    assert parse_config({"train": {"batch_size": 64}}).learning_rate == pytest.approx(0.015)


@pytest.mark.parametrize("path", CONFIGS, ids=str)
def test_resolved_config_reads_back_as_itself(path, tmp_path):
    config = load_config(path)
    (tmp_path / "c.yaml").write_text(dump_config(config))
    assert load_config(tmp_path / "c.yaml") == config


def test_every_field_is_listed_for_help():
    names = [row[0] for row in field_rows()]
    assert len(names) == len(set(names)) and "detector.kind" in names and "model.temperature" in names


def test_steps():
    config = parse_config({"train": {"batch_size": 64, "epochs": 3}})
    assert (config.steps_per_epoch(200), config.total_steps(200)) == (3, 9)
    assert config.steps_per_epoch(10) == 1
    assert parse_config({"train": {"max_steps": 5}}).total_steps(10**6) == 5


@pytest.mark.parametrize(
    "replicas, groups, ok", [(1, 8, True), (2, 8, True), (8, 8, True), (2, 1, False), (3, 8, False)]
)
def test_groups_divide_over_replicas(replicas, groups, ok):
    config = parse_config({"train": {"micro_batches": groups}})
    assert (config.pretrain_problems(replicas) == []) == ok


@pytest.mark.parametrize("replicas, fields", [(1, ()), (2, ("train.jit",))])
def test_xla_on_several_devices_is_refused(replicas, fields):
    problems = parse_config({"train": {"jit": "on"}}).pretrain_problems(replicas)
    assert tuple(problem.field for problem in problems) == fields


def test_every_patch_term_of_a_level_is_checked():
    terms = [{"kind": "patch_contrast", "name": name, "size": size} for name, size in (("a", 50), ("b", 7))]
    for order in (terms, terms[::-1]):
        (problem,) = parse_config({"model": {"terms": order}}).pretrain_problems(1)
        assert problem.field == "model.terms" and "received 50" in problem.problem


def test_views_of_an_odd_side_are_refused():
    (problem,) = parse_config({"data": {"image_size": 240}}).pretrain_problems(1)
    assert problem.field == "data.image_size" and problem.fix == "Use 256."


def test_sides_of_feature_maps_are_rounded_up():
    config = parse_config({"data": {"image_size": 200}})
    assert [config.level_size(level) for level in LEVELS] == [50, 25, 13, 7]


def test_config_above_a_megabyte_is_not_read(tmp_path):
    (tmp_path / "c.yaml").write_bytes(b"# " + b"x" * (1 << 21))
    with pytest.raises(UserError) as error:
        load_config(tmp_path / "c.yaml")
    assert error.value.field == "config" and str(1 << 20) in error.value.problem
    (tmp_path / "c.yaml").write_bytes(b"# " + b"x" * ((1 << 20) - 2))
    assert load_config(tmp_path / "c.yaml") == Config()


@pytest.mark.parametrize("written, interval", [(500, 500), ("30s", 30.0), ("10min", 600.0), ("2 h", 7200.0)])
def test_checkpoints_by_steps_or_time(written, interval):
    config = parse_config({"train": {"checkpoint_every": written}})
    assert config.train.checkpoint_interval == interval
    assert type(config.train.checkpoint_interval) is type(interval)


@pytest.mark.parametrize("written", [0, -3, 2.5, True, "0min", "10minutes", "min", [500]])
def test_other_intervals_are_refused(written):
    with pytest.raises(UserError) as error:
        parse_config({"train": {"checkpoint_every": written}})
    assert error.value.fields == ("train.checkpoint_every",) and repr(written) in error.value.problem


@pytest.mark.parametrize(
    "values, field",
    [
        ({"views": {"crop_area": (0.5, 2)}}, "views.crop_area"),
        ({"views": {"crop_aspect": (2, 1)}}, "views.crop_aspect"),
        ({"optimizer": {"milestones": (1,), "milestone_steps": (1,)}}, "optimizer.milestones"),
        ({"optimizer": {"milestone_steps": (2, 2)}}, "optimizer.milestone_steps"),
        ({"model": {"image_weights": (1, 1, 1)}}, "model.image_weights"),
        ({"model": 3}, "model"),
        ({"train": {"epochs": 2.5}}, "train.epochs"),
    ],
)
def test_error_names_the_dotted_field(values, field):
    with pytest.raises(UserError) as error:
        parse_config(values)
    assert error.value.fields == (field,)


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("[no, yes, off]", ("no", "yes", "off")),
        ("[0, 1]", ("0", "1")),
        ("[010, 1:30, 2024-01-01, 1e5]", ("010", "1:30", "2024-01-01", "1e5")),
        ("[' car ']", ("car",)),
    ],
)
def test_class_names_stay_as_written(tmp_path, text, names):
    config = load_config(None, {"data.class_names": text})
    assert config.data.class_names == names
    (tmp_path / "c.yaml").write_text(dump_config(config))
    assert load_config(tmp_path / "c.yaml") == config


@pytest.mark.parametrize(("text", "shown"), [("[true, a]", "True"), ("[a, 1.5]", "1.5"), ("[null]", "None")])
def test_class_names_that_are_no_text_are_refused(text, shown):
    error = refusal(load_config, None, {"data.class_names": text})
    assert error.field.startswith("data.class_names") and shown in error.problem


def test_flags_of_yaml_1_1_set_fields_that_are_flags():
    config = load_config(None, {"data.background": "yes", "detector.fpn_norm": "off", "train.jit": "on"})
    assert (config.data.background, config.detector.fpn_norm, config.train.jit) == (True, False, "on")


def schedule(images, **sections):
    train = {"batch_size": 8, "micro_batches": 1, "epochs": 2}
    return parse_config({"train": train, **sections}).schedule_warnings(images)


@pytest.mark.parametrize(("optimizer", "fields"), [
    ({"warmup_steps": 19}, []),
    ({"warmup_steps": 20}, ["optimizer.warmup_steps"]),
    ({"schedule": "milestones", "milestones": [1]}, []),
    ({"schedule": "milestones", "milestones": [1, 2]}, ["optimizer.milestones"]),
    ({"schedule": "milestones", "milestone_steps": [5, 40]}, ["optimizer.milestone_steps"]),
    ({"schedule": "milestones"}, ["optimizer.milestones"]),
])  # fmt: skip
def test_schedule_past_the_end_is_warned_of(optimizer, fields):
    warnings = schedule(80, optimizer=optimizer)  # 20 steps
    assert [warning.partition(":")[0] for warning in warnings] == fields


def test_milestones_past_the_end_of_a_linear_probe_are_warned_of():
    assert LinearConfig(epochs=10, milestones=(6, 9)).warnings() == []
    (warning,) = LinearConfig(epochs=10, milestones=(6, 10, 20)).warnings()
    assert warning.startswith("linear.milestones") and "10, 20" in warning


def test_guessing_loss_weighs_the_terms():
    model = {"bank_size": 255, "image_weights": [0, 0, 0, 1], "patch_weights": [0, 0, 0.5, 0.5]}
    assert parse_config({"model": model}).model.guessing_loss == pytest.approx(2 * math.log(256))
    summed = parse_config({"model": {**model, "patch_reduction": "sum"}}).model
    assert summed.guessing_loss == pytest.approx((1 + 0.5 * 196 + 0.5 * 49) * math.log(256))
    assert summed.main_terms == ["image_P5", "patch_P5"]


@pytest.mark.parametrize("field, value", [("milestones", "[8, 11]"), ("milestone_steps", "[5, 9]")])
@pytest.mark.parametrize("path", ["configs/dupr_r18_small.yaml", "configs/retinanet_r18_small.yaml"])
def test_milestones_need_their_schedule(path, field, value):
    config = load_config(path, {f"optimizer.{field}": value})
    problems = config.finetune_problems() if config.detector else config.pretrain_problems()
    assert [problem.field for problem in problems] == ["optimizer.schedule"]


def test_text_of_an_override_is_kept_whole():
    assert load_config(None, {"probing.data": "/photos/set #2"}).probing.data == "/photos/set #2"
    assert load_config(None, {"probing.data": "'a #b'"}).probing.data == "a #b"
    assert load_config(None, {"probing.data": "#2"}).probing.data == "#2"


def test_override_does_not_hide_a_wrong_section(tmp_path):
    (tmp_path / "c.yaml").write_text("model: resnet18\n")
    with pytest.raises(UserError, match=r"^model: Expected fields with their values, received .resnet18"):
        load_config(tmp_path / "c.yaml", {"model.width": "0.5"})
    (tmp_path / "c.yaml").write_text("model:\n")
    assert load_config(tmp_path / "c.yaml", {"model.width": "0.5"}).model.width == 0.5
