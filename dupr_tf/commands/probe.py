"""The command that probes backbones."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import inspect
import itertools
import json
import operator
from collections.abc import Container
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from dupr_tf.commands.checks import folder_problems, output_problems, problems_of
from dupr_tf.commands.screen import print_line, print_table, print_warnings
from dupr_tf.config import BACKBONES, PROBED_LEVELS, DataConfig, LinearConfig, load_config
from dupr_tf.config.probes import PROBES
from dupr_tf.data.images.bad_images import check_photos
from dupr_tf.errors import UserError, raise_all
from dupr_tf.files import write_whole
from dupr_tf.locks import locked
from dupr_tf.probing.labelled import (
    check_class_folders,
    has_class_folders,
    is_annotated,
    pick_objects,
    read_both_splits,
    read_class_folders,
    read_split,
)
from dupr_tf.probing.load import check_backbones, labels_of, load_backbones
from dupr_tf.records import read_record
from dupr_tf.reporting.folders import PROBES_FOLDER
from dupr_tf.training.cluster import refuse_cluster
from dupr_tf.weights.catalogue import find_public, is_public
from dupr_tf.weights.download import origin_of
from dupr_tf.weights.paths import recorded_name

PROBE_FILE, IDENTITY = "probe.json", ("probe", "weights", "settings")
LEAST = {"images": 1, "image_size": 32, "k": 1, "queries": 1, "top": 1, "cells": 1, "folds": 2, "seed": 0}
Level = Literal[PROBED_LEVELS]
READING = ("data.kind", "data.depth", "data.max_pixels")  # fields of a config that every probe takes as flags
MapLevel = Literal[PROBED_LEVELS[1:]]


@dataclasses.dataclass
class Weights:
    """Flags that all probes share."""

    weights: tuple[str, ...]
    """Backbones, each a row of the table: runs, exports, .keras files, checkpoints that `import` reads, or random."""
    data: Path
    """Folder of images, or a data set, as the probe needs."""
    output: Path | None = None
    """Folder for probe.json and the picture, outside of the data. If it holds a result of other weights or settings,
    the new one goes to FOLDER-2. Default: runs/probes/NAME."""
    backbone: Literal[tuple(BACKBONES)] | None = None
    """Architecture of the random weights. Default: that of the first --weights."""
    width: float = 1.0
    """Width of the random weights, with --backbone."""
    seed: int = 0
    """Seed of the random weights and of what the probe draws."""

    @property
    def _name(self) -> str:
        return next(name for name, flags in FLAGS.items() if flags is type(self))

    @property
    def _folder(self) -> Path:
        return self.output or PROBES_FOLDER / self._name

    def run(self, overrides: dict[str, str]) -> None:
        refuse_cluster()
        raise_all(self._problems(overrides))
        section = self._section(overrides)
        read = self.read(section)
        with locked(self._folder):
            backbones = load_backbones(self.weights, self.backbone, self.width, self.seed)
            probe = PROBES.load(self._name)
            arguments = self.arguments(overrides, inspect.signature(probe).parameters)
            findings = probe(backbones, self.data, **arguments, **read, section=section)
            print_table(*self.table(findings.numbers))
            self._write(findings)

    def _section(self, overrides: dict[str, str]) -> DataConfig:
        return load_config(None, {name: value for name, value in overrides.items() if name in READING}).data

    def _problems(self, overrides) -> list[UserError]:
        problems = problems_of(check_backbones, self.weights, self.backbone)
        problems += folder_problems(self.data, "Pass a folder of images.")
        problems += output_problems(self._folder, self.data)
        for name, least in LEAST.items():
            value = getattr(self, name, None)
            if value is not None and value < least:
                flag, problem = f"--{name.replace('_', '-')}", f"Expected {least} or more, received {value}."
                problems.append(UserError(flag, problem, f"Use at least {least}."))
        if self.seed >= 2**31:
            problem = f"Expected less than {2**31:,}, received {self.seed:,}."
            problems.append(UserError("--seed", problem, "Use a smaller one."))
        if getattr(self, "temperature", 1.0) <= 0:
            problem = f"Expected more than 0, received {self.temperature}."
            problems.append(UserError("--temperature", problem, "Leave it out for the default."))
        return problems

    def read(self, section: DataConfig) -> dict[str, Any]:
        """Checks the data, and returns the data read as keyword arguments of the probe."""
        check_photos(self.data, section.kind, section.max_pixels, section.depth)
        return {}

    def arguments(self, overrides: dict[str, str], taken: Container[str]) -> dict[str, Any]:
        """Returns the probe's keyword arguments: the flags that its function takes by the same name."""
        return {name: getattr(self, name) for name in vars(self) if name in taken and name != "data"}

    def table(self, numbers: dict[str, dict]) -> tuple[tuple, list[tuple]]:
        """Returns headings and rows of the printed table, with a column for each number."""
        first = next(iter(numbers.values()))
        names = [name for name, value in first.items() if isinstance(value, int | float)]
        rows = [(label, *(_text(scores[name]) for name in names)) for label, scores in numbers.items()]
        return ("weights", *names), rows

    def _write(self, findings) -> None:
        from dupr_tf.probing.drawing import save

        weights = dict(zip(labels_of(self.weights), map(recorded_name, self.weights), strict=True))
        content = {**findings.as_json(), "weights": weights}
        sources = {label: origin_of(find_public(name)) for label, name in weights.items() if is_public(name)}
        content |= {"sources": sources} if sources else {}
        folder = free_folder(self._folder, content)
        folder.mkdir(parents=True, exist_ok=True)
        write_whole(folder / PROBE_FILE, json.dumps(content, indent=2) + "\n")
        print_line(f"wrote {folder / PROBE_FILE}")
        if findings.picture is not None:
            save(findings.picture, folder / f"{findings.probe}.png")
            print_line(f"wrote {folder / f'{findings.probe}.png'}")


def free_folder(folder: Path, content: dict) -> Path:
    """Returns the folder for a result: FOLDER, or FOLDER-2, FOLDER-3, … if the ones before hold another result.

    Args:
        folder: where the user wants it.
        content: of `probe.json`. A result of the same probe, weights and settings may be replaced.
    """
    wanted = json.loads(json.dumps([content[name] for name in IDENTITY]))
    for number in itertools.count(1):
        place = folder if number == 1 else folder.with_name(f"{folder.name}-{number}")
        if not (place / PROBE_FILE).exists():
            return place
        with contextlib.suppress(UserError):  # a damaged file is another result
            if read_record(place / PROBE_FILE, lambda saved: [saved[name] for name in IDENTITY]) == wanted:
                return place


def _text(value: Any) -> str:
    return "" if value is None else f"{value:.4f}" if isinstance(value, float) else str(value)


@dataclasses.dataclass
class Knn(Weights):
    """Classify by the nearest training images.

    --data contains train/CLASS/ and val/CLASS/.
    """

    EXAMPLE = "dupr-tf probe knn --weights runs/try/photos random --data CLASSES"

    k: int | None = None
    """Number of neighbours that vote, at most all training images. Default: the mean number of training images of a
    class, but no more than 200."""
    temperature: float = 0.07
    """Temperature of the vote, exp(cosine / temperature)."""
    level: Level = "P5"
    """Level of the features."""
    cells: int = 1
    """Cells per side that the features are averaged to."""
    image_size: int = 224
    """Side of an image in pixels."""

    def read(self, section):
        return {"folders": read_class_folders(self.data)}


@dataclasses.dataclass
class Linear(Weights):
    """Train a linear classifier on frozen features.

    --data contains train/CLASS/ and val/CLASS/. Without --config, the features are cached and standardised, which suits
    small sets. Any field of linear is a flag too: --linear.level P4. `dupr-tf fields` lists them.
    """

    EXAMPLE = "dupr-tf probe linear --weights runs/try/photos random --data CLASSES"

    config: Path | None = None
    """Config with a section linear, such as configs/probes/linear_imagenet.yaml. Default: the defaults of linear."""

    def _problems(self, overrides):
        problems = super()._problems(overrides)
        try:
            settings = self._settings(overrides)
        except UserError as error:
            return [*problems, *error.errors]
        print_warnings(settings.warnings())
        return [*problems, *settings.problems()]

    def _settings(self, overrides) -> LinearConfig:
        settings = load_config(self.config, overrides).linear
        if settings is None and self.config is not None:
            fix = "Pass a file such as configs/probes/linear_imagenet.yaml."
            raise UserError("--config", f"{self.config} has no section linear.", fix)
        return settings or LinearConfig()

    def arguments(self, overrides, taken):
        return {"settings": self._settings(overrides), "seed": self.seed}

    def read(self, section):
        return {"folders": read_class_folders(self.data)}


@dataclasses.dataclass
class Svm(Weights):
    """Train linear SVMs on the features of each level.

    They detect the classes in an image. The score is the mAP at VOC07's 11 points. --data is a VOC or COCO root.
    Cross-validation chooses C for each class.
    """

    EXAMPLE = "dupr-tf probe svm --weights runs/try/photos random --data runs/sample"

    levels: tuple[Level, ...] = PROBED_LEVELS
    """Levels of the features."""
    train_split: str = "train"
    """Split to train on. VOC2007 itself uses trainval."""
    test_split: str = "val"
    """Split to test on. VOC2007 itself uses test."""
    image_size: int = 224
    """Side of an image in pixels."""
    costs: tuple[float, ...] = (0.01, 0.1, 1.0, 10.0)
    """Values of C to try."""
    folds: int = 3
    """Number of folds of the cross-validation."""

    def _problems(self, overrides):
        problems = super()._problems(overrides)
        if not self.levels:
            problem = f"Expected some of {', '.join(PROBED_LEVELS)}, received none."
            problems.append(UserError("--levels", problem, "Leave it out for all of them."))
        if not self.costs or min(self.costs) <= 0:
            problem = f"Expected numbers above 0, received {list(self.costs) or 'none'}."
            problems.append(UserError("--costs", problem, "Leave it out for the default."))
        return problems

    def arguments(self, overrides, taken):
        return {**super().arguments(overrides, taken), "splits": (self.train_split, self.test_split)}

    def read(self, section):
        return {"annotated": read_both_splits(self.data, (self.train_split, self.test_split), section)}

    def table(self, numbers):
        rows = [(label, *(_text(scores[level]["mAP"]) for level in self.levels)) for label, scores in numbers.items()]
        chance = next(iter(numbers.values()))[self.levels[0]]["chance"]
        rows.append(("share of positives", *[_text(chance)] * len(self.levels)))
        return ("mAP", *self.levels), rows


@dataclasses.dataclass
class Sensitivity(Weights):
    """Measure how features change as a box moves off an object.

    Prints the similarity to the features of the object by IoU (eq. 8, Fig. 5). --data is a COCO or VOC root.
    """

    EXAMPLE = "dupr-tf probe sensitivity --weights runs/try/photos random --data runs/sample --images 50"

    split: str = "val"
    """Split whose boxes are used."""
    images: int = 200
    """Number of images. One object of each gets 20 boxes."""
    image_size: int = 448
    """Side of an image in pixels."""
    level: MapLevel = "P4"
    """Level of the features."""
    cells: int = 7
    """Cells per side of RoIAlign."""

    def read(self, section):
        annotated = read_split(self.data, self.split, section)
        pick_objects(annotated, self.images)
        return {"annotated": annotated}


@dataclasses.dataclass
class Matching(Weights):
    """Match the cells of two views by their features.

    Prints the share of matches within 1 and 2 cells of the true place (Fig. 10).
    """

    EXAMPLE = "dupr-tf probe matching --weights runs/try/photos random --data runs/sample/unlabeled"

    images: int = 64
    """Number of images, evenly spread over the folder. Each gives a pair of views."""
    image_size: int = 448
    """Side of a view in pixels. 448 gives 28 x 28 cells of P4."""
    level: MapLevel = "P4"
    """Level of the features."""


@dataclasses.dataclass
class Affinity(Weights):
    """Compare all places of one object in two views.

    Prints the mass of the affinity on the diagonal (eq. 9, Fig. 9). The places are those of the boxes in a COCO or VOC
    root, or of the overlaps of the views in another folder.
    """

    EXAMPLE = "dupr-tf probe affinity --weights runs/try/photos random --data runs/sample"

    split: str = "val"
    """Split of a COCO or VOC root."""
    images: int = 64
    """Number of images. Each gives a pair of views."""
    image_size: int = 448
    """Side of a view, px."""
    level: MapLevel = "P5"
    """Level of the features."""
    cells: int = 14
    """Cells per side of RoIAlign."""
    temperature: float = 0.001
    """Temperature of eq. 9."""

    def read(self, section):
        if not is_annotated(self.data):
            return super().read(section)
        annotated = read_split(self.data, self.split, section)
        pick_objects(annotated, self.images)
        return {"annotated": annotated}


@dataclasses.dataclass
class Retrieval(Weights):
    """Find the nearest images and compare the places of objects.

    Figs. 6 and 8 of the paper show such images.
    """

    EXAMPLE = "dupr-tf probe retrieval --weights runs/try/photos random --data runs/sample/unlabeled"

    images: int = 500
    """Number of images, evenly spread over the folder, or over val/ of class folders."""
    queries: int = 100
    """Number of queries among these images."""
    image_size: int = 224
    """Side of an image in pixels."""
    level: MapLevel = "P5"
    """Level of the maps."""
    top: int = 4
    """Number of neighbours for each query."""

    def read(self, section):
        if not has_class_folders(self.data):
            return super().read(section)
        check_class_folders(self.data)
        return {}


# The flags of each line of PROBES.
FLAGS = {
    "knn": Knn, "linear": Linear, "svm": Svm,
    "sensitivity": Sensitivity, "matching": Matching, "affinity": Affinity, "retrieval": Retrieval,
}  # fmt: skip
CHOICES = [Annotated[flags, tyro.conf.subcommand(name)] for name, flags in FLAGS.items()]
AnyProbe = functools.reduce(operator.or_, CHOICES)


@dataclasses.dataclass
class Probe:
    """Evaluate frozen backbones.

    knn, linear and svm measure classes. sensitivity, matching, affinity and retrieval measure places.
    Three fields of the data section are flags too: --data.kind, --data.depth and --data.max_pixels.
    """

    EXAMPLE = "dupr-tf probe matching --weights runs/try/photos random --data runs/sample/unlabeled"

    which: tyro.conf.OmitArgPrefixes[tyro.conf.OmitSubcommandPrefixes[AnyProbe]]

    def run(self, overrides: dict[str, str]) -> None:
        others = [name for name in overrides if name not in READING]
        if others and not isinstance(self.which, Linear):
            problem = f"Only probe linear takes other fields of a config than {', '.join(READING)}."
            raise UserError(f"--{others[0]}", problem, "Leave it out.")
        self.which.run(overrides)
