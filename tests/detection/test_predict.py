"""Tests of predictions of files: formats, resuming, bad images and refusals. The test detector finds grey squares."""

import csv
import json
import os

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from dupr_tf.config import DataConfig
from dupr_tf.data.images import bad_images
from dupr_tf.data.images.decode import Unusable
from dupr_tf.data.labels.annotations import read_annotations
from dupr_tf.data.labels.run_lengths import mask_from_pixels, pixels_of
from dupr_tf.data.labels.segments import read_segments
from dupr_tf.data.parts import list_inputs
from dupr_tf.data.shards.index import read_sealed, seal
from dupr_tf.detection import predict as module
from dupr_tf.detection.finetune import METRICS_FILE, chosen_score, suggested_score
from dupr_tf.detection.outputs import COCO_FILE, CSV_FILE, CSV_HEAD
from dupr_tf.detection.predict import (
    BAD_IMAGES,
    PARTS,
    PICTURES,
    RUN_FILE,
    PredictRun,
    PredictSettings,
    check_settings,
    check_stems,
    predicted_picture,
)
from dupr_tf.detection.prediction import Prediction
from dupr_tf.errors import RunFailed
from dupr_tf.files import write_whole
from dupr_tf.safe_yaml import safe_value
from dupr_tf.weights.saved_detectors import Saved
from tests.refusals import refusal

NAMES = ("cat", "dog")
DETECTOR = {"file": "detector.keras", "sha256": "0"}


@pytest.fixture
def photos(tmp_path):
    for k in range(5):
        path = tmp_path / "photos" / ("a", "b")[k % 2] / f"{k}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((40 + k, 60, 3), 90, np.uint8)).save(path)
    return tmp_path / "photos"


class Stream:
    """Detects a cat of 10 px in every image, and a dog where the height is even; fails at the image `stop`."""

    def __init__(self, kind="boxes", stop=None):
        self.kind, self.stop, self.seen = kind, stop, []

    def __call__(self, paths):
        for index in reversed(range(len(paths))):  # in any order
            self.seen.append(paths[index])
            if len(self.seen) == self.stop:
                raise KeyboardInterrupt
            with open(paths[index], "rb") as file:
                broken = not file.read(1)
            yield index, Unusable("empty: 0 bytes") if broken else self.prediction(paths[index])

    def prediction(self, path):
        height, width = np.asarray(Image.open(path)).shape[:2]
        boxes = np.array([[10, 5, 20, 15], [0, 0, width, height]], np.float32)[: 1 + (height % 2 == 0)]
        classes, scores = np.arange(len(boxes), dtype=np.int32), np.array([0.9, 0.6], np.float32)[: len(boxes)]
        names, masks, segments = tuple(NAMES[k] for k in classes), None, None
        if self.kind == "masks":
            pixels = np.zeros((height, width))
            pixels[6:15, 10:20] = 1
            masks = (mask_from_pixels(pixels),) * len(boxes)
        if self.kind == "segments":
            boxes, scores, classes, names = boxes[:0], scores[:0], classes[:0], ()
            segments = np.zeros((height, width), np.int32)
            segments[:, 30:] = 1
        return Prediction((height, width), boxes, scores, classes, names, masks, segments)


def start(photos, output, stream, to="coco", bad=0.0, pictures=0, max_pixels=10**8, **settings):
    data = DataConfig(max_pixels=max_pixels)
    run = PredictRun(output, *list_inputs([photos]), PredictSettings(to, **settings), bad, Console(quiet=True), data)
    run.check(DETECTOR)
    return run.result() if run.finished and run.drawn >= pictures else run.run(stream, NAMES, pictures)


def test_coco_output_is_read_as_labels(photos, tmp_path):
    done = start(photos, tmp_path / "out", Stream("masks"), min_score=0.5)
    assert (done.images, done.detections, done.bad) == (5, 8, [])
    read = read_annotations(tmp_path / "out", "train", masks=True)
    assert read.class_names == NAMES and [len(boxes) for boxes in read.boxes] == [2, 2, 2, 1, 1]
    np.testing.assert_array_equal(read.boxes[0][0], [10, 5, 20, 15])
    assert pixels_of(read.masks[0][0], read.sizes[0]).sum() == 90 and read.areas[0][0] == 90
    assert sorted(tuple(size) for size in read.sizes) == [(40 + k, 60) for k in range(5)]


def test_masks_of_an_fcn_are_read_as_labels(photos, tmp_path):
    start(photos, tmp_path / "out", Stream("segments"), to="png")
    read = read_segments(tmp_path / "out", "train")
    assert len(read) == 5 and read.class_names == NAMES
    truth = read.truth(0)
    assert (truth[:, :30] == 0).all() and (truth[:, 30:] == 1).all()


@pytest.mark.parametrize(("min_score", "columns"), [(None, 6), (0.5, 5)])
def test_yolo_labels_are_shares_of_the_image(photos, tmp_path, min_score, columns):
    start(photos, tmp_path / "out", Stream(), to="yolo", min_score=min_score)
    rows = [line.split() for line in (tmp_path / "out/labels/train/a/0.txt").read_text().splitlines()]
    assert [len(row) for row in rows] == [columns] * 2
    assert [float(value) for value in rows[0][:5]] == pytest.approx([0, 15 / 60, 10 / 40, 10 / 60, 10 / 40], abs=1e-6)
    assert [float(value) for value in rows[1][:5]] == [1, 0.5, 0.5, 1, 1]
    assert (tmp_path / "out/images/train/a/0.png").is_file()


def test_csv_has_a_row_for_each_box(photos, tmp_path):
    start(photos, tmp_path / "out", Stream(), to="csv")
    with (tmp_path / "out" / CSV_FILE).open() as file:
        head, *rows = csv.reader(file)
    assert tuple(head) == CSV_HEAD and len(rows) == 8
    assert rows[0][:2] == ["a/0.png", "cat"] and [float(value) for value in rows[0][2:]] == [0.9, 10, 5, 20, 15]


def test_stopped_run_resumes_at_its_first_missing_part(photos, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "PART", 2)
    whole = Stream()
    start(photos, tmp_path / "whole", whole)
    first, second = Stream(stop=4), Stream()
    with pytest.raises(KeyboardInterrupt):
        start(photos, tmp_path / "out", first)
    assert (tmp_path / "out" / PARTS).is_dir() and not (tmp_path / "out" / COCO_FILE).exists()
    done = start(photos, tmp_path / "out", second)
    assert len(second.seen) == 3 and sorted(first.seen[:2] + second.seen) == sorted(whole.seen)
    assert (tmp_path / "out" / COCO_FILE).read_text() == (tmp_path / "whole" / COCO_FILE).read_text()
    assert not (tmp_path / "out" / PARTS).exists()
    third = Stream()
    assert start(photos, tmp_path / "out", third) == done and third.seen == []


def test_run_killed_before_its_record_starts_again(photos, tmp_path, monkeypatch):
    def stop(*paths):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(os, "replace", stop)
        start(photos, tmp_path / "out", Stream())
    (tmp_path / "out").mkdir(exist_ok=True)
    (tmp_path / "out" / f"{RUN_FILE}.tmp").write_text("{")
    assert start(photos, tmp_path / "out", Stream()).images == 5


@pytest.mark.parametrize("to, kind, name", [
    ("coco", "masks", COCO_FILE), ("yolo", "boxes", "data.yaml"), ("csv", "boxes", CSV_FILE),
    ("png", "segments", "classes.txt"),
])  # fmt: skip
def test_removed_output_is_written_again(photos, tmp_path, to, kind, name):
    start(photos, tmp_path / "out", Stream(kind), to)
    before = (tmp_path / "out" / name).read_bytes()
    (tmp_path / "out" / name).unlink()
    start(photos, tmp_path / "out", Stream(kind), to)
    assert (tmp_path / "out" / name).read_bytes() == before


def test_many_bad_images_are_counted(photos, tmp_path, monkeypatch):
    monkeypatch.setattr(bad_images, "MOST_LISTED", 2)
    for number in (0, 2, 4):
        (photos / "a" / f"{number}.png").write_bytes(b"")
    with pytest.raises(RunFailed):
        start(photos, tmp_path / "out", Stream(), bad=0.5)
    assert (tmp_path / "out" / BAD_IMAGES).exists()
    for _ in range(2):  # the second call reads the record of the first
        done = start(photos, tmp_path / "out", Stream(), bad=0.8)
        assert (done.images, done.left_out, len(done.bad)) == (2, 3, 2)
    assert (tmp_path / "out" / BAD_IMAGES).read_text().endswith("\t1 more are not listed\n")
    assert len(read_sealed(tmp_path / "out" / RUN_FILE)[0]["result"]["bad"]) == 2
    assert len(json.loads((tmp_path / "out" / COCO_FILE).read_text())["images"]) == 2


@pytest.mark.parametrize("kind", ["masks", "segments"])
def test_pictures_that_fail_do_not_end_the_run(photos, tmp_path, kind, caplog):
    class Vanishing(Stream):
        def __call__(self, paths):
            yield from super().__call__(paths)
            (photos / "a" / "0.png").unlink()

    done = start(photos, tmp_path / "out", Vanishing(kind), "png" if kind == "segments" else "coco", pictures=3)
    assert done.images == 5 and len(caplog.records) == 1
    assert sorted(path.name for path in (tmp_path / "out" / PICTURES).iterdir()) == ["a__4.png.png", "b__3.png.png"]


def test_output_folder_of_something_else_is_refused(photos, tmp_path):
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "file").write_text("")
    start(photos, tmp_path / "out", Stream())
    (tmp_path / "file").write_text("")
    for output, settings in (("other", {}), ("file", {}), ("out", {"min_score": 0.5}), ("out", {"to": "csv"})):
        assert refusal(start, photos, tmp_path / output, Stream(), **settings).field == "--output"
    Image.fromarray(np.zeros((9, 9, 3), np.uint8)).save(photos / "new.png")
    assert refusal(start, photos, tmp_path / "out", Stream()).field == "--output"


def test_one_class_per_box_keeps_the_best(photos, tmp_path):
    boxes = np.array([[0, 0, 10, 10], [0, 0, 10, 8], [30, 0, 40, 10], [0, 1, 10, 10]], np.float32)
    found = Prediction(
        (20, 50), boxes, np.array([0.9, 0.8, 0.7, 0.6], np.float32), np.arange(4, dtype=np.int32), tuple("abcd"),
        (b"1", b"2", b"3", b"4"),
    )  # fmt: skip
    kept = found.with_one_class_per_box(0.5)
    assert kept.names == ("a", "c") and kept.run_lengths == (b"1", b"3") and kept.classes.tolist() == [0, 2]
    np.testing.assert_array_equal(kept.boxes, boxes[[0, 2]])
    assert found.with_one_class_per_box(0.85).names == ("a", "b", "c")
    start(photos, tmp_path / "out", Stream())
    problem = refusal(start, photos, tmp_path / "out", Stream(), one_class_per_box=True).problem
    assert "one_class_per_box unset, not True" in problem
    start(photos, tmp_path / "best", Stream(), one_class_per_box=True)
    assert "one_class_per_box True, not unset" in refusal(start, photos, tmp_path / "best", Stream()).problem


def test_refusal_names_the_settings_that_differ(photos, tmp_path):
    start(photos, tmp_path / "out", Stream(), min_score=0.5)
    (photos / "a" / "0.png").unlink()
    problem = refusal(start, photos, tmp_path / "out", Stream(), min_score=0.25).problem
    assert "min_score 0.5, not 0.25" in problem and "files 5, not 4" in problem and "sha256" not in problem
    (photos / "a" / "0.png").write_bytes((photos / "a" / "2.png").read_bytes())
    (photos / "a" / "2.png").rename(photos / "a" / "9.png")
    assert "another source" in refusal(start, photos, tmp_path / "out", Stream(), min_score=0.5).problem


def test_run_that_kept_no_part_may_be_started_anew(photos, tmp_path):
    (photos / "a" / "0.png").write_bytes(b"")
    with pytest.raises(RunFailed, match=r"a/0\.png \(empty: 0 bytes\).*--max-bad-share \(to 0\.2"):
        start(photos, tmp_path / "out", Stream())
    (photos / "a" / "0.png").unlink()
    assert start(photos, tmp_path / "out", Stream(), to="csv", min_score=0.7).images == 4
    (tmp_path / "out" / CSV_FILE).write_text("")  # a kill while a finished output was predicted again
    facts = read_sealed(tmp_path / "out" / RUN_FILE)[0]
    del facts["result"]
    write_whole(tmp_path / "out" / RUN_FILE, seal(facts)[0])
    assert "to csv, not coco" in refusal(start, photos, tmp_path / "out", Stream(), min_score=0.7).problem


def test_suggested_threshold_is_that_of_the_metrics(tmp_path):
    file, metrics = tmp_path / "detector.keras", tmp_path / METRICS_FILE
    assert chosen_score(file, 0.3) == 0.3 and chosen_score(file, None) is None
    assert refusal(chosen_score, file, "suggested").field == "--min-score"
    metrics.write_text(json.dumps({"suggested_threshold": {"min_score": 0.42379}}))
    assert chosen_score(file, "suggested") == suggested_score(file) == 0.423
    metrics.write_text(json.dumps({"suggested_threshold": None}))
    assert refusal(chosen_score, file, "suggested").field == "--min-score"
    metrics.write_text(json.dumps({"suggested_threshold": {"min_score": 0.42379}}))
    assert suggested_score(tmp_path / "detector_last.keras") is None  # the metrics are those of the best detector
    metrics.write_text('{"suggested_threshold": 3}')
    assert "metrics.json" in refusal(chosen_score, file, "suggested").problem


def test_names_that_share_an_output_file_are_refused():
    check_stems(["a/1.jpg", "b/1.jpg"], "yolo")
    assert refusal(check_stems, ["a/1.jpg", "a/1.png"], "yolo").field == "--images"
    assert refusal(check_stems, ["a/1.jpg", "a__1.png"], "png").field == "--images"
    assert "a/1.jpg, a/1.png." in refusal(check_stems, ["a/1.jpg", "a/1.png", "a/2.png"], "yolo").problem


@pytest.mark.parametrize(
    ("kind", "settings", "field"),
    [
        ("retinanet", {"to": "png"}, "--to"),
        ("retinanet", {"to": "none"}, "--to"),
        ("fcn", {"to": "coco"}, "--to"),
        ("fcn", {"min_score": 0.5}, "--min-score"),
        ("fcn", {"min_score": "suggested"}, "--min-score"),
        ("fcn", {"one_class_per_box": True}, "--one-class-per-box"),
        ("retinanet", {"min_score": 1.5}, "--min-score"),
        ("retinanet", {"image_size": 0}, "--image-size"),
        ("retinanet", {"image_size": 100}, "--image-size"),
    ],
)
def test_settings_unsuitable_for_the_detector_are_refused(kind, settings, field):
    saved = Saved(kind, NAMES, {"image_size": 128})
    assert refusal(check_settings, PredictSettings(**settings), saved).field == field
    assert check_settings(PredictSettings(), saved).to == ("png" if kind == "fcn" else "coco")


class LimitedStream(Stream):
    """Refuses images of more than `most` pixels."""

    most = 2480  # a/0.png and b/1.png are smaller

    def __call__(self, paths):
        for index, result in super().__call__(paths):
            large = np.prod(Image.open(paths[index]).size) > self.most
            yield index, Unusable("too many pixels") if large else result


@pytest.mark.parametrize("finished", [True, False])
def test_images_left_out_are_predicted_once_they_can_be_used(photos, tmp_path, monkeypatch, finished):
    monkeypatch.setattr(module, "PART", 2)
    limits = {"bad": 0.9, "max_pixels": LimitedStream.most}
    if finished:
        assert start(photos, tmp_path / "out", LimitedStream(), **limits).left_out == 3
    else:
        with pytest.raises(KeyboardInterrupt):
            start(photos, tmp_path / "out", LimitedStream(stop=5), **limits)
    same = LimitedStream()
    done = start(photos, tmp_path / "out", same, **limits)
    assert done.left_out == 3 and len(same.seen) == (0 if finished else 1)
    whole = start(photos, tmp_path / "out", Stream())
    assert (whole.images, whole.left_out) == (5, 0)
    assert len(read_annotations(tmp_path / "out", "train")) == 5


def test_more_pictures_are_drawn_by_a_run_that_has_ended(photos, tmp_path):
    done, drawing, again = start(photos, tmp_path / "out", Stream()), Stream(), Stream()
    (tmp_path / "out" / PICTURES).mkdir()
    (tmp_path / "out" / PICTURES / "earlier.png").write_bytes(b"")
    assert start(photos, tmp_path / "out", drawing, pictures=2) == done and len(drawing.seen) == 2
    names = sorted(path.name for path in (tmp_path / "out" / PICTURES).iterdir())
    start(photos, tmp_path / "whole", Stream(), pictures=2)
    assert names == sorted(path.name for path in (tmp_path / "whole" / PICTURES).iterdir())
    (tmp_path / "out" / PICTURES / names[0]).unlink()  # as if it could not be drawn
    assert start(photos, tmp_path / "out", again, pictures=2) == done and again.seen == []


def test_pictures_leave_out_low_scores(photos, tmp_path):
    record = {"name": "0.png", "size": [40, 60], "classes": [0, 1], "scores": [0.9, 0.2]}
    record["boxes"] = [[4, 20, 20, 36], [36, 20, 56, 36]]
    pixels = {}
    for low in (0.0, 0.5, 0.95):
        predicted_picture(str(photos / "a" / "0.png"), record, NAMES, DataConfig(), low, tmp_path / "p.png")
        picture = np.asarray(Image.open(tmp_path / "p.png")).astype(int)
        halves = np.split(picture, [picture.shape[1] // 2], axis=1)
        pixels[low] = [bool((half != 90).any()) for half in halves]
    assert pixels == {0.0: [True, True], 0.5: [True, False], 0.95: [False, False]}


def test_second_process_keeps_the_result_of_the_first(photos, tmp_path):
    late = PredictRun(tmp_path / "out", *list_inputs([photos]), PredictSettings("coco"), 0.0, Console(quiet=True))
    late.check(DETECTOR)
    other = PredictRun(tmp_path / "out", *list_inputs([photos]), PredictSettings("csv"), 0.0, Console(quiet=True))
    other.check(DETECTOR)
    done, unused = start(photos, tmp_path / "out", Stream()), Stream()
    assert late.run(unused, NAMES, 0) == done and unused.seen == []
    assert refusal(other.run, unused, NAMES, 0).field == "--output" and (tmp_path / "out" / COCO_FILE).exists()


def test_segments_have_no_detections(photos, tmp_path):
    assert start(photos, tmp_path / "out", Stream("segments"), to="png").detections is None


def test_mask_whose_name_would_be_too_long_is_refused():
    names = ["/".join(["é" * 40] * 4) + ".png"]
    assert "too long" in refusal(check_stems, names, "png").problem
    check_stems(names, "yolo")


def test_yolo_names_of_any_script_are_read_again(photos, tmp_path):
    names = ("😀", 'a "quoted": name')
    run = PredictRun(tmp_path / "out", *list_inputs([photos]), PredictSettings("yolo"), 0.0, Console(quiet=True))
    run.check(DETECTOR)
    run.run(Stream(), names, 0)
    assert tuple(safe_value((tmp_path / "out" / "data.yaml").read_text(encoding="utf-8"))["names"].values()) == names


def test_unchanged_images_left_out_are_not_read_again(photos, tmp_path, monkeypatch):
    (photos / "a" / "0.png").write_bytes(b"")
    done, read = start(photos, tmp_path / "out", Stream(), bad=0.5), []
    monkeypatch.setattr("dupr_tf.data.parts.read_image", lambda path, data: read.append(path))
    assert start(photos, tmp_path / "out", Stream(), bad=0.5) == done and read == []
    os.utime(photos / "a" / "0.png", (0, 0))
    start(photos, tmp_path / "out", Stream(), bad=0.5)
    assert read
