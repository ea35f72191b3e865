"""Checks the machine, a folder of images and a planned run for `dupr-tf doctor`."""

from __future__ import annotations

import dataclasses

import numpy as np

from dupr_tf.config import Config
from dupr_tf.data.images.duplicates import frames_warning, near_identical_folders
from dupr_tf.data.images.source import Files, ImageSource
from dupr_tf.data.statistics import Sizes, ViewOverlap, look_at_sizes, simulate_overlap
from dupr_tf.environment import describe_environment, environment_rows
from dupr_tf.forecast import advice
from dupr_tf.forecast.dry_run import DryRun
from dupr_tf.forecast.machine import forecast_here
from dupr_tf.resources import available_memory, usable_cpus
from dupr_tf.text import memory_text

PERCENTILES = (5, 50, 95)


@dataclasses.dataclass(frozen=True)
class Examination:
    """Holds numbers and conclusions, which are sentences that each name an action."""

    title: str
    rows: list[tuple[str, str]]
    sentences: list[str]


def machine_rows() -> list[tuple[str, str]]:
    """Returns versions, processors, GPUs and memory."""
    memory = available_memory()
    return [
        *environment_rows(describe_environment()),
        ("processors for this process", str(usable_cpus())),
        ("memory free", "unknown" if memory is None else memory_text(memory)),
    ]


def about_images(source: ImageSource, config: Config | None) -> Examination:
    """Examines a folder's statistics, and the overlap of a config's views on it (default: the paper's)."""
    sizes, settings = look_at_sizes(source), config or Config()
    rows, data = _size_rows(sizes), settings.data
    sentences = advice.advice_on_sizes(sizes, data.image_size, data.max_bad_share)
    if len(sizes.sizes):
        overlap = simulate_overlap(sizes.sizes, settings)
        rows += _overlap_rows(overlap)
        if settings.model.patch_sizes:
            sentences += advice.advice_on_overlap(overlap, settings)
    if isinstance(source, Files):
        sentences += [frames_warning(folder, share) for folder, share in near_identical_folders(source.paths)]
    if config is None:
        sentences.append(advice.recipe(sizes.count))
    return Examination("the images", rows, sentences)


def about_run(config: Config, images: int | None, steps: DryRun | None = None, free: int | None = None) -> Examination:
    """Examines memory, speed, length and the first losses of a run.

    Args:
        config: config of the run.
        images: number of images. None: unknown; statements that depend on it are left out.
        steps: a dry run of the config, whose rows are reported. Default: the forecast alone.
        free: bytes that were free before the dry run. None: unknown, such as those of a GPU.
    """
    forecast = steps.forecast if steps else forecast_here(config, images)
    sentences = advice.advice_on_memory(forecast.counts.total_memory, free, config)
    if images is not None:
        sentences += [*advice.advice_on_length(config, images), *advice.advice_on_banks(config, images)]
        sentences += config.schedule_warnings(images)
    return Examination("the run", (steps or forecast).rows(), [*sentences, *advice.expected_curve(config)])


def _size_rows(sizes: Sizes) -> list[tuple[str, str]]:
    rows = [("images", f"{sizes.count:,}"), ("headers read", f"{sizes.looked:,}")]
    if sizes.unreadable:
        rows.append(("unreadable", f"{len(sizes.unreadable):,}, such as {sizes.unreadable[0]!r}"))
    if not len(sizes.sizes):
        return rows
    columns = (("short side, px", sizes.short_sides, ".0f"), ("long over short side", sizes.aspects, ".2f"))
    for name, values, form in columns:
        low, middle, high = (format(value, form) for value in np.percentile(values, PERCENTILES))
        rows.append((name, f"median {middle}, nine of ten between {low} and {high}"))
    return rows


def _overlap_rows(overlap: ViewOverlap) -> list[tuple[str, str]]:
    rows = [
        ("views enlarged", f"{overlap.enlarged:.0%} are cut from fewer pixels than they have"),
        ("pairs that overlap", f"{overlap.first:.2%} drawn once, {overlap.valid:.2%} as training draws"),
    ]
    if len(overlap.sides):
        low, middle, high = np.percentile(overlap.sides, PERCENTILES)
        rows.append(
            ("overlap's shorter side, px", f"median {middle:.0f}, nine of ten between {low:.0f} and {high:.0f}")
        )
    return [*rows, *((f"patch at {level}", f"{cells:.2f} cells a side") for level, cells in overlap.support.items())]
