"""Tests of fine-tuning from end to end, and of its errors."""

import contextlib
import json
import os
import shutil
import signal

import keras
import numpy as np
import pytest
import tensorflow as tf
from rich.console import Console

from dupr_tf.cli import main
from dupr_tf.commands.evaluate import print_scores
from dupr_tf.config import dump_config, load_config, parse_config
from dupr_tf.data.inspection import count_boxes
from dupr_tf.data.labels.annotations import read_annotations
from dupr_tf.detection.continuing import copy_weights
from dupr_tf.detection.finetune import evaluate, finetune
from dupr_tf.detection.predictions import detect
from dupr_tf.detection.registry import build_detector
from dupr_tf.detection.saving import load_detector
from dupr_tf.detection.task_labels import labels_entry
from dupr_tf.detection.training import detector_optimizer
from dupr_tf.detection.validation import ValidateDetector
from dupr_tf.errors import RunFailed, UserError
from dupr_tf.files import plain_alias
from dupr_tf.models.resnet import build_backbone
from dupr_tf.training.callbacks import StopOnNonFinite
from dupr_tf.training.checkpoints import state_of
from dupr_tf.training.optimizers import CoupledSGD
from tests.detection.detector_run import dataset
from tests.finetune_kill_test import end_of, weights_digest
from tests.labelled_scenes import NAMES, Picture, pictures, write_coco
from tests.odd_names import ODD, odd_name
from tests.refusals import refusal

FOLDER = ODD.replace("\n", "")  # messages name it, and are one line
QUIET = Console(quiet=True)
FALLING = (0.9, 0.8, 0.7)  # scores of the validations of `validated`


def config(**sections):
    values = {
        "data": {"image_size": 64},
        "model": {"backbone": "resnet18", "width": 0.125},
        "optimizer": {"learning_rate": 0.01, "warmup_steps": 2},
        "train": {"batch_size": 4, "max_steps": 3, "log_every": 2, "seed": 5},
        "detector": {"fpn_channels": 8, "head_channels": 8, "head_convs": 1, "score_threshold": 0.001},
    }
    for name, section in sections.items():
        values[name] = {**values[name], **section} if section is not None else None
    return parse_config(values)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    splits = {"train": pictures(10), "val": pictures(5, seed=1)}
    return write_coco(tmp_path_factory.mktemp("finetune") / FOLDER, splits, odd_name)


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / FOLDER / "backbone.keras"
    path.parent.mkdir()
    build_backbone("resnet18", width=0.125).save(path)
    return path


@pytest.fixture(scope="module")
def run(data, weights, tmp_path_factory):
    output = tmp_path_factory.mktemp("run") / FOLDER
    return finetune(config(), os.path.relpath(weights), data, output, console=QUIET), output


def test_finetune_writes_the_promised_files(run, weights):
    metrics, output = run
    names = {"config.yaml", "environment.json", "metrics.json", "metrics.jsonl", "detector.keras", "saved_model"}
    names |= {"detections.png", "precision_recall.png", "confusion.png", "checkpoints", "tensorboard"}
    names |= {"format.json", "images.json", "images-train.bin", "images-val.bin", "schedule.json", "start.json"}
    names |= {"checked_images.tsv"}
    assert {path.name for path in output.iterdir()} == names
    assert json.loads((output / "metrics.json").read_text()) == metrics
    assert load_config(output / "config.yaml") == config()
    assert (metrics["steps"], metrics["seed"], metrics["weights"]) == (3, 5, str(weights))
    assert (metrics["train_images"], metrics["val_images"]) == (10, 5)
    assert set(metrics["per_class"]) == set(NAMES) and 0 <= metrics["AP50"] <= 1
    assert metrics["images_per_second"] > 0


def test_new_layers_depend_on_the_seed_alone(data, weights, tmp_path, monkeypatch):
    started, seeds, set_seed = [], [], keras.utils.set_random_seed
    monkeypatch.setattr(keras.utils, "set_random_seed", lambda seed: seeds.append(seed) or set_seed(seed))

    def reached(detector, *_):
        backbone = {id(variable) for variable in detector.backbone.variables}
        started.append([v.numpy() for v in detector.trainable_variables if id(v) not in backbone])
        raise StopIteration

    monkeypatch.setattr("dupr_tf.detection.training.run_steps", reached)
    for number, start in enumerate((weights, "random")):
        with pytest.raises(StopIteration):
            finetune(config(), start, data, tmp_path / str(number), console=QUIET)
    assert seeds[:2] == seeds[2:] and seeds[0] != seeds[1]  # new layers do not repeat the draws of a random backbone
    assert len(started[0]) > 10
    for one, other in zip(*started, strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("kind", ["sgd", "adamw"])
def test_backbone_learns_at_its_share_of_the_rate(kind):
    """The gradient is constant. One of two variables is the backbone's. Decay is off, since it would blur the ratio."""
    settings = config(detector={"optimizer": kind, "backbone_rate": 0.25}, optimizer={"weight_decay": 0.0})
    backbone = keras.Sequential([keras.layers.Dense(1, use_bias=False)])
    backbone.build((None, 3))
    slow, fast = backbone.trainable_variables[0], keras.Variable(np.zeros([3, 1], np.float32), name="fast")
    optimizer, before = detector_optimizer(settings, 10, backbone), slow.numpy()
    optimizer.build([slow, fast])
    for _ in range(3):
        optimizer.apply([tf.fill([3, 1], 0.5)] * 2)
    assert (fast.numpy() < 0).all()
    np.testing.assert_allclose(slow.numpy() - before, 0.25 * fast.numpy(), rtol=1e-4)


def test_loss_is_logged_in_windows_and_at_the_end(run, data):
    train = read_annotations(data, "train")
    lost = [count_boxes(train, config(), 4 * (step - 1) + step % 4, 1).lost_share for step in (1, 2, 3)]
    entries = [json.loads(line) for line in (run[1] / "metrics.jsonl").read_text().splitlines()]
    assert [entry["step"] for entry in entries] == [2, 3]
    assert [entry["boxes_lost"] for entry in entries] == pytest.approx([(lost[0] + lost[1]) / 2, lost[2]])
    for entry in entries:
        assert entry["loss"] == pytest.approx(entry["classification_loss"] + entry["box_loss"], rel=1e-4)
    rates = [0.01 * 0.5, 0.01 * 0.75, 0.01 * 0.25]  # cosine, after two steps of warm-up
    assert [entry["learning_rate"] for entry in entries] == pytest.approx([(rates[0] + rates[1]) / 2, rates[2]])


def test_saved_detector_evaluates_to_the_same_scores(run, data, tmp_path):
    metrics, output = run
    again = evaluate(output, data, tmp_path / "new")
    for name in ("AP", "AP50", "AP75", "per_class"):
        assert again[name] == metrics[name]
    assert (again["split"], again["images"]) == ("val", 5)
    assert json.loads((tmp_path / "new" / "metrics.json").read_text()) == again
    assert (tmp_path / "new" / "detections.png").stat().st_size > 1000
    problem = refusal(evaluate, output, data, tmp_path / "new", image_size=96).problem
    assert "image_size unset, not 96" in problem
    problem = refusal(evaluate, output, data, tmp_path / "new", split="train").problem
    assert "split val, not train" in problem and json.loads((tmp_path / "new" / "metrics.json").read_text()) == again


def test_keras_file_and_saved_model_detect_the_same(run, data):
    output = run[1]
    annotated = read_annotations(data, "val")
    found = detect(load_detector(output), annotated)
    with plain_alias(output) as folder:
        served = tf.saved_model.load(str(folder / "saved_model"))
    assert sum(len(one["scores"]) for one in found) > 0
    for path, one in zip(annotated.paths, found, strict=True):
        image = tf.io.decode_image(tf.io.read_file(os.fsencode(path)), channels=3, expand_animations=False)
        other = {name: value[0].numpy() for name, value in served.serve(image[None]).items()}
        count = int(other["num_detections"])
        assert count == len(one["scores"])
        if count:
            # Compared in any order: detections of nearly equal score may swap by their last bits.
            far = np.abs(rows_of(one, count)[:, None] - rows_of(other, count)).max(-1)  # (count, count)
            assert max(far.min(0).max(), far.min(1).max()) < 0.02  # px; some pixels differ by a grey level


def rows_of(found, count):
    """Returns (count, 6): boxes in px, class, thousandths of score."""
    return np.column_stack([found["boxes"][:count], found["classes"][:count], 1e3 * found["scores"][:count]])


def test_unsuitable_weights_and_data_are_refused_first(data, weights, tmp_path):
    cases = [
        ((config(model={"width": 0.25}), weights, data), ("0.25", "0.125")),
        ((config(), tmp_path / "none.keras", data), ("none.keras",)),
        ((config(), "random", tmp_path / "none"), (str(tmp_path / "none"),)),
        ((config(data={"kind": "voc"}), "random", data), (str(data),)),
    ]
    for arguments, named in cases:
        output = tmp_path / "out"
        with pytest.raises(UserError) as error:
            finetune(*arguments, output, console=QUIET)
        message = str(error.value)
        assert all(word in message for word in named) and "\n" not in message and not output.exists()


def test_finetune_refuses_a_foreign_detector_and_a_file(data, run, tmp_path):
    (tmp_path / "earlier").mkdir()
    (tmp_path / "earlier" / "detector.keras").write_bytes(b"of an earlier version")
    for output in (tmp_path / "earlier", run[1] / "detector.keras"):
        with pytest.raises(UserError) as error:
            finetune(config(), "random", data, output, console=QUIET)
        assert error.value.field == "output" and str(output) in error.value.problem
    with pytest.raises(UserError) as error:
        evaluate(tmp_path, data)
    assert error.value.field == "detector" and str(tmp_path) in error.value.problem


def files_of(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_finished_run_returns_metrics_and_changes_nothing(run, data, weights):
    metrics, output = run
    before = files_of(output)
    assert finetune(config(), weights, data, output, console=QUIET) == metrics
    assert files_of(output) == before


@pytest.mark.parametrize("number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.slow)])
def test_interrupted_run_resumes_to_the_same_bits(run, data, weights, tmp_path, monkeypatch, capsys, number):
    """The signal comes in the first of three steps. A line covers two steps, so one window is split."""

    class Send(StopOnNonFinite):
        def on_step(self, step, logs):
            os.kill(os.getpid(), number)

    (tmp_path / "c.yaml").write_text(dump_config(config()))
    command = ["finetune", str(tmp_path / "c.yaml"), "--weights", str(weights), "--data", str(data)]
    command += ["--output", str(tmp_path / "out")]
    with monkeypatch.context() as patch:
        patch.setattr("dupr_tf.detection.training.StopOnNonFinite", Send)
        assert main(command) == 128 + number
    assert f"stopped by {number.name}. Checkpoint 1 is saved." in capsys.readouterr().err
    assert not (tmp_path / "out" / "detector.keras").exists() and signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    assert main(command) == 0
    assert end_of(tmp_path / "out") == end_of(run[1])
    for ours, theirs in zip(lines_of(tmp_path / "out"), lines_of(run[1]), strict=True):
        times = {"images_per_second", "step_share"}
        assert {k: v for k, v in ours.items() if k not in times} == {k: v for k, v in theirs.items() if k not in times}


def test_run_killed_in_evaluation_resumes_without_weights(run, data, tmp_path):
    output = tmp_path / "out"
    assert refusal(finetune, config(), None, data, output, console=QUIET).field == "--weights"
    shutil.copytree(run[1], output)
    (output / "metrics.json").unlink()
    (output / "detector.keras").write_bytes(b"half")
    finetune(config(), None, data, output, console=QUIET)
    assert json.loads((output / "metrics.json").read_text())["weights"] == run[0]["weights"]
    assert end_of(output) == end_of(run[1])
    assert [line["step"] for line in lines_of(output)] == [2, 3]


@pytest.mark.parametrize("content", [
    "{}", '{"per_class": {}, "AP": "x"}', '{"per_class": {"a": "x"}}',
    '{"per_class": {"a": 0.5}, "per_class_AP50": {}}',
    '{"per_class": {}, "suggested_threshold": {"min_score": 1}}', '{"per_class": {}, "masks": {"AP": []}}',
    '{"AP": 0.5, "per_class": {}, "AP": 0.7}',
])  # fmt: skip
def test_odd_metrics_of_an_ended_run_are_named(run, data, weights, tmp_path, content):
    output = tmp_path / "out"
    shutil.copytree(run[1], output)
    (output / "metrics.json").write_text(content)
    assert "metrics.json cannot be used" in refusal(finetune, config(), weights, data, output, console=QUIET).problem


def test_ended_run_without_its_detector_is_named(run, data, weights, tmp_path):
    output = tmp_path / "out"
    shutil.copytree(run[1], output)
    (output / "detector.keras").unlink()
    error = refusal(finetune, config(), weights, data, output, console=QUIET)
    assert error.problem == f"{output} has ended, but its detector.keras is missing."


@pytest.fixture(scope="module")
def validated(data, weights, tmp_path_factory):
    """A run whose first validation scores best, so that the best detector is not the last."""

    class Falling(ValidateDetector):
        def __init__(self, detector, measure, *rest):
            scores = iter(FALLING)
            super().__init__(detector, lambda: {**measure(), "AP": next(scores)}, *rest)

    output = tmp_path_factory.mktemp("validated") / "out"
    settings = config(detector={"validate_every": 1, "patience": 5})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("dupr_tf.detection.training.ValidateDetector", Falling)
        return finetune(settings, weights, data, output, console=QUIET), output


def test_validation_changes_no_weight_and_selects_the_best(run, validated):
    metrics, output = validated
    assert weights_digest(output / "detector_last.keras") == weights_digest(run[1] / "detector.keras")
    lines = lines_of(output)
    assert [line["validation/AP"] for line in lines] == pytest.approx(FALLING)
    assert (metrics["selected_on"], metrics["best"]["step"]) == ("val", 1)
    assert (metrics["last"]["step"], metrics["steps"]) == (3, 3)
    first = np.load(output / "checkpoints" / "best-1.npz")
    best = load_detector(output)
    stored = [first[name] for name in first.files]
    trained = {id(v) for v in best.trainable_variables}
    for variable, kept in zip(best.weights, stored, strict=True):
        if id(variable) in trained:  # the statistics of the norms are measured again
            np.testing.assert_array_equal(variable.numpy(), kept)
    assert weights_digest(output / "detector_last.keras") != weights_digest(output / "detector.keras")
    assert metrics["best"]["AP"] == metrics["AP"] and metrics["last"]["AP50"] == run[0]["AP50"]
    assert metrics["validation_seconds"] == pytest.approx(sum(line["seconds/validations"] for line in lines), abs=0.06)
    assert "selected_on" not in run[0]


def test_finetune_continues_from_a_detector(run, data, tmp_path):
    """With rate 0 the weights equal those of the start. With other classes, all but those of the class outputs do."""
    start, settings = load_detector(run[1]), config(optimizer={"learning_rate": 1e-30}, train={"max_steps": 1})
    finetune(settings, run[1], data, tmp_path / "same", console=QUIET)
    same = load_detector(tmp_path / "same")
    assert unequal(start.trainable_variables, same.trainable_variables) == []
    other = build_detector(
        build_backbone("resnet18", width=0.125, include_normalization=True), ("cup", "pen"), config()
    )
    line = copy_weights(other, start)
    assert "class_head" not in line and "prediction" in line
    differing = unequal(start.trainable_variables, other.trainable_variables)
    assert [path.split("/")[-2:] for path in differing] == [["prediction", "kernel"], ["prediction", "bias"]]
    saved = json.loads((tmp_path / "same" / "start.json").read_text())
    assert saved["weights"] == str(run[1] / "detector.keras")


def unequal(ours, theirs):
    pairs = zip(ours, theirs, strict=True)
    return [b.path for a, b in pairs if a.shape != b.shape or not np.array_equal(a.numpy(), b.numpy())]


def test_detector_of_another_kind_is_refused(run, data, tmp_path):
    rcnn = config(detector={"kind": "faster_rcnn", "head_convs": 4})
    assert refusal(finetune, rcnn, run[1], data, tmp_path / "out", console=QUIET).field == "--weights"
    wider = config(detector={"fpn_channels": 16})
    assert refusal(finetune, wider, run[1], data, tmp_path / "out", console=QUIET).field == "--weights"
    assert not (tmp_path / "out").exists()


def lines_of(output):
    return [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("kind", ["fcn", "faster_rcnn", pytest.param("retinanet", marks=pytest.mark.slow)])
def test_checkpoint_holds_all_variables_but_metrics(kind):
    section = {"kind": kind, "fpn_channels": 8, "head_channels": 8, "head_convs": 1}
    detector = build_detector(
        build_backbone("resnet18", width=0.125, include_normalization=True), NAMES, parse_config({"detector": section})
    )
    detector.compile(CoupledSGD(0.01))
    step = tf.function(detector.train_step, autograph=False)
    touched = step.get_concrete_function(next(iter(dataset(kind)))).graph.variables
    kept = {id(variable) for variable in state_of(detector).values()}
    metrics = {id(variable.value) for variable in detector.metrics_variables}
    assert len(touched) > 100 and [v.name for v in touched if id(v) not in kept | metrics] == []


def test_resume_with_other_config_data_or_weights_is_refused(run, data, weights, tmp_path):
    output = run[1]
    before = files_of(output)
    fewer = write_coco(tmp_path / "set", {"train": pictures(9), "val": pictures(5, seed=1)}, odd_name)
    build_backbone("resnet18", width=0.125).save(tmp_path / "other.keras")
    cases = [
        (config(train={"seed": 6, "log_every": 1}), weights, data, ("train.seed",)),
        (config(), weights, fewer, ("--data",)),
        (config(), tmp_path / "other.keras", data, ("--weights",)),
        (config(), "random", data, ("--weights",)),
    ]
    for *arguments, fields in cases:
        with pytest.raises(UserError) as error:
            finetune(*arguments, output, console=QUIET)
        assert error.value.fields == fields
    with pytest.raises(UserError) as error:  # its checkpoint does not match
        wider = config(detector={"fpn_channels": 16})
        finetune(wider, weights, data, output, console=QUIET, allow_change=True)
    assert str(output / "checkpoints") in error.value.problem
    assert files_of(output) == before


def test_ended_run_takes_changes_of_evaluation_alone(run, data, weights, tmp_path):
    output = tmp_path / "detector"
    shutil.copytree(run[1], output)
    before = files_of(output)
    with pytest.raises(UserError) as error:
        slower = config(optimizer={"learning_rate": 0.007}, detector={"score_threshold": 0.5})
        finetune(slower, weights, data, output, console=QUIET, allow_change=True)
    assert error.value.fields == ("optimizer.learning_rate",) and "--output" in error.value.fix
    assert files_of(output) == before
    (output / "metrics.json").unlink()
    (output / "checkpoints" / "ckpt-9.index").write_bytes(b"cut by a kill")
    for path in (output / "checkpoints").glob("ckpt-3*"):
        path.rename(tmp_path / path.name)
    problem = refusal(finetune, config(), None, data, output, console=QUIET).problem
    assert "No checkpoint of the run can be read" in problem and str(weights) in problem
    for path in tmp_path.glob("ckpt-3*"):
        path.rename(output / "checkpoints" / path.name)
    stricter = config(detector={"score_threshold": 0.5})
    finetune(stricter, weights, data, output, console=QUIET, allow_change=True)
    assert load_config(output / "config.yaml").detector.score_threshold == 0.5


def test_run_stopped_by_patience_refuses_late_changes(data, weights, tmp_path, monkeypatch):
    class Falling(ValidateDetector):
        def __init__(self, detector, measure, *rest):
            scores = iter(FALLING)
            super().__init__(detector, lambda: {**measure(), "AP": next(scores)}, *rest)

    monkeypatch.setattr("dupr_tf.detection.training.ValidateDetector", Falling)
    stopping = {"validate_every": 1, "patience": 1}
    assert finetune(config(detector=stopping), weights, data, tmp_path / "out", console=QUIET)["steps"] == 2
    other = config(detector=stopping, optimizer={"learning_rate": 0.007})
    error = refusal(finetune, other, weights, data, tmp_path / "out", console=QUIET, allow_change=True)
    assert error.field == "optimizer.learning_rate" and "has taken 2 of 2 steps" in error.problem


def test_moved_box_changes_the_labels_record(data):
    annotated = read_annotations(data, "train")
    before = labels_entry(data, annotated)
    annotated.boxes[0][0, 0] += 1
    after = labels_entry(data, annotated)
    annotated.boxes[0][0, 0] -= 1
    assert labels_entry(data, annotated) == before != after and before["count"] == after["count"] == 10


@pytest.mark.parametrize(
    ("sections", "key"),
    [
        ({"optimizer": {"learning_rate": None}}, "optimizer.learning_rate"),
        ({"data": {"image_size": 100}}, "data.image_size"),
        ({"data": {"kind": "folder"}}, "data.kind"),
        ({"detector": None}, "detector"),
    ],
)
def test_finetune_refuses_a_config_it_cannot_run(sections, key):
    assert config().finetune_problems() == []
    with pytest.raises(UserError) as error:
        finetune(config(**sections), "random", "nowhere", "nowhere", console=QUIET)
    assert error.value.fields == (key,)


def test_image_that_does_not_decode_is_named(tmp_path):
    root = write_coco(tmp_path / "set", {"train": pictures(4), "val": pictures(2)})
    (root / "images" / "train_002.png").write_bytes(b"not a picture")
    error = refusal(finetune, config(), "random", root, tmp_path / "out", console=QUIET)
    assert error.field == "data.max_bad_share" and "1 of 4" in error.problem and "train_002.png" in error.problem


def test_loss_that_is_not_finite_stops_the_run():
    guard = StopOnNonFinite()
    guard.on_train_batch_end(0, {"loss": 1.0, "box_loss": 1.0})
    with pytest.raises(RunFailed, match=r"nan at step 2"):
        guard.on_train_batch_end(1, {"loss": float("nan"), "box_loss": 1.0})


def test_code_in_a_detector_file_is_refused_not_run(tmp_path, capsys):
    marker = tmp_path / "it_ran"
    layer = keras.layers.Lambda(lambda x, path=str(marker): (open(path, "w").close(), x)[1], output_shape=(4,))
    keras.Sequential([keras.Input((4,)), layer]).save(tmp_path / "detector.keras")
    marker.unlink(missing_ok=True)
    assert main(["evaluate", str(tmp_path / "detector.keras"), "--data", str(tmp_path)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "detector.keras" in line and not marker.exists()


def test_val_without_boxes_is_refused_before_training(tmp_path):
    bare = [Picture((60, 80), [])] * 3
    root = write_coco(tmp_path / "set", {"train": pictures(4), "val": bare})
    with pytest.raises(UserError) as error:
        finetune(config(), "random", root, tmp_path / "out", console=QUIET)
    assert error.value.field == "data"
    assert not (tmp_path / "out").exists()


def test_class_without_boxes_in_the_split_is_printed_last(capsys):
    classes = {"bus": None, "cat": 0.1, "dog": 0.3}
    scores = {"AP": 0.1, "AP50": 0.2, "AP75": 0.0, "per_class": classes, "masks": {"AP": 0.05, "AP50": None}}
    print_scores({**scores, "per_class_AP50": classes}, None)
    first, second, _, *rows = capsys.readouterr().out.splitlines()
    assert (first, second) == ("AP 0.100  AP50 0.200  AP75 0.000", "masks: AP 0.050  AP50 none")
    assert [line.split()[0] for line in rows] == ["dog", "cat", "bus"]


def test_evaluation_keeps_the_files_of_a_run(run, data, tmp_path):
    before = files_of(run[1])
    for output in (run[1], run[1] / ".." / run[1].name):
        assert "--output" in refusal(evaluate, run[1], data, output).field
    write_run_record(tmp_path / "other")
    assert "holds a run" in refusal(evaluate, run[1], data, tmp_path / "other").problem
    assert files_of(run[1]) == before


def write_run_record(folder):
    folder.mkdir()
    (folder / "format.json").write_text("{}")


def test_evaluate_takes_the_layout_of_the_run(run, data, tmp_path):
    root = tmp_path / "two"
    root.mkdir()
    for entry in data.iterdir():
        (root / entry.name).symlink_to(entry)
    (root / "ImageSets" / "Main").mkdir(parents=True)
    (root / "ImageSets" / "Main" / "val.txt").write_text("nothing\n")
    assert "two layouts" in refusal(evaluate, run[1], root, kind="auto").problem
    with with_kind(run[1], "coco"):
        assert evaluate(run[1], root)["AP"] == run[0]["AP"]
    with with_kind(run[1], "yolo"):  # the root has no labels of that layout
        assert evaluate(run[1], data)["AP"] == run[0]["AP"]


@contextlib.contextmanager
def with_kind(output, kind):
    """Changes `data.kind` in the config of a run for the time of a block."""
    text = (output / "config.yaml").read_text()
    assert "kind: auto" in text
    (output / "config.yaml").write_text(text.replace("kind: auto", f"kind: {kind}", 1))
    try:
        yield
    finally:
        (output / "config.yaml").write_text(text)
