"""Tests one command with every kind of detector, from end to end, on a few tiny pictures."""

import json

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image
from rich.console import Console

from dupr_tf.commands.evaluate import print_scores
from dupr_tf.config import parse_config
from dupr_tf.config.detectors import DETECTORS
from dupr_tf.detection.finetune import evaluate, finetune
from dupr_tf.detection.registry import task_of
from dupr_tf.detection.saving import load_detector
from tests.labelled_scenes import NAMES, draw, pictures, with_polygons, write_coco, write_masks, write_voc
from tests.refusals import refusal

QUIET = Console(quiet=True)
SMALL = {
    "fpn_channels": 8,
    "head_channels": 8,
    "head_convs": 1,
    "score_threshold": 0.001,
    "max_detections": 10,
    "short_sides": [64, 96],
}
RCNN = {"box_head_width": 16, "rpn_pre_nms": [50, 30], "rpn_post_nms": [20, 10], "rois_per_image": 8}


def config(data=None, train=None, **detector):
    return parse_config(
        {
            "data": {"image_size": 64, **(data or {})},
            "model": {"backbone": "resnet18", "width": 0.125},
            "optimizer": {"learning_rate": 0.01, "warmup_steps": 2},
            "train": {"batch_size": 2, "max_steps": 2, "log_every": 1, "seed": 5, **(train or {})},
            "detector": {**SMALL, **detector},
        }
    )


@pytest.fixture(scope="module")
def splits():
    return {"train": pictures(6), "val": pictures(3, seed=1)}


def logged(output):
    return [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]


def check_run(metrics, output, kind):
    """Checks what holds for every kind: the files, and that the named losses add up."""
    assert json.loads((output / "metrics.json").read_text()) == metrics and metrics["detector"] == kind
    entries = logged(output)
    assert [entry["step"] for entry in entries] == [1, 2]
    for entry in entries:
        parts = [value for name, value in entry.items() if name.endswith("_loss")]
        assert np.isfinite(entry["loss"]) and (not parts or entry["loss"] == pytest.approx(sum(parts), rel=1e-3))
    assert task_of(load_detector(output)) == DETECTORS[kind].facts["task"]


@pytest.mark.slow
def test_fcn_trains_on_a_folder_of_masks(splits, tmp_path, capsys):
    root = write_masks(tmp_path / "set", splits)
    names = ["ground", *NAMES]
    data = {"kind": "masks", "class_names": names, "ignore_value": 7, "share": 0.5, "share_seed": 3}
    settings = config(data, kind="fcn", short_sides=None, precise_bn_images=4, scale_jitter=[0.5, 2])
    metrics = finetune(settings, "random", root, tmp_path / "out", console=QUIET)
    check_run(metrics, tmp_path / "out", "fcn")
    assert set(metrics["per_class"]) == set(names) and 0 <= metrics["mIoU"] <= metrics["pixel_accuracy"] <= 1
    assert metrics["precise_bn_batches"] == 2 and metrics["train_images"] == 3
    assert len((tmp_path / "out" / "image_ids.txt").read_text().split()) == 3
    assert (tmp_path / "out" / "segments.png").stat().st_size > 1000
    again = evaluate(tmp_path / "out", root, tmp_path / "again")
    assert {name: again[name] for name in ("mIoU", "pixel_accuracy", "per_class")} == {
        name: metrics[name] for name in ("mIoU", "pixel_accuracy", "per_class")
    }
    print_scores(again, None)
    assert capsys.readouterr().out.startswith("mIoU 0.")
    served = tf.saved_model.load(str(tmp_path / "out" / "saved_model"))
    image = draw(splits["val"][0])
    assert served.serve(tf.constant(image[None]))["segments"].shape == (1, *image.shape[:2])


@pytest.mark.slow
@pytest.mark.parametrize("neck", ["fpn", "c4"])
def test_mask_rcnn_measures_boxes_and_masks(splits, tmp_path, neck, capsys):
    root = with_polygons(write_coco(tmp_path / "set", splits))
    settings = config(kind="mask_rcnn", neck=neck, precise_bn_images=2, **RCNN)
    metrics = finetune(settings, "random", root, tmp_path / "out", console=QUIET)
    check_run(metrics, tmp_path / "out", "mask_rcnn")
    assert "mask_loss" in logged(tmp_path / "out")[0] and metrics["precise_bn_batches"] == 1
    assert 0 <= metrics["masks"]["AP50"] <= 1 and "voc_area" not in metrics
    again = evaluate(tmp_path / "out", root)
    assert (again["AP"], again["masks"]["AP"]) == (metrics["AP"], metrics["masks"]["AP"])
    print_scores(again, None)
    assert "\nmasks: AP 0." in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["faster_rcnn", "retinanet"])
def test_voc_data_gets_metrics_of_voc_too(splits, tmp_path, kind):
    root = write_voc(tmp_path / "set", splits)
    rcnn = RCNN if kind == "faster_rcnn" else {}
    metrics = finetune(config(kind=kind, norm="sync", **rcnn), "random", root, tmp_path / "out", console=QUIET)
    check_run(metrics, tmp_path / "out", kind)
    for name in ("voc_11_point", "voc_area"):
        assert set(metrics[name]) == {"AP", "AP50", "AP75"}
    assert load_detector(tmp_path / "out").image_size is None
    assert (tmp_path / "out" / "precision_recall.png").stat().st_size > 1000
    assert not (tmp_path / "out" / "image_ids.txt").exists()


def test_data_of_another_task_is_refused_first(splits, tmp_path):
    coco = write_coco(tmp_path / "coco", splits)
    masks = write_masks(tmp_path / "masks", splits)
    cases = [
        (config(kind="mask_rcnn"), coco, "mask"),
        (config(kind="fcn", short_sides=None), coco, "masks of classes are needed"),
        (config(kind="faster_rcnn"), masks, "boxes of objects are needed"),
        (config({"class_names": ["a", "b"]}, kind="fcn", short_sides=None), masks, "0, 1, 255"),
    ]
    for settings, root, named in cases:
        assert named in refusal(finetune, settings, "random", root, tmp_path / "out", console=QUIET).problem
        assert not (tmp_path / "out").exists()


def test_val_whose_masks_have_no_class_is_refused(splits, tmp_path):
    root = write_masks(tmp_path / "masks", splits)
    for mask in (root / "val" / "masks").iterdir():
        Image.fromarray(np.full_like(np.asarray(Image.open(mask)), 255)).save(mask)
    error = refusal(finetune, config(kind="fcn", short_sides=None), "random", root, tmp_path / "out", console=QUIET)
    assert "No mask of the split val" in error.problem and not (tmp_path / "out").exists()
