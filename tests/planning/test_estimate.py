"""A plan's arithmetic, on counts and assumptions whose results can be worked out by hand."""

import dataclasses

import pytest

from dupr_tf.config import parse_config
from dupr_tf.planning.assumptions import Assumption
from dupr_tf.planning.estimate import Counts, cores_wanted, device_numbers, size_of, step_of
from dupr_tf.planning.printing import Plan

COUNTS = Counts(
    flops={"convolutions": 6 * 10**12, "losses": 2 * 10**12},
    reduced={"gradients": 10**9},
    gathered={"keys": 2 * 10**9},
    memory={"weights": 10**9},
    activations=10**8,
    weights=10**7,
    bank_numbers=10**8,
    checkpoint=5 * 10**8,
)
ASSUMED = {
    "peak_tflops": 10.0, "share_of_peak": 0.5, "memory_gb_s": 1000.0, "share_of_bandwidth": 0.5,
    "activation_passes": 10, "weight_passes": 20, "bank_passes": 4, "devices_a_machine": 4, "cores_a_machine": 8,
    "link_gb_s": 100.0, "network_gb_s": 10.0, "share_of_network": 0.5, "input_images_s_a_core": 50.0,
    "bytes_an_image": 900, "images_a_shard": 1000,
}  # fmt: skip
CONFIG = parse_config({
    "model": {"bank_size": 4096},
    "train": {"batch_size": 100, "micro_batches": 4, "epochs": 3, "checkpoint_every": 50, "keep_checkpoints": 2},
})  # fmt: skip


def assumed(**changed):
    return {name: Assumption(value, "unit", "source") for name, value in {**ASSUMED, **changed}.items()}


def step(devices, shares_cores=False, **changed):
    return step_of(COUNTS, 100, devices, assumed(**changed), shares_cores)


def test_a_step_on_one_device_by_hand():
    assert step(1).seconds == pytest.approx({
        "convolutions and products": 8e12 / 5e12,
        "activations through memory": 100 * 1e8 * 10 / 500e9,
        "weights and banks through memory": 4 * (1e7 * 20 + 1e8 * 4) / 500e9,
        "exchange between devices": 0.0,
    })  # fmt: skip
    assert step(1).asked == pytest.approx(100 / (1.6 + 0.2 + 0.0048))


def test_devices_share_products_and_activations_but_each_holds_weights_and_banks():
    one, four = step(1).seconds, step(4).seconds
    for part in ("convolutions and products", "activations through memory"):
        assert four[part] == pytest.approx(one[part] / 4)
    assert four["weights and banks through memory"] == one["weights and banks through memory"]


@pytest.mark.parametrize("devices, machines, bandwidth", [(2, 1, 50e9), (4, 1, 50e9), (8, 2, 5e9)])
def test_a_ring_within_a_machine_and_between(devices, machines, bandwidth):
    """Each device sends 2 (n - 1) / n of what is summed, and (n - 1) / n of what is gathered."""
    found = step(devices)
    share = (devices - 1) / devices
    assert found.machines == machines
    assert found.seconds["exchange between devices"] == pytest.approx(share * (2 * 1e9 + 2e9) / bandwidth)


def test_the_slower_of_input_and_devices_decides():
    assert step(4).input_limit == 8 * 50 and step(8).input_limit == 2 * 8 * 50
    assert step(1).images_per_second == step(1).asked  # 55 of 400 that could be read
    slow = step(4, cores_a_machine=1)
    assert slow.asked > slow.images_per_second == 50


def test_on_a_cpu_reading_takes_time_from_the_step():
    shared = step(1, shares_cores=True)
    assert shared.seconds["reading images on the same cores"] == pytest.approx(100 / 400)
    assert shared.images_per_second == pytest.approx(100 / (1.6 + 0.2 + 0.0048 + 0.25))


def test_cores_wanted_are_rounded_up_by_machine():
    found = step(8)
    assert cores_wanted(found, assumed()) == -(-found.asked // (50 * 2))


def test_hours_storage_and_checkpoints_by_hand():
    found = dataclasses.replace(step(4), seconds={"all of it": 2.0}, input_limit=float("inf"))  # 50 images/s
    size = size_of(10_000, CONFIG, COUNTS, found, 4, assumed())
    assert size.steps == 3 * 100
    assert size.hours == pytest.approx(300 * 2 / 3600)
    assert size.device_hours == pytest.approx(4 * size.hours) and size.epoch_hours == pytest.approx(size.hours / 3)
    assert (size.storage, size.shards, size.index) == (10_000 * 1000, 10, 20 * 10_000)
    assert size.checkpoints == 300 // 50 + 1
    assert size.checkpoint_bytes == 3 * COUNTS.checkpoint  # those kept, and the one being written


def test_an_interval_of_time_counts_seconds():
    timed = {"batch_size": 100, "micro_batches": 4, "epochs": 3, "checkpoint_every": "1min"}
    config = parse_config({"model": {"bank_size": 4096}, "train": timed})
    found = dataclasses.replace(step(4), seconds={"all of it": 2.0}, input_limit=float("inf"))
    assert size_of(10_000, config, COUNTS, found, 4, assumed()).checkpoints == 600 // 60 + 1


def test_as_many_devices_as_divide_the_groups():
    assert device_numbers(8) == [1, 2, 4, 8] and device_numbers(6) == [1, 2, 3, 6] and device_numbers(1) == [1]


def test_what_does_not_fit_is_said():
    fits, less = assumed(memory_gb=1.1), assumed(memory_gb=0.9, cores_a_machine=1)
    assert plan(fits).problems() == []
    memory, reading = plan(less).problems()
    assert memory.startswith("a device needs 1 GB and has 900 MB. Fix: more devices")
    assert reading.startswith("the input reads 50 images/s where 194 are asked for") and "Fix: 4 cores" in reading


def test_the_error_is_of_the_step_without_its_input():
    shared = dataclasses.replace(plan(assumed(memory_gb=16)), measured_seconds=2.0, step=step(1, shares_cores=True))
    assert shared.error == pytest.approx((1.6 + 0.2 + 0.0048) / 2.0 - 1)


def plan(assumptions):
    found = step_of(COUNTS, 100, 4, assumptions)
    return Plan("c", "a100-40gb", 4, COUNTS, found, cores_wanted(found, assumptions), (), {4: found}, assumptions)
