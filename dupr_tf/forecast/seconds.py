"""Computes step time, exchange, cores, storage and hours from counts and assumptions alone."""

from __future__ import annotations

import dataclasses
import math

from dupr_tf.config import Config
from dupr_tf.forecast.assumptions import Assumption
from dupr_tf.forecast.counts import Counts

SIZES = (1_000_000, 12_000_000, 100_000_000, 1_000_000_000)
INDEX_ENTRY = 9  # bytes per packed image in every worker's memory: ArrayRecord keeps the position of each record
RECORD = 150  # bytes of a packed image besides its own: 100 of its record, and its line in the sidecar
GIGA, TERA = 1e9, 1e12
PRODUCTS = "convolutions and products"  # the part of a step that all cores of a CPU compute


@dataclasses.dataclass(frozen=True)
class Step:
    """The seconds of a step by part, and derived rates."""

    seconds: dict[str, float]
    batch: int
    machines: int
    input_limit: float  # images/s that the cores of all machines can read

    @property
    def demand(self) -> float:
        """Returns the images/s of the devices if they never wait for the input."""
        return self.batch / sum(self.seconds.values())

    @property
    def images_per_second(self) -> float:
        return min(self.demand, self.input_limit)


@dataclasses.dataclass(frozen=True)
class Size:
    """The needs of a run over a number of images."""

    images: int
    steps: int
    hours: float
    device_hours: float
    epoch_hours: float
    storage: int  # bytes of all shards
    shards: int
    index: int  # bytes in the memory of each worker
    checkpoints: int  # number written in the whole run
    checkpoint_bytes: int  # on the disk at a time, including the one being written


def step_of(
    counts: Counts, batch: int, devices: int, assumed: dict[str, Assumption], shares_cores: bool = False
) -> Step:
    """Computes the seconds of a step.

    Parts follow each other. The estimate does not assume that exchange or reading overlaps with products.

    Args:
        counts: counts of the config.
        batch: images per step, over all devices.
        devices: number of devices that share the batch.
        assumed: assumptions by name.
        shares_cores: True if the input uses the cores that compute the step, as on a CPU.
    """
    value = {name: assumption.value for name, assumption in assumed.items()}
    machines = math.ceil(devices / value["devices_a_machine"])
    products = sum(counts.flops.values()) / devices / (value["peak_tflops"] * TERA * value["share_of_peak"])
    bandwidth = value["memory_gb_s"] * GIGA * value["share_of_bandwidth"]
    seconds = {
        PRODUCTS: products,
        "activations through memory": counts.activations * batch / devices * value["activation_passes"] / bandwidth,
        "weights and banks through memory": 4
        * (counts.weights * value["weight_passes"] + counts.bank_numbers * value["bank_passes"])
        / bandwidth,
        "exchange between devices": exchange_seconds(counts, devices, machines, value),
    }
    input_limit = value["input_images_s_a_core"] * value["cores_a_machine"] * machines
    if shares_cores:
        seconds["reading images on the same cores"] = batch / input_limit
        input_limit = math.inf
    return Step(seconds, batch, machines, input_limit)


def exchange_seconds(counts: Counts, devices: int, machines: int, value: dict[str, float]) -> float:
    """Computes the seconds of exchange in a ring.

    Each device sends 2 (n - 1) / n of the reduced bytes, and (n - 1) / n of the gathered bytes.
    """
    if devices == 1:
        return 0.0
    speed = value["link_gb_s"] if machines == 1 else min(value["link_gb_s"], value["network_gb_s"])
    volume = (2 * sum(counts.reduced.values()) + sum(counts.gathered.values())) * (devices - 1) / devices
    return volume / (speed * GIGA * value["share_of_network"])


def size_of(
    images: int, config: Config, counts: Counts, step: Step, devices: int, assumed: dict[str, Assumption]
) -> Size:
    """Computes the needs of a run over `images` images."""
    steps, batch = config.total_steps(images), config.train.batch_size
    seconds = steps * batch / step.images_per_second
    interval = config.train.checkpoint_interval
    written = -(-steps // interval) if isinstance(interval, int) else int(seconds // interval) + 1  # one at the end
    return Size(
        images=images,
        steps=steps,
        hours=seconds / 3600,
        device_hours=seconds / 3600 * devices,
        epoch_hours=config.steps_per_epoch(images) * batch / step.images_per_second / 3600,
        storage=int(images * (assumed["bytes_an_image"].value + RECORD)),
        shards=math.ceil(images / assumed["images_a_shard"].value),
        index=INDEX_ENTRY * images,
        checkpoints=written,
        checkpoint_bytes=(config.train.keep_checkpoints + 1) * counts.checkpoint,
    )


def cores_wanted(step: Step, assumed: dict[str, Assumption]) -> int:
    """Returns the cores of each machine that read as fast as the devices consume."""
    return math.ceil(step.demand / assumed["input_images_s_a_core"].value / step.machines)


def device_numbers(groups: int) -> list[int]:
    """Lists the numbers of devices that can share the batch-norm groups of a config."""
    return [n for n in range(1, groups + 1) if groups % n == 0]
