"""Predicts on any number of image files, in parts that are kept if the run stops. Does not load TensorFlow.

`OUT/parts/` has a file for each 256 images, written as a whole. A resumed run looks for these files and predicts the
missing ones. At the end the parts become one output in the chosen format.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import functools
import json
import os
import shutil
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
from rich.console import Console

from dupr_tf.config import DataConfig
from dupr_tf.config.detectors import DETECTORS
from dupr_tf.data.detection import read_image
from dupr_tf.data.images.decode import Unusable
from dupr_tf.data.parts import (
    Bad,
    ImageParts,
    Stream,
    check_range,
    left_out_facts,
    list_inputs,
    recorded_differences,
    some_usable,
    source_facts,
)
from dupr_tf.data.shards.index import read_sealed, seal
from dupr_tf.detection.finetune import check_size, chosen_score, data_section, detector_file, suggested_score
from dupr_tf.detection.outputs import OUTPUTS, default_format, flat_name
from dupr_tf.detection.pictures import detections_picture, sheet_positions
from dupr_tf.detection.prediction import Prediction, record_of, segments_of
from dupr_tf.detection.segmentation_sheet import segments_picture
from dupr_tf.errors import UserError
from dupr_tf.files import draw_pictures, local_path, sha256_of, write_whole
from dupr_tf.locks import LOCK_FILE, locked
from dupr_tf.text import escape, listed
from dupr_tf.weights.saved_detectors import Saved, read_saved

FORMAT = "dupr_tf predictions 1"
RUN_FILE, BAD_IMAGES, PARTS, PICTURES = "predict.json", "bad_images.tsv", "parts", "pictures"
PART = 256  # images
MOST_NAME = 255  # bytes of a file name, on most file systems


@dataclasses.dataclass(frozen=True)
class PredictSettings:
    """Holds the settings that determine the predictions.

    Args:
        to: a name in `OUTPUTS`. None: COCO, or PNG for a detector of segments.
        min_score: lower detections are left out, 0 to 1; or "suggested", the score with the best F1 on val (see
            `metrics.json`). None: the detector's own threshold.
        image_size: px to which images are scaled. None: the detector's own.
        one_class_per_box: as in `Detector`.
    """

    to: str | None = None
    min_score: float | Literal["suggested"] | None = None
    image_size: int | None = None
    one_class_per_box: bool = False


@dataclasses.dataclass(frozen=True)
class Predicted:
    """Holds the result of a run: counts of images, of detections (None for segments) and of images left out.

    `bad` has (name, reason) of the images left out, at most `MOST_LISTED`.
    """

    images: int
    detections: int | None
    left_out: int
    bad: Bad


def predict(
    detector: str | Path,
    images: Sequence[str | Path],
    output: str | Path,
    settings: PredictSettings | None = None,
    pictures: int = 0,
    max_bad_share: float = 0.01,
    batch_size: int = 8,
    console: Console | None = None,
    overrides: dict[str, str] | None = None,
) -> Predicted:
    """Predicts on image files and writes boxes, masks or classes of pixels. Called again, it resumes.

    Args:
        detector: `detector.keras`, or the output folder of `finetune`.
        images: folders and files.
        output: folder to create.
        settings: None takes the defaults.
        pictures: number of images that are drawn, spread over all.
        max_bad_share: share of the images that may be unreadable, 0 to 1.
        batch_size: images that the detector takes at a time.
        console: console for progress. Default: the terminal.
        overrides: {"data.max_pixels": "…", …}, how files are read, as YAML text. Default: as in training.

    Raises:
        UserError: something does not fit together, or the output holds other predictions.
        RunFailed: too many images are unreadable, or the disk is full.
    """
    settings, output = settings or PredictSettings(), local_path(output, "--output")
    file = detector_file(detector)
    saved = read_saved(file)
    settings = check_settings(settings, saved)
    settings = dataclasses.replace(settings, min_score=chosen_score(file, settings.min_score))
    check_range("--pictures", pictures, 0, 10**6)
    check_range("--max-bad-share", max_bad_share, 0, 1)
    check_range("--batch-size", batch_size, 1, 4096)
    root, names = list_inputs(images)
    data = data_section(file, overrides=overrides)
    if OUTPUTS[settings.to].facts["one_file_a_stem"]:
        check_stems(names, settings.to)
    drawn_from = settings.min_score or _score_to_draw(file)
    run = PredictRun(output, root, names, settings, max_bad_share, console or Console(), data, drawn_from)
    run.check({"file": file.name, "sha256": sha256_of(file)})
    if run.finished and run.drawn >= pictures:
        run.console.print(f"{output} has ended before")
        return run.result()
    from dupr_tf.detection.inference import Detector  # loads TensorFlow

    model = Detector(file, settings.min_score, settings.image_size, data, settings.one_class_per_box)
    if model.task not in OUTPUTS[settings.to].facts["tasks"]:
        raise _wrong_format(settings.to, model.task)
    return run.run(lambda paths: model.stream(paths, batch_size), model.class_names, pictures)


def _score_to_draw(file: Path) -> float:
    """Returns the lowest score to draw if none was chosen: the suggested one, since the lowest ones hide the image."""
    with contextlib.suppress(UserError):  # a damaged metrics.json, without which all is drawn
        return suggested_score(file) or 0.0
    return 0.0


def check_settings(settings: PredictSettings, saved: Saved | None) -> PredictSettings:
    """Returns the settings with a format. Raises UserError if they are wrong, or do not suit the saved detector."""
    task = "boxes" if saved is None else DETECTORS[saved.kind].facts["task"]
    settings = dataclasses.replace(settings, to=settings.to or default_format(task))
    if task not in OUTPUTS.check(settings.to).facts["tasks"]:
        raise _wrong_format(settings.to, task)
    if settings.min_score not in (None, "suggested") and not 0 <= settings.min_score <= 1:
        raise UserError("--min-score", f"Expected 0 to 1, received {settings.min_score:g}.", "Pass 0.5.")
    if settings.min_score is not None and task == "segments":
        raise UserError("--min-score", "A detector of segments has no scores.", "Leave it out.")
    if settings.one_class_per_box and task == "segments":
        raise UserError("--one-class-per-box", "A detector of segments has no boxes.", "Leave it out.")
    check_size(saved, settings.image_size)
    return settings


def _wrong_format(to: str, task: str) -> UserError:
    return UserError("--to", f"A detector of {task} has no output {to}.", f"Pass {default_format(task)}.")


def check_stems(names: Sequence[str], to: str) -> None:
    """Raises UserError if two images would have the same output file, or one a name that is too long.

    Two images whose names differ only in their endings have the same output file.
    """
    stems = [os.path.splitext(flat_name(name) if to == "png" else name)[0] for name in names]
    longest = max(map(flat_name, names), key=lambda name: len(os.fsencode(name))) if to == "png" else ""
    if len(os.fsencode(longest)) > MOST_NAME:
        problem = f"The folders and the name of {escape(longest)} are too long for one file name."
        raise UserError("--images", problem, "Pass the folder that holds the images.")
    shared = {stem for stem, count in collections.Counter(stems).items() if count > 1}
    same = [escape(name) for name, stem in zip(names, stems, strict=True) if stem in shared]
    if same:
        problem = f"{len(same)} images would write files of the same name: {listed(same)}."
        fix = "Rename one of each name, or pass the images of one ending to --images and predict the others elsewhere."
        raise UserError("--images", problem, fix)


class PredictRun:
    """Manages the parts of a run in its output folder.

    Args:
        output: folder of the run.
        root, names: the images, see `list_inputs`.
        settings: with a format.
        max_bad_share: as in `predict`.
        console: for progress.
        data: settings for reading files.
        drawn_from: lowest score of a detection in the pictures.

    Attributes:
        finished: True if the run had ended before; known after `check`.
        drawn: number of pictures that such a run was to draw.
    """

    def __init__(
        self,
        output: Path,
        root: str,
        names: list[str],
        settings: PredictSettings,
        max_bad_share: float,
        console: Console,
        data: DataConfig | None = None,
        drawn_from: float = 0.0,
    ):
        self.data, self.drawn_from = data or DataConfig(), drawn_from
        self.output, self.root, self.names, self.settings = output, root, names, settings
        self.max_bad_share, self.console = max_bad_share, console
        self.finished, self.drawn = False, 0
        self.header: dict = {}

    def check(self, detector: dict) -> None:
        """Compares the output folder with this run. Raises UserError if it holds anything else.

        The run has not ended if an output is missing, or an image that was left out can be read now.
        """
        source = source_facts(self.root, self.names)
        settings = {**dataclasses.asdict(self.settings), "depth": self.data.depth}
        if not self.settings.one_class_per_box:
            del settings["one_class_per_box"]  # outputs from before it existed do not have it either
        self.header = {"format": FORMAT, "detector": detector, "settings": settings, "source": source}
        if self.output.is_file():
            raise UserError("--output", f"{self.output} is a file.", "Pass a folder.")
        if not self.output.is_dir() or {path.name for path in self.output.iterdir()} <= {LOCK_FILE, f"{RUN_FILE}.tmp"}:
            return
        try:
            facts, _, _ = read_sealed(self.output / RUN_FILE)
        except (OSError, ValueError):
            raise UserError("--output", f"{self.output} has other files.", "Choose an empty folder.") from None
        if not self._keeps_anything(facts):
            return  # an earlier run has ended before its first part
        changed = recorded_differences(facts, self.header)
        if changed:
            problem = f"{self.output} holds predictions with {changed}."
            raise UserError("--output", problem, "Use the same again, or choose another folder.")
        files = OUTPUTS[self.settings.to].facts["files"]  # if the user removed one, all are written again
        whole = "result" in facts and all((self.output / name).exists() for name in files)
        self.finished = whole and not some_usable(self.root, facts["result"], self.data)
        self.drawn = facts["result"].get("pictures", 0) if self.finished else 0

    def _keeps_anything(self, facts: dict) -> bool:
        """Returns True if the folder has a part or an output of the recorded run."""
        parts = (self.output / PARTS).glob("part-*.jsonl")
        files = (self.output / name for entry in OUTPUTS.values() for name in entry.facts["files"])
        return "result" in facts or any(parts) or any(map(os.path.lexists, files))

    def run(self, stream: Stream, class_names: Sequence[str], pictures: int) -> Predicted:
        """Predicts the missing parts, then writes the output. For a run that has ended, it only draws more pictures.

        Args:
            stream: predicts on a list of paths.
            class_names: names of the classes 0, 1, …
            pictures: number of images that are drawn.
        """
        with locked(self.output):
            self.check(self.header["detector"])  # another process may have written since
            if self.finished:
                if pictures > self.drawn:
                    self._draw_again(stream, class_names, pictures)
                return self.result()
            write_whole(self.output / RUN_FILE, seal(self.header)[0])
            left_out = self._parts().compute(
                stream, encode_prediction, self.max_bad_share, self.output / BAD_IMAGES, self.console
            )
            OUTPUTS.load(self.settings.to)(
                self.output, self.predictions, self.root, class_names, self.settings.min_score is not None
            )
            if pictures:
                wanted = set(sheet_positions(len(self.names) - left_out.count, pictures))
                shown = (image for position, image in enumerate(self.predictions()) if position in wanted)
                self._draw(shown, class_names)
            boxes = "boxes" in OUTPUTS[self.settings.to].facts["tasks"]
            detections = sum(len(image["boxes"]) for image in self.predictions()) if boxes else None
            left_out.write(self.output / BAD_IMAGES)
            facts = {"images": len(self.names) - left_out.count, "detections": detections, "pictures": pictures}
            facts |= left_out_facts(self.root, left_out.listed, self.data)
            write_whole(self.output / RUN_FILE, seal({**self.header, "result": facts})[0])
            shutil.rmtree(self.output / PARTS)
        return self.result()

    def result(self) -> Predicted:
        """Returns the result of a run that has ended."""
        facts = read_sealed(self.output / RUN_FILE)[0]["result"]
        images = facts["images"]
        return Predicted(images, facts["detections"], len(self.names) - images, [tuple(pair) for pair in facts["bad"]])

    def predictions(self) -> Iterator[dict]:
        """Yields the predictions of every image, in the order of the names, a part at a time."""
        for _, lines in self._parts().read():
            yield from map(json.loads, lines.splitlines())

    def _parts(self) -> ImageParts:
        run_id = seal(self.header)[1]
        return ImageParts(self.output / PARTS, ".jsonl", self.root, self.names, PART, run_id, self.data)

    def _draw(self, shown: Iterable[dict], class_names: Sequence[str]) -> None:
        """Draws the predictions of some images, in place of earlier pictures."""
        shutil.rmtree(self.output / PICTURES, ignore_errors=True)
        (self.output / PICTURES).mkdir(exist_ok=True)
        for image in shown:
            path, name = os.path.join(self.root, image["name"]), f"{flat_name(image['name'])}.png"
            draw = functools.partial(predicted_picture, path, image, class_names, self.data, self.drawn_from)
            draw_pictures({name: draw}, self.output / PICTURES)

    def _draw_again(self, stream: Stream, class_names: Sequence[str], pictures: int) -> None:
        """Predicts the images to draw of a run that has ended, whose parts are gone, and draws them."""
        facts = read_sealed(self.output / RUN_FILE)[0]
        bad = {name for name, _ in facts["result"]["bad"]}
        readable = [name for name in self.names if name not in bad]
        chosen = [readable[position] for position in sheet_positions(len(readable), pictures)]
        results = stream([os.path.join(self.root, name) for name in chosen])
        usable = ((chosen[index], result) for index, result in results if not isinstance(result, Unusable))
        self._draw((record_of(name, prediction) for name, prediction in usable), class_names)
        result = {**facts["result"], "pictures": pictures}
        write_whole(self.output / RUN_FILE, seal({**facts, "result": result})[0])


def encode_prediction(name: str, prediction: Prediction) -> bytes:
    """Returns the line of an image in a part, JSON."""
    return (json.dumps(record_of(name, prediction)) + "\n").encode()


def predicted_picture(
    image_path: str, record: dict, class_names: Sequence[str], data: DataConfig, drawn_from: float, path: Path
) -> None:
    """Draws the predictions of one image, boxes or segments.

    Args:
        image_path: file of the image.
        record: of `outputs`.
        class_names: names of the classes 0, 1, …
        data: settings for reading files.
        drawn_from: lowest score of a detection that is drawn.
        path: PNG file to write.
    """
    image = read_image(image_path, data)
    if "segments" in record:
        segments_picture(image, segments_of(record), class_names).save(path)
        return
    kept = [k for k, score in enumerate(record["scores"]) if score >= drawn_from]
    arrays = {name: np.array([record[name][k] for k in kept], np.float32) for name in ("boxes", "classes", "scores")}
    masks = [record["masks"][k].encode() for k in kept] if "masks" in record else []
    detections_picture(image, {**arrays, "masks": masks}, class_names).save(path)
