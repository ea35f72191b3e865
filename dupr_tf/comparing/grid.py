"""Defines the cells of a comparison: a fine-tuning or a probe for each backbone, share of the labels and seed."""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Sequence
from typing import NamedTuple

from dupr_tf.errors import UserError
from dupr_tf.files import local_path
from dupr_tf.weights.catalogue import is_public, short_name
from dupr_tf.weights.paths import RANDOM

LABEL = re.compile(r"[A-Za-z0-9][A-Za-z0-9 ._+-]{0,63}")


@dataclasses.dataclass(frozen=True)
class Backbone:
    """Holds weights to compare.

    Args:
        label: its name in tables and folders.
        weights: the weights: "random", or one path for all seeds, or a path for each seed, such as the runs of a
            pre-training with several seeds. Names and addresses of public weights are paths too.
    """

    label: str
    weights: tuple[str, ...]

    def weights_of(self, seed: int) -> str:
        """Returns the weights that the fine-tuning with a seed starts from."""
        return self.weights[seed if len(self.weights) > 1 else 0]


@dataclasses.dataclass(frozen=True)
class Cell:
    """Identifies one fine-tuning, or one score of a probe.

    Args:
        backbone: the label of a `Backbone`.
        share: share of the labelled training images.
        seed: seed of the share, the order, the augmentation and the new layers.
        rate: learning rate of a cell that helps to choose one. None for a cell that is scored on val.
    """

    backbone: str
    share: float
    seed: int
    rate: float | None = None

    @property
    def folder(self) -> str:
        """Returns its folder, below that of the comparison."""
        name = self.backbone.replace(" ", "_")
        if self.rate is not None:
            return f"rates/{name}/{self.rate:g}"
        return f"cells/share_{self.share:g}/seed_{self.seed}/{name}"

    @property
    def text(self) -> str:
        """Describes the cell in a line of progress."""
        if self.rate is not None:
            return f"{self.backbone}, learning rate {self.rate:g} on held-out images"
        return f"{self.backbone}, share {self.share:g}, seed {self.seed}"


class Task(NamedTuple):
    """Holds the cells that one process runs.

    Args:
        cells: one fine-tuning, or all cells of a probe that use the same weights.
        rate: learning rate. None for a probe.
    """

    cells: tuple[Cell, ...]
    rate: float | None


def probe_tasks(backbones: Sequence[Backbone], cells: Sequence[Cell]) -> list[Task]:
    """Returns the cells of a probe, those with the same weights together, so that features are computed once."""
    of_label, groups = {one.label: one for one in backbones}, {}
    for cell in cells:
        weights = of_label[cell.backbone].weights_of(cell.seed)
        draw = cell.seed if weights == RANDOM else None
        groups.setdefault((cell.backbone, weights, draw), []).append(cell)
    return [Task(tuple(group), None) for group in groups.values()]


def parse_backbones(texts: Sequence[str]) -> list[Backbone]:
    """Parses `PATH`, `LABEL=PATH` and `LABEL=PATH,PATH,…`, where a path may be the name or address of public weights.

    The label of a path alone is the last part of it, and that of a name alone the name.

    Raises:
        UserError: a label that cannot name a folder, or two equal ones.
    """
    backbones = [_parse_backbone(text) for text in texts]
    folders = [backbone.label.replace(" ", "_").casefold() for backbone in backbones]
    for backbone, folder in zip(backbones, folders, strict=True):
        if folders.count(folder) > 1:
            fix = f"Name them, for example a={backbone.weights[0]}."
            raise UserError("--backbones", f"Two backbones are called {backbone.label}.", fix)
    return backbones


def _parse_backbone(text: str) -> Backbone:
    label, equals, paths = text.partition("=")
    if is_public(text) or not equals or os.path.exists(text):
        name = short_name(text) if is_public(text) else os.path.basename(os.path.normpath(text))
        label, equals, paths = re.sub(r"[^A-Za-z0-9 ._+-]", "_", name.removesuffix(".keras")), "", text
    if not LABEL.fullmatch(label):
        problem = f"{label!r} cannot be a label: it names a folder."
        raise UserError("--backbones", problem, "Use letters, digits, blanks and . _ + -, for example dupr=runs/dupr.")
    weights = paths.split(",") if equals and not os.path.exists(paths) else [paths]
    if not all(weights):
        raise UserError("--backbones", f"{text} has an empty path.", f"Write {label}=runs/seed0,runs/seed1.")
    return Backbone(label, tuple(w if w == RANDOM else os.fspath(_absolute(w)) for w in weights))


def _absolute(weights: str):
    if is_public(weights):
        return weights
    path = local_path(weights, "--backbones")
    return path.absolute() if path.exists() else weights


def middle_share(shares: Sequence[float]) -> float:
    """Returns the middle of the shares, the smaller one of two."""
    return sorted(shares)[(len(shares) - 1) // 2]
