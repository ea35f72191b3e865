"""Tests of planned seconds and sizes on round numbers, each computed by hand."""

import dataclasses
import math

import pytest

from dupr_tf.config import parse_config
from dupr_tf.forecast.assumptions import Assumption
from dupr_tf.forecast.counts import Counts
from dupr_tf.forecast.seconds import cores_wanted, exchange_seconds, size_of, step_of

GB = 10**9
COUNTS = Counts(
    levels={}, parameters={}, flops={"convolutions": 8 * 10**12}, reduced={"gradients": 2 * GB},
    gathered={"keys": 4 * GB}, memory={}, activations=GB, weights=10**8, bank_numbers=10**9, checkpoint=300,
)  # fmt: skip
VALUES = {
    "peak_tflops": 2, "share_of_peak": 0.5, "memory_gb_s": 10, "share_of_bandwidth": 0.5, "activation_passes": 10,
    "weight_passes": 20, "bank_passes": 4, "devices_a_machine": 4, "cores_a_machine": 6, "link_gb_s": 10,
    "network_gb_s": 2, "share_of_network": 0.5, "input_images_s_a_core": 5, "bytes_an_image": 850,
    "images_a_shard": 100,
}  # fmt: skip
ASSUMED = {name: Assumption(value, "", "") for name, value in VALUES.items()}


@pytest.mark.parametrize(("devices", "machines", "seconds"), [
    (1, 1, 0.0),
    (2, 1, (2 * 2 + 4) / 2 / 5),  # half of 8 GB at half of the link's 10 GB/s
    (4, 1, (2 * 2 + 4) * 3 / 4 / 5),
    (8, 2, (2 * 2 + 4) * 7 / 8 / 1),  # the network between machines is slower than the link
])  # fmt: skip
def test_ring_sends_gradients_twice_and_keys_once(devices, machines, seconds):
    assert exchange_seconds(COUNTS, devices, machines, VALUES) == pytest.approx(seconds)


def test_fast_network_does_not_speed_up_the_link():
    values = {**VALUES, "network_gb_s": 100}
    assert exchange_seconds(COUNTS, 8, 2, values) == exchange_seconds(COUNTS, 8, 1, values)


def test_step_has_the_seconds_of_each_part():
    step = step_of(COUNTS, 16, 2, ASSUMED)
    products, activations, weights, exchange = step.seconds.values()
    assert products == 8 / 2 / 1  # 8 TFLOP on two devices of 1 TFLOP/s each
    assert activations == 16 / 2 * 10 / 5  # 8 images of 1 GB, ten times, at 5 GB/s
    assert weights == 4 * (20 * 0.1 + 4 * 1) / 5  # float32: weights twenty times, banks four times
    assert exchange == exchange_seconds(COUNTS, 2, 1, VALUES)
    assert step.input_limit == 5 * 6 and cores_wanted(step, ASSUMED) == math.ceil(16 / sum(step.seconds.values()) / 5)


def test_cores_are_counted_for_each_machine():
    step = dataclasses.replace(step_of(COUNTS, 16, 8, ASSUMED), seconds={"all": 0.1})
    assert (step.machines, step.input_limit, cores_wanted(step, ASSUMED)) == (2, 60, 16)  # 160 images/s, 80 a machine
    assert step.images_per_second == 60


def test_input_on_the_same_cores_costs_time_instead_of_a_limit():
    alone, shared = (step_of(COUNTS, 15, 1, ASSUMED, shares) for shares in (False, True))
    assert sum(shared.seconds.values()) == pytest.approx(sum(alone.seconds.values()) + 15 / 30)
    assert shared.images_per_second == shared.demand


@pytest.mark.parametrize(("interval", "written"), [(100, 3), (200, 2), ("25min", 3)])
def test_run_needs_storage_time_and_checkpoints(interval, written):
    train = {"batch_size": 10, "micro_batches": 1, "epochs": 3, "checkpoint_every": interval, "keep_checkpoints": 2}
    step = dataclasses.replace(step_of(COUNTS, 10, 1, ASSUMED), seconds={"all": 12.0})
    size = size_of(1005, parse_config({"train": train}), COUNTS, step, 2, ASSUMED)
    assert (size.steps, size.hours, size.device_hours) == (300, 1, 2) and size.epoch_hours == pytest.approx(1 / 3)
    assert (size.storage, size.shards) == (1005 * 1000, 11)  # 150 bytes more for each image
    assert size.checkpoints == written and size.checkpoint_bytes == 3 * 300  # two kept, and one being written
