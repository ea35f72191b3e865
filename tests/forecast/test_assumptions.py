"""Tests of a plan's assumptions: each has a unit and a source, can be replaced, and refuses impossible values."""

import math

import pytest

from dupr_tf.errors import UserError
from dupr_tf.forecast.assumptions import INPUT_64, INPUT_224, assumptions_of, replace_assumptions
from dupr_tf.forecast.device_types import CPU, NAMES, TYPES

A100 = assumptions_of("a100-40gb", "float32", 224)


@pytest.mark.parametrize("device", NAMES)
def test_assumptions_have_unit_and_source(device):
    assumed = assumptions_of(device, "float32", 224)
    assert list(assumed) == list(A100)  # every device has the same names, so that a flag works for any of them
    assert all(entry.unit and entry.source for entry in assumed.values())
    unknown = {name for name, entry in assumed.items() if math.isnan(entry.value)}
    assert unknown == ({"peak_tflops", "memory_gb", "memory_gb_s", "cores_a_machine"} if device == CPU else set())


@pytest.mark.parametrize("device", TYPES)
def test_half_precision_is_at_least_twice_as_fast(device):
    assert TYPES[device].peak["float16"] > 1.9 * TYPES[device].peak["float32"]


def test_input_speed_falls_with_view_size():
    small, large = (assumptions_of(CPU, "float32", side)["input_images_s_a_core"].value for side in (64, 224))
    assert small == pytest.approx(1000 / INPUT_64) and large == pytest.approx(1000 / INPUT_224)


def test_replacement_changes_value_and_source():
    changed = replace_assumptions(A100, ("share_of_peak=0.5", "devices_a_machine=4"))
    assert (changed["share_of_peak"].value, changed["devices_a_machine"].value) == (0.5, 4)
    assert changed["share_of_peak"].source == "given with --assume"
    assert changed["memory_gb"] == A100["memory_gb"] and A100["share_of_peak"].value == 0.35


def test_precision_missing_on_device_is_refused():
    with pytest.raises(UserError) as error:
        assumptions_of("t4", "bfloat16", 224)
    assert error.value.field == "train.precision"
    assert all(name in error.value.problem for name in ("t4", "float32", "float16", "bfloat16"))


@pytest.mark.parametrize("given, named", [
    ("share_of_peek=0.5", "Did you mean share_of_peak?"),
    ("zzz=1", "Choose from peak_tflops, "),
    ("share_of_peak", "name=value"),
    ("share_of_peak=1.5", "up to 1 for share_of_peak, received '1.5'"),
    ("share_of_peak=half", "'half'"),
    ("memory_gb=nan", "'nan'"),
    ("memory_gb=inf", "'inf'"),
    ("memory_gb=0", "'0'"),
    ("memory_gb=-3", "'-3'"),
    ("devices_a_machine=2.5", "a whole number above 0 for devices_a_machine, received '2.5'"),
    ("=3", "''"),
])  # fmt: skip
def test_impossible_assumption_is_refused(given, named):
    with pytest.raises(UserError) as error:
        replace_assumptions(A100, (given,))
    assert error.value.fields == ("--assume",) and named in str(error.value)


def test_wrong_assumptions_are_reported_together():
    with pytest.raises(UserError) as error:
        replace_assumptions(A100, ("memory_gb=0", "nothing", "share_of_peak=0.4"))
    assert error.value.fields == ("--assume", "--assume")
