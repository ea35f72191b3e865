"""Builds the plan of a config: counts, takes the requested measurements, and computes the rest."""

from __future__ import annotations

from pathlib import Path

from dupr_tf.config import Config
from dupr_tf.data.images.listing import open_source
from dupr_tf.planning.assumptions import assumptions_of, with_given
from dupr_tf.planning.counting import count
from dupr_tf.planning.devices import CPU
from dupr_tf.planning.estimate import SIZES, cores_wanted, device_numbers, size_of, step_of
from dupr_tf.planning.measuring import input_assumptions, measured_assumptions, step_seconds
from dupr_tf.planning.printing import Plan


def build_plan(
    config: Config,
    name: str,
    device: str,
    devices: int,
    images: int | None = None,
    data: str | Path | None = None,
    given: tuple[str, ...] = (),
    check: bool = False,
) -> Plan:
    """Plans a run.

    Args:
        config: config of the run.
        name: name of the config.
        device: a name from `devices.NAMES`.
        devices: number of devices that share the batch.
        images: number of images to plan for, besides `SIZES`. Default: as many as `data` has.
        data: images to measure the input with, or None.
        given: `name=value` that replace assumptions.
        check: take real steps and compare.

    Raises:
        ValueError: a wrong assumption, or images that cannot be read.
    """
    assumed = assumptions_of(device, config.train.precision, config.data.image_size)
    if data is not None:
        source = open_source(data, config.data.kind)[1]
        assumed |= input_assumptions(source, config)
        images = len(source) if images is None else images
    assumed = with_given(assumed, given)
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
