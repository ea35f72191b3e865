"""Makes the plan of `dupr-tf plan`: counts, takes the requested measurements, and computes the rest."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from dupr_tf.config import Config
from dupr_tf.data.images.listing import open_source
from dupr_tf.forecast.assumptions import Assumption, assumptions_of, replace_assumptions
from dupr_tf.forecast.counts import Counts, count
from dupr_tf.forecast.device_types import CPU
from dupr_tf.forecast.measure import input_assumptions, measured_assumptions, step_seconds
from dupr_tf.forecast.seconds import PRODUCTS, SIZES, Size, Step, cores_wanted, device_numbers, size_of, step_of
from dupr_tf.resources import usable_cpus
from dupr_tf.text import size_text


@dataclasses.dataclass(frozen=True)
class Plan:
    """Holds the results of `dupr-tf plan`.

    Args:
        config: the config file.
        device, devices: type of device, and number of devices that share the batch.
        counts, step: for this number of devices.
        cores: cores needed on each machine.
        sizes: runs over different numbers of images.
        by_devices: {devices: step} of all numbers of devices that can share the batch.
        assumed: assumptions by name.
        measured_seconds: seconds of a real step here, or None if not requested.
    """

    config: str
    device: str
    devices: int
    counts: Counts
    step: Step
    cores: int
    sizes: tuple[Size, ...]
    by_devices: dict[int, Step]
    assumed: dict[str, Assumption]
    measured_seconds: float | None = None

    @property
    def error(self) -> float | None:
        """Returns the error of the predicted seconds of a step, relative to the measured ones."""
        if self.measured_seconds is None:
            return None
        return self.step_alone / self.measured_seconds - 1

    @property
    def step_alone(self) -> float:
        """Returns the predicted seconds of a step whose images are in memory; on a CPU the sum over its cores."""
        cores = usable_cpus() if self.device == CPU else 1  # with which `peak_tflops` was measured
        seconds = {part: value for part, value in self.step.seconds.items() if not part.startswith("reading")}
        return sum(seconds.values()) + (cores - 1) * seconds[PRODUCTS]  # all cores compute the products

    def problems(self) -> list[str]:
        """Lists the reasons why the run cannot work as planned, a sentence or two each."""
        problems = []
        held, there = self.counts.total_memory, 1e9 * self.assumed["memory_gb"].value
        if held > there:
            problems.append(
                f"A device needs {size_text(held)} and has {size_text(there)}. Use more devices, more "
                "train.micro_batches, a smaller model.bank_size, or --train.precision bfloat16."
            )
        if self.step.input_limit < self.step.demand:
            problems.append(
                f"The input reads {self.step.input_limit:,.0f} images/s where {self.step.demand:,.0f} are needed, and "
                f"slows the run down. Use {self.cores} cores a machine, or smaller files (pack)."
            )
        return problems

    def as_json(self) -> dict:
        """Returns everything as plain data: bytes, seconds, images, TFLOP/s."""
        return {
            "config": self.config, "device": self.device, "devices": self.devices, "machines": self.step.machines,
            "counts": dataclasses.asdict(self.counts),
            "step": {"seconds": self.step.seconds, "images_per_second": self.step.images_per_second},
            "input": {"images_per_second_needed": self.step.demand, "cores_a_machine": self.cores},
            "by_devices": {str(n): {"seconds": step.seconds, "images_per_second": step.images_per_second}
                           for n, step in self.by_devices.items()},
            "sizes": [dataclasses.asdict(size) for size in self.sizes],
            "assumptions": {name: dataclasses.asdict(entry) for name, entry in self.assumed.items()},
            "measured_step_seconds": self.measured_seconds, "error": self.error, "problems": self.problems(),
        }  # fmt: skip


def build_plan(
    config: Config,
    name: str,
    device: str,
    devices: int,
    images: int | None = None,
    data: str | Path | None = None,
    replacements: tuple[str, ...] = (),
    check: bool = False,
) -> Plan:
    """Plans a run.

    Args:
        config: config of the run.
        name: name of the config.
        device: a name from `device_types.NAMES`.
        devices: number of devices that share the batch.
        images: number of images to plan for, besides `SIZES`. Default: as many as `data` has.
        data: images to measure the input with, or None.
        replacements: `name=value` that replace assumptions.
        check: take real steps and compare.

    Raises:
        ValueError: a wrong assumption, or images that cannot be read.
    """
    assumed = assumptions_of(device, config.train.precision, config.data.image_size)
    if data is not None:
        source = open_source(data, config.data.kind)[1]
        assumed |= input_assumptions(source, config)
        images = len(source) if images is None else images
    assumed = replace_assumptions(assumed, replacements)
    if device == CPU:
        assumed = measured_assumptions(assumed)
    counts = count(config, devices, gpu=device != CPU)
    batch, groups = config.train.batch_size, config.train.micro_batches
    steps = {number: step_of(counts, batch, number, assumed, device == CPU) for number in device_numbers(groups)}
    step = steps[devices]
    sizes = sorted({*SIZES, *([] if images is None else [images])})
    return Plan(
        config=name,
        device=device,
        devices=devices,
        counts=counts,
        step=step,
        cores=cores_wanted(step, assumed),
        sizes=tuple(size_of(number, config, counts, step, devices, assumed) for number in sizes),
        by_devices=steps,
        assumed=assumed,
        measured_seconds=step_seconds(config) if check else None,
    )
