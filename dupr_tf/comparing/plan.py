"""Plans a comparison from a command line: checks it, reads the labels, and finds what a share lacks."""

from __future__ import annotations

import collections
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from dupr_tf.comparing.cell import cell_config
from dupr_tf.comparing.grid import Backbone, Cell, middle_share
from dupr_tf.comparing.record import Comparison
from dupr_tf.comparing.statistics import MOST_SEEDS
from dupr_tf.config import Config
from dupr_tf.config.detectors import DETECTORS
from dupr_tf.data.file_results import FileResults
from dupr_tf.data.inspection import check_targets, inspect_targets
from dupr_tf.data.labels.annotations import AnnotatedImages
from dupr_tf.data.labels.split import Split, draw_positions
from dupr_tf.detection.finetune import starting_file
from dupr_tf.detection.task_labels import LABELS, labels_entry, read_splits
from dupr_tf.errors import UserError
from dupr_tf.text import escape, listed
from dupr_tf.weights.catalogue import find_public, is_public, name_for
from dupr_tf.weights.paths import RANDOM, weights_file

MOST_NAMED = 5  # classes in a warning


class Settings(NamedTuple):
    """Holds the flags of a comparison. `dupr_tf.commands.compare` describes them.

    What is empty or None was not given. `filled_in` gives it the value of the comparison in the folder, or the default.
    """

    backbones: Sequence[Backbone] = ()
    shares: Sequence[float] = ()
    seeds: int | None = None
    steps: Sequence[int] = ()
    rates: Sequence[float] = ()
    rate_share: float | None = None
    reference: str | None = None
    level: str | None = None


def filled_in(settings: Settings, saved: Comparison | None) -> Settings:
    """Completes the flags of a call from an earlier comparison, or with the defaults; without steps if it has none."""
    if saved is None:
        return settings._replace(
            shares=settings.shares or (1.0,), seeds=3 if settings.seeds is None else settings.seeds
        )
    shares = settings.shares or saved.shares
    steps = dict(zip(saved.shares, saved.steps, strict=True))
    same = saved.steps[0] if len(set(saved.steps)) == 1 else None
    kept = [steps.get(share, same) for share in shares]
    if None in kept and not settings.steps:
        new = shares[kept.index(None)]
        problem = f"The shares of this comparison have different steps, so share {new:g} needs a number too."
        raise UserError("--steps", problem, "Pass a number for each of --shares.")
    return Settings(
        settings.backbones or saved.backbones,
        shares,
        saved.seeds if settings.seeds is None else settings.seeds,
        settings.steps or tuple(kept),
        settings.rates or saved.rates,
        settings.rate_share or saved.rate_share,
        settings.reference or saved.reference,
        settings.level or saved.level,
    )


def plan_problems(config: Config, settings: Settings) -> list[UserError]:
    """Lists the mistakes of a comparison that show without its data."""
    backbones, shares, seeds, steps, rates, *_ = settings
    problems = list(_backbone_problems(config, backbones))
    wrong = [share for share in shares if not 0 < share <= 1]
    if wrong or not shares or len(set(shares)) < len(shares):
        problem = f"Expected different shares above 0 and up to 1, received {_texts(shares)}."
        problems.append(UserError("--shares", problem, "Use --shares 0.05 0.2 1."))
    if not 1 <= seeds <= MOST_SEEDS:
        problems.append(UserError("--seeds", f"Expected 1 to {MOST_SEEDS}, received {seeds}.", "Use --seeds 3."))
    if len(steps) not in (0, 1, len(shares)) or any(count < 1 for count in steps):
        problem = (
            f"Expected one number of steps, or one for each of the {len(shares)} shares, received {_texts(steps)}."
        )
        problems.append(UserError("--steps", problem, "Use --steps 1500."))
    if len({f"{rate:g}" for rate in rates}) < len(rates) or any(not 0 < rate <= 1000 for rate in rates):
        problem = f"Expected different rates above 0, received {_texts(rates)}."
        problems.append(UserError("--learning-rates", problem, "Use --learning-rates 5e-4 1e-3 2e-3."))
    return problems


def _texts(values: Sequence[float]) -> str:
    return " ".join(f"{value:g}" for value in values) or "none"


def set_by_cells(config: Config) -> Iterator[UserError]:
    """Yields an error for each field that a comparison sets."""
    default, data = Config(), config.data
    for name, differs, fix in (
        ("data.share", data.share != 1, "Use --shares."),
        ("data.share_seed", data.share_seed != default.data.share_seed, "Use --seeds."),
        ("data.held_out", data.held_out is not None, "Use --learning-rates."),
        ("train.seed", config.train.seed != default.train.seed, "Use --seeds."),
    ):
        if differs:
            yield UserError(name, "compare sets this field for each of its cells.", fix)


def _backbone_problems(config: Config, backbones: Sequence[Backbone]) -> Iterator[UserError]:
    for one in backbones:
        for weights in one.weights:
            try:
                if is_public(weights):  # it is downloaded after all other checks
                    find_public(_named(config, weights))
                    continue
                continues = starting_file(weights, None)[1]
            except UserError as error:
                yield UserError("--backbones", error.problem, error.fix)
                continue
            if continues:
                problem = f"{weights} is a detector."
                yield UserError("--backbones", problem, "Pass the run or the export of a backbone.")
            elif weights != RANDOM and weights_file(weights).suffix == ".index":
                problem = f"The pre-training {weights} has not ended, so its weights would change between cells."
                yield UserError("--backbones", problem, "Resume it first, or export its backbone and pass the export.")


def named_backbones(config: Config, backbones: Sequence[Backbone]) -> tuple[Backbone, ...]:
    """Returns the backbones with the name of the config's backbone in place of `imagenet`."""
    return tuple(Backbone(one.label, tuple(_named(config, weights) for weights in one.weights)) for one in backbones)


def _named(config: Config, weights: str) -> str:
    return name_for(weights, config.model.backbone, config.model.width)


def make_comparison(
    config: Config, data: str, settings: Settings, results: FileResults
) -> tuple[Comparison, Split, Split]:
    """Reads the labels, and returns the comparison of a call with the images of train and val.

    Args:
        config: config of the fine-tuning.
        data: absolute root of the labelled data.
        settings: flags that `plan_problems` has checked. Without steps, every cell has those of the config on all
            images. Without rates, it has the rate of the config. Without reference, it is random or the first backbone.
        results: results of the checks of images.

    Raises:
        UserError: the data cannot be used, for example if val has no boxes.
    """
    backbones, shares, seeds, steps, rates, rate_share, reference, _ = settings
    task = DETECTORS[config.detector.kind].facts["task"]
    config = _for_every_cell(config)
    train, val, _ = read_splits(config, data, task, results)
    images = LABELS[task].learnable(train)
    entries = {"train": labels_entry(data, train), "val": labels_entry(data, val)}
    steps = steps or (config.total_steps(images),)
    of_share = dict(zip(shares, steps if len(steps) > 1 else tuple(steps) * len(shares), strict=True))
    comparison = Comparison(
        config=_with_milestones_of_epochs(config, images),
        data=data,
        labels={split: entry["sha256"] for split, entry in entries.items()},
        counts={split: entry["count"] for split, entry in entries.items()},
        backbones=tuple(backbones),
        shares=tuple(sorted(of_share)),
        steps=tuple(of_share[share] for share in sorted(of_share)),
        seeds=seeds,
        rates=tuple(sorted(rates or (config.optimizer.learning_rate,))),
        rate_share=rate_share or middle_share(shares),
        reference=reference or default_reference(backbones),
    )
    return comparison, train, val


def _for_every_cell(config: Config) -> Config:
    """Returns the config without validation, and with the same draw of val for every seed."""
    detector = config.detector.model_copy(update={"validate_every": 0, "patience": None})
    data = config.data
    if data.val_share is not None:
        data = data.model_copy(update={"val_seed": data.val_seed or 0})
    return config.model_copy(update={"detector": detector, "data": data})


def _with_milestones_of_epochs(config: Config, images: int) -> Config:
    """Returns the config with its milestones moved so that `train.epochs` is the end, if `train.max_steps` is."""
    if not config.optimizer.milestones or config.train.max_steps is None:
        return config
    stretch = config.train.epochs * config.steps_per_epoch(images) / config.total_steps(images)
    milestones = tuple(epoch * stretch for epoch in config.optimizer.milestones)
    return config.model_copy(update={"optimizer": config.optimizer.model_copy(update={"milestones": milestones})})


def default_reference(backbones: Sequence[Backbone]) -> str:
    """Returns the label of the reference that was not given: random, or the first backbone."""
    labels = [one.label for one in backbones]
    return RANDOM if RANDOM in labels else labels[0]


def count_problems(backbones: Sequence[Backbone], saved: Comparison | None) -> list[UserError]:
    """Returns an error if fewer than two backbones are compared, those of earlier calls included."""
    labels = {one.label for one in (*backbones, *(saved.backbones if saved else ()))}
    if len(labels) > 1:
        return []
    problem = f"There is only one backbone, {labels.pop()}." if labels else "There is no backbone."
    return [UserError("--backbones", problem, "Pass two or more, for example runs/dupr random.")]


def grid_problems(comparison: Comparison) -> Iterator[UserError]:
    """Yields the mistakes of a comparison with what earlier calls have added, so that every cell can run."""
    labels, seeds = [one.label for one in comparison.backbones], comparison.seeds
    if comparison.reference not in labels:
        fix = f"Use {' or '.join(labels)}."
        yield UserError("--reference", f"There is no backbone {comparison.reference}.", fix)
    for one in comparison.backbones:
        if 1 < len(one.weights) < seeds:
            problem = f"{one.label} has {len(one.weights)} runs for {seeds} seeds; seed i starts from run i."
            fix = f"Pass {seeds} runs or a single one, or use --seeds {len(one.weights)} in a new --output."
            yield UserError("--backbones", problem, fix)
    if comparison.rate_share not in comparison.shares:
        problem = f"Expected one of the shares {_texts(comparison.shares)}, received {comparison.rate_share:g}."
        yield UserError("--rate-share", problem, "Use one of --shares.")
    cells = [*comparison.rate_cells(), *comparison.scored_cells()]
    folders = collections.Counter(cell.folder.casefold() for cell in cells)
    same = next((cell.folder for cell in cells if folders[cell.folder.casefold()] > 1), None)
    if same:
        problem = f"Two cells have the same folder, {same}."
        yield UserError("--backbones, --shares", problem, "Use other labels, and shares that differ in six digits.")
    if comparison.probe is None:
        yield from _schedule_problems(comparison)


def _schedule_problems(comparison: Comparison) -> Iterator[UserError]:
    share = min(comparison.shares, key=comparison.steps_of)
    for error in _config_of_share(comparison, share).finetune_problems():
        problem = f"At share {share:g}, with {comparison.steps_of(share):,} steps: {error.problem}"
        yield UserError(error.field, problem, error.fix)


def _config_of_share(comparison: Comparison, share: float) -> Config:
    return cell_config(comparison, Cell(comparison.backbones[0].label, share, 0), comparison.rates[0])


def schedule_warnings(comparison: Comparison) -> Iterator[str]:
    """Yields a warning for each part of the schedule that the cells of a share never reach."""
    planned = len(comparison.config.optimizer.milestones)
    for share in comparison.shares:
        config, steps = _config_of_share(comparison, share), comparison.steps_of(share)
        reached = len(config.optimizer.milestone_steps)
        if planned and reached < planned and comparison.config.optimizer.schedule == "milestones":
            yield (
                f"share {share:g}: the learning rate falls at {reached} of {planned} milestones in {steps:,} steps. "
                "Better: more --steps, or earlier milestones"
            )
        else:
            yield from (f"share {share:g}: {text}" for text in config.schedule_warnings(comparison.images_of(share)))


def check_learnable(comparison: Comparison, train: Split, results: FileResults) -> None:
    """Raises UserError if the images that some cell trains on have nothing to learn."""
    config = _config_of_share(comparison, comparison.shares[-1])
    inspect_targets(train, config)
    for share in comparison.shares:
        for seed in range(comparison.seeds) if comparison.images_of(share) < len(train) else ():
            drawn = train.select(draw_positions(len(train), share, seed))
            try:
                check_targets(drawn, config)
            except UserError as error:
                problem = f"Share {share:g} with seed {seed} has {len(drawn)} images. {error.problem}"
                raise UserError("--shares", problem, "Use a larger share.") from None
    for cell in comparison.rate_cells()[:1]:
        held_out = cell_config(comparison, cell, cell.rate)
        drawn, _, _ = read_splits(held_out, comparison.data, DETECTORS[config.detector.kind].facts["task"], results)
        check_targets(drawn, held_out)


def lost_classes(comparison: Comparison, train: Split) -> Iterator[str]:
    """Yields a warning for each share in which some seed has no image of a class."""
    if not isinstance(train, AnnotatedImages):
        return
    classes = [set(labels[~ignored].tolist()) for labels, ignored in zip(train.labels, train.ignored, strict=True)]
    yield from lost_of_images(comparison, classes, train.class_names)


def lost_of_images(comparison: Comparison, classes: Sequence[set[int]], class_names: Sequence[str]) -> Iterator[str]:
    """Yields the warnings of `lost_classes`, from the numbers of the classes that each image of train shows."""
    for share in comparison.shares:
        lost = set()
        for seed in range(comparison.seeds):
            drawn = draw_positions(len(classes), share, seed)
            lost |= set(range(len(class_names))).difference(*(classes[position] for position in drawn))
        if lost:
            names = [escape(class_names[number]) for number in sorted(lost)]
            yield (
                f"--shares: share {share:g} has {comparison.images_of(share)} images, and some seed draws no image of "
                f"{listed(names, MOST_NAMED)}. These classes are not learned there. Better: a larger share"
            )
