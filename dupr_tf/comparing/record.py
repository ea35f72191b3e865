"""Writes and checks the record of a comparison, `comparison.json` and `config.yaml`. A later call may add to it.

Every call continues the comparison in its folder: the backbones, shares and seeds of all calls make one grid. What
would make cells incomparable is refused: another config, other data, other learning rates.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import os
from pathlib import Path

from dupr_tf.comparing.grid import Backbone, Cell, middle_share
from dupr_tf.config import PROBED_LEVELS, Config, dump_config, load_config
from dupr_tf.config.probes import PROBE_METRICS
from dupr_tf.errors import UserError, raise_all
from dupr_tf.files import write_all
from dupr_tf.records import digest, listing, mapping, read_record, text, whole
from dupr_tf.training.pool import ValOverlap
from dupr_tf.training.run import CONFIG_FILE, differences
from dupr_tf.weights.paths import RANDOM

RECORD_FILE = "comparison.json"
FORMAT = 1
OTHER = "Use the same as before, or choose another --output."


@dataclasses.dataclass(frozen=True)
class Comparison:
    """Defines a comparison.

    Args:
        config: config of the fine-tuning. Seed, share, learning rate and steps are set for each cell. For a probe, only
            the fields that it uses.
        data: absolute root of the labelled data.
        labels: {"train", "val"} -> digest of images and labels.
        contents: {"train", "val"} -> digest of the contents of the files of images and masks. Empty for a comparison of
            an earlier version.
        counts: {"train", "val"} -> number of images.
        backbones: what is compared, in the order of the tables.
        shares: shares of the labels, rising.
        steps: steps of each cell with a share, in the order of `shares`. 1 for a probe, which trains nothing.
        seeds: number of seeds, which are 0, 1, ….
        rates: learning rates to choose from, or the one of all cells. Empty for a probe.
        rate_share: share at which rates are chosen.
        reference: label of the backbone that the others are compared with.
        digests: {path: sha256 of its weights}, of the paths that an earlier call has loaded.
        overlaps: {path: photos of its pre-training that are in val}, of the paths that an earlier call has counted.
        probe: name of the probe that scores the backbones. None for a detector.
        level: level of the features of a probe.
    """

    config: Config
    data: str
    labels: dict[str, str]
    counts: dict[str, int]
    backbones: tuple[Backbone, ...]
    shares: tuple[float, ...]
    steps: tuple[int, ...]
    seeds: int
    rates: tuple[float, ...]
    rate_share: float
    reference: str
    digests: dict[str, str] = dataclasses.field(default_factory=dict)
    overlaps: dict[str, ValOverlap] = dataclasses.field(default_factory=dict)
    contents: dict[str, str] = dataclasses.field(default_factory=dict)
    probe: str | None = None
    level: str | None = None

    def rate_cells(self) -> list[Cell]:
        """Returns the cells that choose the learning rate of each backbone; none if there is no choice."""
        rates = self.rates if len(self.rates) > 1 else ()
        return [Cell(one.label, self.rate_share, 0, rate) for one, rate in itertools.product(self.backbones, rates)]

    def scored_cells(self) -> list[Cell]:
        """Returns the cells to score, seed by seed, so that a first table of all backbones comes early.

        Within a seed, the middle share comes first: there the labels are neither scarce nor plenty.
        """
        middle = middle_share(self.shares)
        order = [middle, *(share for share in self.shares if share != middle)]
        grid = itertools.product(range(self.seeds), order, self.backbones)
        return [Cell(one.label, share, seed) for seed, share, one in grid]

    def backbone(self, label: str) -> Backbone:
        return next(backbone for backbone in self.backbones if backbone.label == label)

    def steps_of(self, share: float) -> int:
        return self.steps[self.shares.index(share)]

    def images_of(self, share: float) -> int:
        """Returns the number of labelled images of a share, as `take_share` draws them."""
        return max(1, round(share * self.counts["train"]))

    def repeats(self, label: str, share: float) -> bool:
        """Returns True if a probe scores a backbone the same with every seed: one file of weights, and all images."""
        weights = self.backbone(label).weights
        same_images = self.images_of(share) == self.counts["train"]
        return self.probe is not None and same_images and len(weights) == 1 and weights[0] != RANDOM


def read_comparison(folder: Path) -> Comparison:
    """Reads the record of a comparison. Raises UserError if it is damaged or missing."""
    config = load_config(folder / CONFIG_FILE)
    return read_record(folder / RECORD_FILE, lambda value: _parse(mapping(value), config))


def write_comparison(folder: Path, comparison: Comparison) -> None:
    """Writes the record of a comparison, the config first."""
    content = {name: value for name, value in vars(comparison).items() if name not in ("config", "backbones")}
    content |= {"format": FORMAT, "backbones": {one.label: one.weights for one in comparison.backbones}}
    content |= {"overlaps": {path: dataclasses.asdict(counted) for path, counted in comparison.overlaps.items()}}
    record = json.dumps(content, indent=2) + "\n"
    write_all({folder / CONFIG_FILE: dump_config(comparison.config), folder / RECORD_FILE: record})


def extend(saved: Comparison, new: Comparison) -> Comparison:
    """Returns the comparison of an earlier call, with the backbones, shares and seeds that this call adds.

    Raises:
        UserError: the calls cannot share a folder; a UserErrors for several reasons.
    """
    problems = _changes(saved, new)
    steps = dict(zip(saved.shares, saved.steps, strict=True))
    for share, count in zip(new.shares, new.steps, strict=True):
        if steps.setdefault(share, count) != count:
            problem = f"Share {share:g} has {steps[share]:,} steps in this comparison, received {count:,}."
            problems.append(UserError("--steps", problem, OTHER))
    backbones = {backbone.label: backbone for backbone in saved.backbones}
    for backbone in new.backbones:
        before = backbones.setdefault(backbone.label, backbone).weights
        if backbone.weights[: len(before)] != before:
            problem = f"{backbone.label} has the weights {', '.join(before)} in this comparison."
            problems.append(UserError("--backbones", problem, "Use the same, or give the new ones another label."))
        elif len(before) == 1 < len(backbone.weights) and saved.seeds > 1:
            problem = f"All {saved.seeds} seeds of {backbone.label} start from {before[0]}."
            problems.append(UserError("--backbones", problem, "Give the group another label."))
        backbones[backbone.label] = backbone
    raise_all(problems)
    shares = tuple(sorted(steps))
    return dataclasses.replace(
        saved,
        config=new.config,  # it differs in fields that may change, such as data.threads
        data=new.data,
        contents=new.contents,
        backbones=tuple(backbones.values()),
        shares=shares,
        steps=tuple(steps[share] for share in shares),
        seeds=max(saved.seeds, new.seeds),
        reference=new.reference,
    )


def _changes(saved: Comparison, new: Comparison) -> list[UserError]:
    if saved.probe != new.probe:
        problem = f"The comparison in this folder is of {saved.probe or 'detectors'}."
        return [UserError("--output", problem, "Choose another folder.")]
    if saved.probe is None and not saved.contents:
        problem = "An earlier version began this comparison, and drew the new layers of its detectors differently."
        return [UserError("--output", problem, "Choose another folder. `dupr-tf report` still shows this one.")]
    changed = differences(saved.config, new.config, "comparison")
    problems = [UserError(one.field, one.problem, OTHER) for one in changed]
    for split in ("train", "val"):
        if saved.labels[split] != new.labels[split]:
            problem = f"The images or labels of {split} are others than in this comparison."
            problems.append(UserError("--data", problem, OTHER))
        elif saved.contents.get(split) not in (None, new.contents.get(split)):
            problem = f"The files of {split} have other contents than in this comparison."
            problems.append(UserError("--data", problem, OTHER))
    for flag, name in (("--learning-rates", "rates"), ("--rate-share", "rate_share"), ("--level", "level")):
        before, now = getattr(saved, name), getattr(new, name)
        if before != now:
            problems.append(UserError(flag, f"This comparison has {_text(before)}, received {_text(now)}.", OTHER))
    return problems


def _text(value) -> str:
    if isinstance(value, str):
        return value
    return " ".join(f"{one:g}" for one in (value if isinstance(value, tuple) else (value,)))


def _parse(value: dict, config: Config) -> Comparison:
    """Checks the contents of the record."""
    if whole(value["format"]) != FORMAT:
        raise ValueError(f"its format is {value['format']}, and this version reads {FORMAT}")
    backbones = {
        text(label, 64): tuple(map(text, listing(paths))) for label, paths in mapping(value["backbones"]).items()
    }
    comparison = Comparison(
        config=config,
        data=os.path.abspath(text(value["data"])),
        labels={split: digest(value["labels"][split]) for split in ("train", "val")},
        counts={split: whole(value["counts"][split]) for split in ("train", "val")},
        backbones=tuple(Backbone(label, paths) for label, paths in backbones.items()),
        shares=tuple(_number(share, 1) for share in listing(value["shares"])),
        steps=tuple(whole(count) for count in listing(value["steps"])),
        seeds=whole(value["seeds"], 10_000),
        rates=tuple(_number(rate, 1e3) for rate in listing(value["rates"])),
        rate_share=_number(value["rate_share"], 1),
        reference=text(value["reference"], 64),
        digests={text(path): digest(sha256) for path, sha256 in mapping(value["digests"]).items()},
        overlaps={text(path): _overlap(counted) for path, counted in mapping(value.get("overlaps", {})).items()},
        contents={split: digest(sha256) for split, sha256 in mapping(value.get("contents", {})).items()},
        probe=_one_of(value.get("probe"), PROBE_METRICS),
        level=_one_of(value.get("level"), PROBED_LEVELS),
    )
    if (comparison.probe is None) != (comparison.level is None):
        raise ValueError("it has a probe without a level, or a level without a probe")
    if len(comparison.steps) != len(comparison.shares) or comparison.reference not in backbones:
        raise ValueError("its shares, steps and backbones do not fit together")
    return comparison


def _overlap(value) -> ValOverlap:
    counts = {name: whole(value[name]) for name in ("images", "val_images", "exact", "near", "unread")}
    return ValOverlap(**counts, unknown=text(value["unknown"]))


def _one_of(value, names):
    if value is not None and (not isinstance(value, str) or value not in names):
        raise ValueError(f"expected one of {', '.join(names)}, received {value!r:.40}")
    return value


def _number(value, most: float) -> float:
    if type(value) not in (int, float) or not 0 < value <= most:
        raise ValueError(f"expected a number above 0, received {value!r:.40}")
    return float(value)
