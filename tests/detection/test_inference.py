"""Tests saved detectors of every kind on photos of any size, from Python and by `dupr-tf predict`."""

import keras
import numpy as np
import pytest
from PIL import Image
from rich.console import Console

import dupr_tf
from dupr_tf.cli import main
from dupr_tf.config import parse_config
from dupr_tf.data.boxes import box_ious
from dupr_tf.data.images.decode import Unusable
from dupr_tf.data.labels.annotations import read_annotations
from dupr_tf.detection.finetune import evaluate, finetune
from dupr_tf.detection.outputs import COCO_FILE
from dupr_tf.detection.predictions import detect
from dupr_tf.detection.registry import build_detector, task_of
from dupr_tf.detection.saving import save_detector
from dupr_tf.models.resnet import build_backbone
from tests.detection.test_finetune_kinds import RCNN, SMALL
from tests.labelled_scenes import NAMES, pictures, write_coco, write_masks
from tests.refusals import refusal

SQUARE = {"short_sides": None}
KINDS = {
    "retinanet": {**SQUARE, "anchor_scale": 2},
    "faster_rcnn": {"neck": "c4", **RCNN},
    "mask_rcnn": RCNN,
    "fcn": {**SQUARE, "test_short_side": 64},
}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_coco(tmp_path_factory.mktemp("data") / "set", {"val": pictures(5, seed=1)})


@pytest.fixture(
    scope="module", params=["retinanet", *(pytest.param(kind, marks=pytest.mark.slow) for kind in list(KINDS)[1:])]
)
def saved(request, tmp_path_factory):
    """Returns the file of a detector with random weights."""
    section = {"kind": request.param, **SMALL, **KINDS[request.param]}
    config = parse_config({"data": {"image_size": 64}, "detector": section})
    backbone = build_backbone("resnet18", width=0.125, include_normalization=True)
    path = tmp_path_factory.mktemp(request.param) / "detector.keras"
    save_detector(build_detector(backbone, NAMES, config), path)
    return path


@pytest.fixture(scope="module")
def detector(saved):
    return dupr_tf.Detector(saved)


def test_boxes_are_in_pixels_of_photos_of_any_size(detector, tmp_path):
    rng = np.random.default_rng(0)
    sizes = [(300, 120), (33, 47), (1, 1), (100, 100)]
    arrays = [rng.integers(0, 255, (*size, 3)).astype(np.uint8) for size in sizes]
    paths = [tmp_path / f"{k}.png" for k in range(len(sizes))]
    for path, array in zip(paths, arrays, strict=True):
        Image.fromarray(array).save(path)
    found = detector.predict(arrays, batch_size=2)
    for other in (detector.predict(paths, batch_size=2), detector.predict(map(Image.open, paths), batch_size=2)):
        for one, two in zip(found, other, strict=True):
            np.testing.assert_array_equal(one.boxes, two.boxes)
            assert one.names == two.names
    for one, size in zip(found, sizes, strict=True):
        assert one.size == size
        assert len(one.boxes) == len(one.scores) == len(one.classes) == len(one.names)
        assert (one.boxes >= 0).all() and (one.boxes <= [size[1], size[0]] * 2).all()
        assert one.names == tuple(NAMES[k] for k in one.classes)
        assert (one.masks is None) == (detector.task != "masks")
        assert one.masks is None or (one.masks.shape == (len(one.boxes), *size) and one.masks.dtype == bool)
        assert (one.segments is None) == (detector.task != "segments")
        assert one.segments is None or (one.segments.shape == size and one.segments.max() < len(NAMES))
    assert detector.task == "segments" or sum(len(one.boxes) for one in found)
    single = detector.predict(arrays[0])
    np.testing.assert_allclose(single.boxes, found[0].boxes, atol=0.05)


def test_detections_of_files_equal_those_of_evaluation(detector, data):
    if detector.task == "segments":
        pytest.skip("boxes only")
    annotated = read_annotations(data, "val")
    expected = detect(detector.model, annotated, batch_size=1)  # in a batch, scores depend on the padding
    for one, other in zip(detector.predict(annotated.paths, batch_size=1), expected, strict=True):
        np.testing.assert_allclose(one.scores, other["scores"], atol=1e-4)
        np.testing.assert_allclose(one.boxes, other["boxes"], atol=0.05)


def test_keras_model_takes_images_of_any_size(saved):
    model = dupr_tf.load_detector(saved)
    for size in ((97, 131), (64, 64), (40, 33)):
        photo = np.full((1, *size, 3), 90, np.uint8)
        model(photo)
        result = model.predict_on_batch(photo)
        if task_of(model) == "segments":
            assert result.shape == (1, *size)
        else:
            count = result["num_detections"][0]
            assert (result["boxes"][0, :count] <= [size[1], size[0]] * 2).all()


def test_threshold_applies_to_a_model_that_has_predicted(saved):
    model = dupr_tf.load_detector(saved)
    photo = np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)
    found = dupr_tf.Detector(model).predict(photo)
    if dupr_tf.Detector(model).task == "segments":
        pytest.skip("boxes only")
    score = float(np.sort(found.scores)[len(found.scores) // 2])
    fewer = dupr_tf.Detector(model, min_score=score).predict(photo)
    assert 0 < len(fewer.scores) < len(found.scores) and fewer.scores.min() >= score


def test_unusable_images_are_refused_or_yielded(detector, tmp_path):
    grey = np.zeros((40, 30), np.uint8)
    assert detector.predict(grey).size == (40, 30)
    deep = Image.fromarray(np.full((20, 30), 300, np.uint16))
    assert detector.predict(deep).size == (20, 30)
    empty, alpha, floats = (np.zeros(shape, np.uint8) for shape in ((0, 9, 3), (9, 9, 4), (9, 9, 3)))
    bad = (empty, alpha, floats.astype(np.float32), tmp_path / "none.jpg")
    for image in bad:
        assert refusal(detector.predict, [grey, image]).field == "images"
    kinds = {number: type(one) for number, one in detector.stream([*bad, grey], batch_size=4)}
    assert [kinds[number] for number in range(4)] == [Unusable] * 4 and kinds[4] is not Unusable


def test_size_and_least_score_can_be_chosen(saved, monkeypatch):
    photo = np.random.default_rng(0).integers(0, 255, (90, 70, 3)).astype(np.uint8)
    larger, seen = dupr_tf.Detector(saved, image_size=96), []
    square, step = larger.model.image_size is not None, larger.model.predict_on_batch
    monkeypatch.setattr(
        larger.model, "predict_on_batch", lambda batch: seen.append(batch["images"].shape) or step(batch)
    )
    larger.predict(photo)
    assert seen == [(1, 96, 96, 3) if square else (1, 128, 96, 3)]
    if larger.task != "segments":
        scores = dupr_tf.Detector(saved, min_score=0.0).predict(photo).scores
        least = float(np.median(scores))
        assert dupr_tf.Detector(saved, min_score=least).predict(photo).scores.min() >= np.float32(least)
        best = dupr_tf.Detector(saved, min_score=0.0, one_class_per_box=True).predict(photo)
        assert 0 < len(best.scores) <= len(scores)
        overlaps = np.triu(box_ious(best.boxes, best.boxes), 1)
        assert overlaps.max(initial=0) < larger.model.nms_iou
    assert refusal(dupr_tf.Detector, larger.model, min_score="suggested").field == "min_score"
    assert not square or refusal(dupr_tf.Detector, saved, image_size=100).field == "image_size"


def test_command_predicts_every_kind(saved, data, tmp_path, capsys):
    arguments = ["predict", str(saved), "--images", str(data / "images"), "--output", str(tmp_path / "out")]
    assert main([*arguments, "--pictures", "2"]) == 0
    assert len(list((tmp_path / "out" / "pictures").iterdir())) == 2
    assert "5 images" in capsys.readouterr().out
    assert main(arguments) == 0 and main([*arguments, "--image-size", "96"]) == 2


def test_evaluation_at_another_size_names_its_limits(saved, data):
    if "retinanet" not in str(saved.parent) and "faster" not in str(saved.parent):
        pytest.skip("the labels are boxes")
    scores = evaluate(saved, data, image_size=96)
    assert scores["limits"]["max_detections"] == 10 and scores["confusion"]
    assert 96 in (scores["limits"].get("image_size"), scores["limits"].get("test_short_side"))


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["retinanet", "fcn"])
def test_predictions_can_be_labels_for_finetune(kind, tmp_path):
    images = write_masks(tmp_path / "set", {"train": pictures(4), "val": pictures(2, seed=1)})
    section = {"kind": kind, **SMALL, **KINDS[kind]}
    values = {"data": {"image_size": 64}, "model": {"backbone": "resnet18", "width": 0.125}, "detector": section}
    config = parse_config({**values, "optimizer": {"learning_rate": 0.01}, "train": {"batch_size": 2, "max_steps": 1}})
    keras.utils.set_random_seed(0)  # not every teacher predicts all classes
    backbone = build_backbone("resnet18", width=0.125, include_normalization=True)
    teacher = build_detector(backbone, NAMES, config)
    if kind == "fcn":  # spread the logits, so that it predicts several classes
        for layer in teacher.class_layers():
            layer.kernel.assign(100 * layer.kernel)
    save_detector(teacher, tmp_path / "detector.keras")
    for split in ("train", "val"):
        arguments = [str(tmp_path / "detector.keras"), "--images", str(images / split / "images")]
        arguments += ["--min-score", "0"] if kind == "retinanet" else []
        assert main(["predict", *arguments, "--output", str(tmp_path / split)]) == 0
    student = tmp_path / "train"
    (student / "images" / "val").symlink_to(images / "val" / "images")
    if kind == "fcn":
        (student / "masks" / "val").symlink_to(tmp_path / "val" / "masks" / "train")
    else:
        labels = (tmp_path / "val" / COCO_FILE).read_text()
        (student / "annotations" / "instances_val.json").write_text(labels)
    metrics = finetune(config, "random", student, tmp_path / "out", console=Console(quiet=True))
    assert (metrics["train_images"], metrics["val_images"]) == (4, 2)
    assert set(metrics["per_class"]) == set(NAMES)
