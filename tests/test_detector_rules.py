"""Which settings of a detector go together: each mistake is one line, and one only, before TensorFlow loads."""

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
    ("sections", "line"),
    [
        ({"detector": {"neck": "c4"}}, "detector.neck: expected fpn for retinanet, received c4"),
        ({"detector": {"kind": "fcn", "neck": "c4"}}, "detector.neck: expected fpn for fcn"),
        (
            {"detector": {"kind": "mask_rcnn"}, "data": {"kind": "voc"}},
            "data.kind: expected auto, coco or cityscapes for mask_rcnn (voc has no masks of objects), received voc",
        ),
        (
            {"detector": {"kind": "fcn"}, "data": {"kind": "coco"}},
            "data.kind: expected auto, masks or cityscapes for fcn (classes of pixels), received coco",
        ),
        (
            {"data": {"kind": "masks"}},
            "data.kind: expected auto, coco, voc or cityscapes for retinanet, received masks",
        ),
        ({"data": {"class_names": ["sky"]}}, "data.class_names: expected none but for detector.kind fcn"),
        ({"data": {"ignore_value": 11}}, "data.ignore_value: expected none but for detector.kind fcn"),
        ({"detector": {"rpn_pre_nms": [10, 10]}}, "detector.rpn_pre_nms: expected none for retinanet"),
        (
            {"detector": {"short_sides": [800, 640]}},
            "detector.short_sides: expected rising numbers, received [800, 640]",
        ),
        ({"detector": {"kind": "fcn", "short_sides": [640]}}, "detector.short_sides: expected none for fcn"),
        (
            {"detector": {"test_short_side": 640}},
            "detector.test_short_side: expected none without detector.short_sides",
        ),
        (
            {"detector": {"short_sides": [640], "max_long_side": 600}},
            "detector.max_long_side: expected at least the short side 640, received 600",
        ),
        (
            {"optimizer": {"milestone_steps": [10]}},
            "optimizer.schedule: expected milestones with optimizer.milestone_steps, received cosine",
        ),
        (
            {"optimizer": {"milestone_steps": [10, 20], "schedule": "milestones"}, "train": {"max_steps": 20}},
            "optimizer.milestone_steps: expected steps before train.max_steps (20), received [10, 20]",
        ),
        ({"train": {"jit": "on"}}, "train.jit: expected auto or off for a detector"),
        ({"train": {"precision": "float16"}}, "train.precision: expected float32 for a detector, received float16"),
        ({"data": {"image_size": 100}}, "data.image_size: expected a multiple of 32, received 100"),
    ],
)
def test_what_does_not_go_together_is_one_line(sections, line):
    (problem,) = config(**sections).finetune_problems()
    assert str(problem).lower().startswith(line.lower()) and problem.fix and "\n" not in str(problem)


@pytest.mark.parametrize(
    "sections",
    [
        {"detector": {"kind": "faster_rcnn", "neck": "c4", "rpn_pre_nms": [10, 10]}},
        {"detector": {"kind": "mask_rcnn", "short_sides": [480, 640], "test_short_side": 640}},
        {"detector": {"kind": "fcn", "test_short_side": 640}, "data": {"kind": "masks", "ignore_value": 11}},
        {"optimizer": {"milestone_steps": [10], "schedule": "milestones"}, "train": {"max_steps": 20}},
    ],
)
def test_what_goes_together_is_no_problem(sections):
    assert config(**sections).finetune_problems() == []


def test_kerashub_has_its_own_limits(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: object())
    assert config(detector={"kind": "kerashub_retinanet"}).finetune_problems() == []
    narrow = config(detector={"kind": "kerashub_retinanet", "head_channels": 64, "short_sides": [640]})
    first, second = narrow.finetune_problems()
    assert (first.field, second.field) == ("detector.head_channels", "detector.short_sides") and "256" in first.problem


def test_a_batch_is_for_all_devices():
    assert config().finetune_problems(replicas=2) == []
    (problem,) = config().finetune_problems(replicas=3)
    assert problem.field == "train.batch_size"


def test_milestones_are_given_once_and_in_order():
    for section, field in (
        ({"milestones": [1], "milestone_steps": [10]}, "optimizer.milestones"),
        ({"milestone_steps": [20, 10]}, "optimizer.milestone_steps"),
    ):
        with pytest.raises(UserError) as error:
            parse_config({"optimizer": section})
        assert error.value.fields == (field,)


def test_a_none_that_is_not_the_default_survives_the_file(tmp_path):
    for section in ({"gradient_clip": None}, {}, {"gradient_clip": 3.0}):
        before = parse_config({"detector": {"kind": "faster_rcnn", **section}})
        (tmp_path / "config.yaml").write_text(dump_config(before))
        assert load_config(tmp_path / "config.yaml") == before
