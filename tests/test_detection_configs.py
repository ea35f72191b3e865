"""Tests of configs/detection: files can run, lower their rate in time, and match their twins in configs/detectron2."""

import importlib.util
import re
from pathlib import Path

import pytest
import yaml

from dupr_tf.config import load_config
from dupr_tf.config.detectors import DETECTORS
from dupr_tf.training.optimizers import planned_schedule

ROOT = Path(__file__).resolve().parents[1]
FILES = sorted((ROOT / "configs" / "detection").glob("*.yaml"))
PAPER = [path for path in FILES if not path.name.startswith("small_")]
SMALL = [path for path in FILES if path not in PAPER]
TWINS = {path.stem: path for path in (ROOT / "configs" / "detectron2").glob("*.yaml") if "base" not in path.stem}
COCO_IMAGES = 117_266  # images of train2017 with boxes
named = {"ids": lambda path: path.stem}


def detectron2(path):
    """Returns the settings of a detectron2 config merged over those of its bases."""
    values = yaml.safe_load(path.read_text())
    base = values.pop("_BASE_", None)
    return merged(detectron2(path.parent / base), values) if base else values


def merged(below, above):
    nested = {name: merged(below.get(name, {}), value) for name, value in above.items() if isinstance(value, dict)}
    return {**below, **above, **nested}


@pytest.mark.parametrize("path", FILES, **named)
def test_recipe_can_be_run_and_its_header_shows_how(path):
    config, head = load_config(path), path.read_text()
    problems = config.finetune_problems()
    if config.detector.kind.startswith("kerashub") and importlib.util.find_spec("keras_hub") is None:
        assert [problem.field for problem in problems] == ["detector.kind"]
    else:
        assert problems == []
    assert f"finetune configs/detection/{path.name} --weights" in head and "# Cost: " in head and "Expected" in head


@pytest.mark.parametrize("path", PAPER, **named)
def test_paper_recipe_names_its_row_and_was_not_run(path):
    head = path.read_text()
    assert re.search(r"^# .*(Tables?|Figs?\.) ", head) and "not run here" in head
    assert load_config(path).model.backbone == "resnet50"


@pytest.mark.parametrize("path", PAPER, **named)
def test_learning_rate_changes_at_the_right_steps(path):
    config = load_config(path)
    steps, peak, warmup = config.train.max_steps, config.optimizer.learning_rate, config.optimizer.warmup_steps
    images = max(1, round(COCO_IMAGES * config.data.share))
    assert config.total_steps(images) == steps
    schedule, falls = planned_schedule(config, images), config.optimizer.milestone_steps
    assert float(schedule(0)) == pytest.approx(peak / max(1, warmup))
    for number, step in enumerate(falls):
        assert float(schedule(step - 1)) == pytest.approx(peak * 0.1**number, rel=1e-5)
        assert float(schedule(step)) == pytest.approx(peak * 0.1 ** (number + 1), rel=1e-5)
    assert float(schedule(steps - 1)) == pytest.approx(peak * 0.1 ** len(falls), rel=1e-5)


def test_all_recipes_but_the_fcn_have_detectron2_twins():
    assert {path.stem for path in PAPER} - set(TWINS) == {"cityscapes_fcn_90k"}
    assert set(TWINS) <= {path.stem for path in PAPER}


@pytest.mark.parametrize("name", sorted(TWINS))
def test_recipe_has_the_protocol_of_its_twin(name):
    config, twin = load_config(ROOT / "configs" / "detection" / f"{name}.yaml"), detectron2(TWINS[name])
    solver, inputs, model, detector = twin["SOLVER"], twin["INPUT"], twin["MODEL"], config.detector
    assert (config.train.batch_size, config.train.max_steps) == (solver["IMS_PER_BATCH"], solver["MAX_ITER"])
    assert (config.optimizer.learning_rate, list(config.optimizer.milestone_steps)) == (
        solver["BASE_LR"],
        solver["STEPS"],
    )
    assert config.optimizer.warmup_steps == solver.get("WARMUP_ITERS", 1000)  # detectron2's default
    assert list(detector.short_sides) == inputs["MIN_SIZE_TRAIN"]
    assert (detector.side_at_test, detector.max_long_side) == (
        inputs["MIN_SIZE_TEST"],
        inputs.get("MAX_SIZE_TRAIN", 1333),
    )
    kind = "retinanet" if model["META_ARCHITECTURE"] == "RetinaNet" else "faster_rcnn"
    assert detector.kind == ("mask_rcnn" if model.get("MASK_ON") else kind)
    assert detector.neck == ("fpn" if "FPN" in model else "c4")
    assert detector.norm == "sync" and model["RESNETS"]["NORM"] == "SyncBN" and detector.gradient_clip is None
    assert (detector.precise_bn_images > 0) == twin["TEST"]["PRECISE_BN"]["ENABLED"]
    share = re.search(r"_(\d+)pct_seed(\d)$", twin["DATASETS"]["TRAIN"][0])
    expected = (int(share[1]) / 100, int(share[2])) if share else (1.0, 0)
    assert (config.data.share, config.data.share_seed) == expected


def test_small_recipes_cover_every_kind_and_neck():
    covered = {(config.detector.kind, config.detector.neck) for config in map(load_config, SMALL)}
    rcnn = {(kind, neck) for kind in ("faster_rcnn", "mask_rcnn") for neck in ("fpn", "c4")}
    assert covered == rcnn | {(kind, "fpn") for kind in DETECTORS if not kind.endswith("rcnn")}
    assert all(
        config.data.image_size <= 256 and config.model.backbone == "resnet18" for config in map(load_config, SMALL)
    )
