"""Tests of the table of detectors: every entry can be built, and its facts agree with code and config."""

import inspect

import numpy as np
import pytest

from dupr_tf.config import parse_config
from dupr_tf.config.detectors import DETECTORS
from dupr_tf.detection.registry import TASKS, build_detector, task_of
from dupr_tf.detection.task_labels import LABELS
from dupr_tf.models.resnet import build_backbone

INSTALLED = [kind for kind, entry in DETECTORS.items() if not entry.missing]
VALUES = {
    "fpn_channels": 8, "fpn_norm": False, "head_channels": 16, "head_convs": 1, "anchor_scale": 3.0, "norm": "frozen",
    "box_head_width": 24, "rois_per_image": 64, "rpn_pre_nms": (300, 200), "score_threshold": 0.25, "nms_iou": 0.6,
    "max_detections": 7,
}  # fmt: skip


@pytest.mark.parametrize("kind", INSTALLED)
def test_every_detector_is_built_with_the_fields_of_its_config(kind):
    refuses = DETECTORS[kind].facts["refuses"]
    section = {name: value for name, value in VALUES.items() if f"detector.{name}" not in refuses}
    config = parse_config({"data": {"image_size": 64}, "detector": {"kind": kind, **section}})
    backbone = build_backbone("resnet18", width=0.125, include_normalization=True)
    detector = build_detector(backbone, ["cat", "dog"], config)
    assert type(detector) is DETECTORS.load(kind)
    assert task_of(detector) == DETECTORS[kind].facts["task"] and detector.class_names == ("cat", "dog")
    assert detector.image_size == (None if kind == "fcn" else 64)
    kept = section.keys() & inspect.signature(type(detector)).parameters.keys()
    assert "norm" in kept and ("head_convs" in kept or "head_convs" not in section)
    saved = detector.get_config()
    assert {name: np.array(saved[name]).tolist() for name in kept} == {n: np.array(section[n]).tolist() for n in kept}


def test_class_derived_from_a_detector_has_its_task():
    for kind in INSTALLED:
        own = type("Own", (DETECTORS.load(kind),), {})
        assert task_of(own.__new__(own)) == DETECTORS[kind].facts["task"]


@pytest.mark.parametrize("kind", DETECTORS)
def test_facts_name_tasks_and_fields_that_exist(kind):
    facts, config = DETECTORS[kind].facts, parse_config({"detector": {"kind": kind}})
    assert facts["task"] in TASKS and TASKS.keys() == LABELS.keys() and "auto" in facts["data"]
    for data_kind in facts["data"]:
        parse_config({"data": {"kind": data_kind}})
    for field in facts["refuses"]:
        section, _, name = field.partition(".")
        assert name in type(getattr(config, section)).model_fields
