"""Forecasts a run on this machine, for `doctor` and `pretrain --dry-run`."""

from __future__ import annotations

import dataclasses

import tensorflow as tf

from dupr_tf.config import Config
from dupr_tf.forecast.assumptions import assumptions_of
from dupr_tf.forecast.counts import Counts, count
from dupr_tf.forecast.device_types import CPU
from dupr_tf.forecast.measure import measured_assumptions
from dupr_tf.forecast.printing import count_sections, step_section
from dupr_tf.forecast.seconds import Size, Step, size_of, step_of
from dupr_tf.models import DUPR
from dupr_tf.text import duration, number_text


@dataclasses.dataclass(frozen=True)
class Forecast:
    """Holds the predicted needs of a run on this machine.

    Args:
        counts: counts of a step.
        step: seconds of a step. None for a GPU or several devices, which are not measured here.
        size: needs of the whole run. None: unknown, like its seconds or its number of images.
    """

    counts: Counts
    step: Step | None
    size: Size | None

    def rows(self) -> list[tuple[str, str]]:
        """Returns (name, value) pairs to print."""
        levels = self.counts.levels.items()
        rows = [("features of a view", ", ".join(f"{level} {h}×{w}×{c}" for level, (h, w, c) in levels))]
        sections = count_sections(self.counts) | ({} if self.step is None else step_section(self.step))
        rows += [(f"{title}, {part}", value) for title, parts in sections.items() for part, value in parts]
        if self.step is not None:
            rows.append(("speed, predicted", f"{number_text(self.step.images_per_second)} images/s"))
        if self.size is not None:
            rows.append(
                ("the whole run, predicted", f"{self.size.steps:,} steps in {duration(3600 * self.size.hours)}")
            )
        return rows


def forecast_here(config: Config, images: int | None = None, devices: int = 1, model: DUPR | None = None) -> Forecast:
    """Forecasts a run on this machine. It agrees with `plan --gpu-type cpu --gpus 1`.

    Args:
        config: config of the run.
        images: number of images, if known.
        devices: number of devices that share the batch.
        model: the compiled model of the run. Default: it is built.
    """
    gpu = bool(tf.config.list_physical_devices("GPU"))
    counts = count(config, devices, gpu, model)
    if gpu or devices > 1:
        return Forecast(counts, None, None)
    assumed = measured_assumptions(assumptions_of(CPU, config.train.precision, config.data.image_size))
    step = step_of(counts, config.train.batch_size, devices, assumed, shares_cores=True)
    return Forecast(counts, step, None if images is None else size_of(images, config, counts, step, devices, assumed))
