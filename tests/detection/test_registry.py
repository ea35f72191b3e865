"""Tests of the table of detectors: every entry can be built, and its facts agree with code and config."""

import pytest

from dupr_tf.config import parse_config
from dupr_tf.config.detectors import DETECTORS
from dupr_tf.detection.registry import TASKS, build_detector, task_of
from dupr_tf.detection.task_labels import LABELS
from dupr_tf.models.resnet import build_backbone

INSTALLED = [kind for kind, entry in DETECTORS.items() if not entry.missing]


@pytest.mark.parametrize("kind", INSTALLED)
def test_every_detector_is_built_from_a_config(kind):
    section = {"kind": kind, "fpn_channels": 8, "score_threshold": 0.25}
    taken = "detector.head_convs" not in DETECTORS[kind].facts["refuses"]
    section |= {"head_convs": 1} if taken else {}
    config = parse_config({"data": {"image_size": 64}, "detector": section})
    backbone = build_backbone("resnet18", width=0.125, include_normalization=True)
    detector = build_detector(backbone, ["cat", "dog"], config)
    assert type(detector) is DETECTORS.load(kind)
    assert task_of(detector) == DETECTORS[kind].facts["task"] and detector.class_names == ("cat", "dog")
    assert not taken or detector.head_convs == 1
    assert detector.image_size == (None if kind == "fcn" else 64)


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
