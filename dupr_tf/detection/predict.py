"""Predicts on any number of image files, in parts that are kept if the run stops. Does not load TensorFlow.

`OUT/parts/` has a file for each 256 images, written as a whole. A resumed run looks for these files and predicts the
missing ones. At the end the parts become one output in the chosen format.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import functools
import hashlib
import json
import logging
import os
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
from rich.console import Console

from dupr_tf.config import DataConfig
from dupr_tf.config.detectors import DETECTORS
from dupr_tf.data.detection import read_image
from dupr_tf.data.images.bad_images import write_list
from dupr_tf.data.images.decode import Unusable
from dupr_tf.data.images.listing import list_images
from dupr_tf.data.shards.index import read_sealed, seal
from dupr_tf.detection.finetune import check_size, data_section, detector_file
from dupr_tf.detection.outputs import OUTPUTS, default_format, flat_name
from dupr_tf.detection.pictures import detections_picture, draw_pictures, sheet_positions
from dupr_tf.detection.prediction import Prediction, record_of, segments_of
from dupr_tf.detection.segmentation_sheet import segments_picture
from dupr_tf.errors import RunFailed, UserError
from dupr_tf.files import local_path, sha256_of, write_whole
from dupr_tf.locks import LOCK_FILE, locked
from dupr_tf.text import duration, escape, one_line
from dupr_tf.weights.saved_detectors import Saved, read_saved

log = logging.getLogger(__name__)
FORMAT = "dupr_tf predictions 1"
RUN_FILE, BAD_IMAGES, PARTS, PICTURES = "predict.json", "bad_images.tsv", "parts", "pictures"
PART = 256  # images
SAY_EVERY, SAME_BATCH = 5.0, 0.01  # seconds
Bad = list[tuple[str, str]]  # name and reason
Stream = Callable[[list[str]], Iterator[tuple[int, Prediction | Unusable]]]  # paths -> number and prediction


@dataclasses.dataclass(frozen=True)
class PredictSettings:
    """Holds the settings that determine the predictions.

    Args:
        to: a name in `OUTPUTS`. None: COCO, or PNG for a detector of segments.
        min_score: lower detections are left out, 0 to 1. None: the detector's own threshold.
        image_size: px to which images are scaled. None: the detector's own.
    """

    to: str | None = None
    min_score: float | None = None
    image_size: int | None = None


@dataclasses.dataclass(frozen=True)
class Predicted:
    """Holds the result of a run: counts of images and of detections, and (name, reason) of the images left out."""

    images: int
    detections: int
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
    for name, value, low, high in (
        ("--pictures", pictures, 0, 10**6),
        ("--max-bad-share", max_bad_share, 0, 1),
        ("--batch-size", batch_size, 1, 4096),
    ):
        if not low <= value <= high:
            raise UserError(name, f"Expected {low} to {high}, received {value}.", f"Pass {max(low, min(value, high))}.")
    root, names = list_inputs(images)
    data = data_section(file, overrides=overrides)
    if OUTPUTS[settings.to].facts["one_file_a_stem"]:
        check_stems(names, settings.to)
    run = PredictRun(output, root, names, settings, max_bad_share, console or Console(), data)
    run.check({"file": file.name, "sha256": sha256_of(file)})
    if run.finished:
        run.console.print(f"{output} has ended before")
        return run.result()
    from dupr_tf.detection.inference import Detector  # loads TensorFlow

    model = Detector(file, settings.min_score, settings.image_size, data)
    if model.task not in OUTPUTS[settings.to].facts["tasks"]:
        raise _wrong_format(settings.to, model.task)
    return run.run(lambda paths: model.stream(paths, batch_size), model.class_names, pictures)


def check_settings(settings: PredictSettings, saved: Saved | None) -> PredictSettings:
    """Returns the settings with a format. Raises UserError if they are wrong, or do not suit the saved detector."""
    task = "boxes" if saved is None else DETECTORS[saved.kind].facts["task"]
    settings = dataclasses.replace(settings, to=settings.to or default_format(task))
    if task not in OUTPUTS.check(settings.to).facts["tasks"]:
        raise _wrong_format(settings.to, task)
    if settings.min_score is not None and not 0 <= settings.min_score <= 1:
        raise UserError("--min-score", f"Expected 0 to 1, received {settings.min_score:g}.", "Pass 0.5.")
    if settings.min_score is not None and task == "segments":
        raise UserError("--min-score", "A detector of segments has no scores.", "Leave it out.")
    check_size(saved, settings.image_size)
    return settings


def _wrong_format(to: str, task: str) -> UserError:
    return UserError("--to", f"A detector of {task} has no output {to}.", f"Pass {default_format(task)}.")


def list_inputs(paths: Sequence[str | Path]) -> tuple[str, list[str]]:
    """Returns a folder that holds all images, and their names below it, sorted.

    Args:
        paths: folders, whose images are listed, and files.

    Raises:
        UserError: a path does not exist, or a folder has no image.
    """
    if not paths:
        raise UserError("--images", "No images are given.", "Pass a folder of images, or image files.")
    files, folders = set(), set()
    for path in (local_path(path, "--images") for path in paths):
        if path.is_dir():
            try:
                files.update(list_images(path))
            except UserError as error:
                raise UserError("--images", error.problem, error.fix) from None
            folders.add(os.path.abspath(path))
        elif path.exists():
            files.add(os.path.abspath(path))
            folders.add(os.path.dirname(os.path.abspath(path)))
        else:
            raise UserError("--images", f"{path} does not exist.", "Pass a folder of images, or image files.")
    root = os.path.commonpath(folders)
    return root, sorted(file[len(os.path.join(root, "")) :] for file in files)


def check_stems(names: Iterable[str], to: str) -> None:
    """Raises UserError if two images would have the same output file, because they differ only in their endings."""
    counts = collections.Counter(os.path.splitext(flat_name(name) if to == "png" else name)[0] for name in names)
    stem, count = counts.most_common(1)[0]
    if count > 1:
        problem = f"{count} images would write the same file {escape(stem)}."
        raise UserError(
            "--images", problem, "Rename one, or pass another --to, or predict them into different outputs."
        )


class PredictRun:
    """Manages the parts of a run in its output folder.

    Args:
        output: folder of the run.
        root, names: the images, see `list_inputs`.
        settings: with a format.
        max_bad_share: as in `predict`.
        console: for progress.
        data: settings for reading files.

    Attributes:
        finished: True if the run had ended before; known after `check`.
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
    ):
        self.data = data or DataConfig()
        self.output, self.root, self.names, self.settings = output, root, names, settings
        self.most_bad, self.console, self.finished = max_bad_share * len(names), console, False
        self.parts = [names[first : first + PART] for first in range(0, len(names), PART)]
        self.header: dict = {}

    def check(self, detector: dict) -> None:
        """Compares the output folder with this run. Raises UserError if it holds anything else."""
        digest = hashlib.sha256()
        for name in self.names:
            digest.update(os.fsencode(f"{name}\0"))
        source = {"root": os.fsdecode(self.root), "files": len(self.names), "sha256": digest.hexdigest()}
        settings = {**dataclasses.asdict(self.settings), "depth": self.data.depth}
        self.header = {"format": FORMAT, "detector": detector, "settings": settings, "source": source}
        if self.output.is_file():
            raise UserError("--output", f"{self.output} is a file.", "Pass a folder.")
        if not self.output.is_dir() or {path.name for path in self.output.iterdir()} <= {LOCK_FILE}:
            return
        try:
            facts, _, _ = read_sealed(self.output / RUN_FILE)
        except (OSError, ValueError):
            raise UserError("--output", f"{self.output} has other files.", "Choose an empty folder.") from None
        changed = [name for name, value in self.header.items() if facts.get(name) != value]
        if changed:
            problem = f"{self.output} holds predictions with other {', '.join(changed)}."
            raise UserError("--output", problem, "Use the same again, or choose another folder.")
        self.finished = "result" in facts

    def run(self, stream: Stream, class_names: Sequence[str], pictures: int) -> Predicted:
        """Predicts the missing parts, then writes the output.

        Args:
            stream: predicts on a list of paths.
            class_names: names of the classes 0, 1, …
            pictures: number of images that are drawn.
        """
        with locked(self.output):
            (self.output / PARTS).mkdir(parents=True, exist_ok=True)
            if not (self.output / RUN_FILE).exists():
                write_whole(self.output / RUN_FILE, seal(self.header)[0])
            bad = self._predict_parts(stream)
            if len(bad) == len(self.names):
                name, reason = bad[0]
                raise RunFailed(f"None of {len(bad)} images can be read, such as {escape(name)} ({reason}).")
            OUTPUTS.load(self.settings.to)(
                self.output, self.found, self.root, class_names, self.settings.min_score is not None
            )
            if pictures:
                self._draw(class_names, pictures, len(self.names) - len(bad))
            detections = sum(len(image["boxes"]) for image in self.found())
            write_list(self.output / BAD_IMAGES, bad)
            facts = {"images": len(self.names) - len(bad), "detections": detections, "bad": bad}
            write_whole(self.output / RUN_FILE, seal({**self.header, "result": facts})[0])
            shutil.rmtree(self.output / PARTS)
        return self.result()

    def result(self) -> Predicted:
        """Returns the result of a run that has ended."""
        facts = read_sealed(self.output / RUN_FILE)[0]["result"]
        return Predicted(facts["images"], facts["detections"], [tuple(pair) for pair in facts["bad"]])

    def found(self) -> Iterator[dict]:
        """Yields the predictions of every image, in the order of the names, a part at a time."""
        for number in range(len(self.parts)):
            for line in read_sealed(self._file(number))[2].splitlines():
                yield json.loads(line)

    def _file(self, number: int) -> Path:
        return self.output / PARTS / f"part-{number:06d}.jsonl"

    def _predict_parts(self, stream: Stream) -> Bad:
        """Writes the missing parts. Returns the unreadable images of all parts."""
        run_id = seal(self.header)[1]
        finished = {
            number: bad for number in range(len(self.parts)) if (bad := self._read_bad(number, run_id)) is not None
        }
        kept = sum(len(self.parts[number]) for number in finished)
        if finished:
            self.console.print(f"resuming after {kept} of {len(self.names)} images")
        progress = _Progress(len(self.names), kept, self.console)
        for number, names in enumerate(self.parts):
            if number in finished:
                continue
            lines, bad, earlier = {}, [], [pair for one in finished.values() for pair in one]
            for index, prediction in stream([os.path.join(self.root, name) for name in names]):
                progress.add()
                if not isinstance(prediction, Unusable):
                    lines[index] = json.dumps(record_of(names[index], prediction)) + "\n"
                    continue
                bad.append((names[index], one_line(prediction, 200)))
                log.warning("skipped, %s: %s", bad[-1][1], escape(names[index]))
                if len(earlier) + len(bad) > self.most_bad:
                    self._refuse_bad(earlier + bad)
            facts = {"run": run_id, "number": number, "bad": sorted(bad)}
            text = "".join(lines[index] for index in sorted(lines)).encode()
            write_whole(self._file(number), seal(facts, text)[0])
            finished[number] = sorted(bad)
        return [pair for number in sorted(finished) for pair in finished[number]]

    def _read_bad(self, number: int, run_id: str) -> Bad | None:
        """Returns the unreadable images of a part that an earlier call wrote; None if it is missing or damaged."""
        with contextlib.suppress(OSError, ValueError, KeyError):
            facts, _, _ = read_sealed(self._file(number))
            if (facts["run"], facts["number"]) == (run_id, number):
                return [tuple(pair) for pair in facts["bad"]]
        return None

    def _refuse_bad(self, bad: Bad) -> None:
        write_list(self.output / BAD_IMAGES, bad)
        raise RunFailed(
            f"{len(bad)} of {len(self.names)} images cannot be read, listed in {self.output / BAD_IMAGES}. "
            "Replace or remove them, or raise --max-bad-share, and run the same command again."
        )

    def _draw(self, class_names: Sequence[str], pictures: int, images: int) -> None:
        wanted = set(sheet_positions(images, pictures))
        (self.output / PICTURES).mkdir(exist_ok=True)
        for position, image in enumerate(self.found()):
            if position in wanted:
                path, name = os.path.join(self.root, image["name"]), f"{flat_name(image['name'])}.png"
                draw = functools.partial(predicted_picture, path, image, class_names, self.data)
                draw_pictures({name: draw}, self.output / PICTURES)


class _Progress:
    """Prints the number of images, their speed and the time that is left, every few seconds and at the end.

    The first batch is not timed, because TensorFlow prepares the model in it.
    """

    def __init__(self, total: int, done: int, console: Console):
        self.total, self.done, self.untimed, self.console = total, done, done, console
        self.start = self.said = None

    def add(self) -> None:
        self.done += 1
        now = time.monotonic()
        if self.start is None or now - self.start < SAME_BATCH:
            self.untimed, self.start, self.said = self.done, self.start or now, now
        if now - self.said >= SAY_EVERY or self.done == self.total:
            text, self.said = f"image {self.done}/{self.total}", now
            if self.done > self.untimed:
                rate = (self.done - self.untimed) / (now - self.start)
                text += f"  {rate:.1f} images/s  ETA {duration((self.total - self.done) / rate)}"
            self.console.print(text)


def predicted_picture(image_path: str, record: dict, class_names: Sequence[str], data: DataConfig, path: Path) -> None:
    """Draws the predictions of one image, boxes or segments.

    Args:
        image_path: file of the image.
        record: of `outputs`.
        class_names: names of the classes 0, 1, …
        data: settings for reading files.
        path: PNG file to write.
    """
    image = read_image(image_path, data)
    if "segments" in record:
        segments_picture(image, segments_of(record), class_names).save(path)
        return
    arrays = {name: np.array(record[name], np.float32) for name in ("boxes", "classes", "scores")}
    masks = [mask.encode() for mask in record.get("masks", ())]
    detections_picture(image, {**arrays, "masks": masks}, class_names).save(path)
