"""Tests of rules between the settings of a detector: each mistake gives exactly one error."""

import pytest

from dupr_tf.config import dump_config, load_config, parse_config
from dupr_tf.errors import UserError


def config(**sections):
    values = {
        "optimizer": {"learning_rate": 0.01},
        "train": {"batch_size": 4},
        "detector": {"kind": "retinanet"},
    }
    return parse_config({name: {**values.get(name, {}), **sections.get(name, {})} for name in {*values, *sections}})


@pytest.mark.parametrize(
    ("sections", "field", "named"),
    [
        ({"detector": {"neck": "c4"}}, "detector.neck", "retinanet"),
        ({"detector": {"kind": "fcn", "neck": "c4"}}, "detector.neck", "fcn"),
        ({"detector": {"kind": "mask_rcnn"}, "data": {"kind": "voc"}}, "data.kind", "received voc"),
        ({"detector": {"kind": "fcn"}, "data": {"kind": "coco"}}, "data.kind", "masks or cityscapes"),
        ({"data": {"kind": "masks"}}, "data.kind", "received masks"),
        ({"data": {"class_names": ["sky"]}}, "data.class_names", "fcn"),
        ({"data": {"ignore_value": 11}}, "data.ignore_value", "fcn"),
        ({"detector": {"rpn_pre_nms": [10, 10]}}, "detector.rpn_pre_nms", "retinanet"),
        ({"detector": {"kind": "fcn", "rpn_post_nms": [9, 9]}}, "detector.rpn_post_nms", "fcn"),
        ({"detector": {"kind": "yolov8", "anchor_scale": 4}}, "detector.anchor_scale", "yolov8"),
        ({"detector": {"kind": "yolov8", "fpn_channels": 64}}, "detector.fpn_channels", "yolov8"),
        ({"detector": {"short_sides": [800, 640]}}, "detector.short_sides", "[640, 800]"),
        ({"detector": {"kind": "fcn", "short_sides": [640]}}, "detector.short_sides", "fcn"),
        ({"detector": {"test_short_side": 640}}, "detector.test_short_side", "640"),
        ({"detector": {"short_sides": [640], "max_long_side": 600}}, "detector.max_long_side", "640"),
        ({"optimizer": {"milestone_steps": [10]}}, "optimizer.schedule", "cosine"),
        ({"detector": {"patience": 3}}, "detector.patience", "validate_every"),
        (
            {"optimizer": {"milestone_steps": [10, 20], "schedule": "milestones"}, "train": {"max_steps": 20}},
            "optimizer.milestone_steps",
            "[10, 20]",
        ),
        ({"train": {"batch_size": 1}}, "train.batch_size", "frozen"),
        ({"train": {"jit": "on"}}, "train.jit", "auto"),
        ({"data": {"image_size": 100}}, "data.image_size", "96"),
        ({"optimizer": {"learning_rate": None}}, "optimizer.learning_rate", "0.01"),
    ],
)
def test_conflicting_settings_give_one_error(sections, field, named):
    (error,) = config(**sections).finetune_problems()
    assert error.field == field and named in str(error) and error.fix


@pytest.mark.parametrize(
    "sections",
    [
        {"detector": {"kind": "faster_rcnn", "neck": "c4", "rpn_pre_nms": [10, 10]}},
        {"detector": {"kind": "mask_rcnn", "short_sides": [480, 640], "test_short_side": 640}},
        {"detector": {"kind": "fcn", "test_short_side": 640}, "data": {"kind": "masks", "ignore_value": 11}},
        {"optimizer": {"milestone_steps": [10], "schedule": "milestones"}, "train": {"max_steps": 20}},
        {"detector": {"norm": "frozen"}, "train": {"batch_size": 1}},
        {"detector": {"kind": "yolov8", "short_sides": [480, 640]}},
    ],
)
def test_compatible_settings_are_accepted(sections):
    assert config(**sections).finetune_problems() == []


def test_kerashub_refuses_other_widths_and_sizes(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: object())
    assert config(detector={"kind": "kerashub_retinanet"}).finetune_problems() == []
    narrow = config(detector={"kind": "kerashub_retinanet", "head_channels": 64, "short_sides": [640]})
    first, second = narrow.finetune_problems()
    assert (first.field, second.field) == ("detector.head_channels", "detector.short_sides")


def test_dfine_needs_channels_for_its_attention_heads(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: object())
    assert config(detector={"kind": "kerashub_dfine", "fpn_channels": 64}).finetune_problems() == []
    odd = {"kind": "kerashub_dfine", "fpn_channels": 60, "short_sides": [640], "head_convs": 2}
    errors = config(detector=odd).finetune_problems()
    assert sorted(one.field for one in errors) == [
        "detector.fpn_channels", "detector.head_convs", "detector.short_sides",
    ]  # fmt: skip


def test_batch_not_multiple_of_devices_is_refused():
    assert config().finetune_problems(replicas=2) == []
    (problem,) = config().finetune_problems(replicas=3)
    assert problem.field == "train.batch_size" and "3 devices" in problem.problem


@pytest.mark.parametrize(
    ("sections", "field"),
    [
        ({"optimizer": {"milestones": [1], "milestone_steps": [10]}}, "optimizer.milestones"),
        ({"optimizer": {"milestone_steps": [20, 10]}}, "optimizer.milestone_steps"),
        ({"detector": {"scale_jitter": [1.5, 0.5]}}, "detector.scale_jitter"),
        ({"detector": {"validate_every": "0 epochs"}}, "detector.validate_every"),
        ({"detector": {"validate_every": True}}, "detector.validate_every"),
    ],
)
def test_contradictory_fields_are_refused(sections, field):
    with pytest.raises(UserError) as error:
        parse_config(sections)
    assert error.value.fields == (field,)


def test_validation_interval_is_in_steps_or_epochs():
    for value, steps in ((0, 0), (500, 500), ("1 epoch", 7), ("3 epochs", 21)):
        assert parse_config({"detector": {"validate_every": value}}).detector.validation_steps(7) == steps


def test_none_over_another_default_survives_the_file(tmp_path):
    for section in ({"gradient_clip": None}, {}, {"gradient_clip": 3.0}):
        before = parse_config({"detector": {"kind": "faster_rcnn", **section}})
        (tmp_path / "config.yaml").write_text(dump_config(before))
        assert load_config(tmp_path / "config.yaml") == before
