"""Assumptions of a plan: each has a unit and a source, any can be replaced, and nonsense is told."""

import math

import pytest

from dupr_tf.config import ConfigError
from dupr_tf.planning.assumptions import INPUT_64, INPUT_224, assumptions_of, with_given
from dupr_tf.planning.devices import CPU, NAMES, TYPES

A100 = assumptions_of("a100-40gb", "float32", 224)


@pytest.mark.parametrize("device", NAMES)
def test_every_assumption_has_a_unit_and_says_where_it_is_from(device):
    assumed = assumptions_of(device, "float32", 224)
    assert list(assumed) == list(A100)  # the same names everywhere, so that a flag holds for any device
    assert all(entry.unit and entry.source for entry in assumed.values())
    unknown = {name for name, entry in assumed.items() if math.isnan(entry.value)}
    assert unknown == ({"peak_tflops", "memory_gb", "memory_gb_s", "cores_a_machine"} if device == CPU else set())


@pytest.mark.parametrize("device", TYPES)
def test_half_precision_is_twice_as_fast_at_least(device):
    assert TYPES[device].peak["float16"] > 1.9 * TYPES[device].peak["float32"]


def test_larger_views_cost_more_of_a_core():
    small, large = (assumptions_of(CPU, "float32", side)["input_images_s_a_core"].value for side in (64, 224))
    assert small == pytest.approx(1000 / INPUT_64) and large == pytest.approx(1000 / INPUT_224)


def test_what_is_given_replaces_and_says_so():
    changed = with_given(A100, ("share_of_peak=0.5", "devices_a_machine=4"))
    assert (changed["share_of_peak"].value, changed["devices_a_machine"].value) == (0.5, 4)
    assert changed["share_of_peak"].source == "given with --assume"
    assert changed["memory_gb"] == A100["memory_gb"] and A100["share_of_peak"].value == 0.35


def test_a_card_without_bfloat16_says_what_it_has():
    with pytest.raises(
        ValueError, match=r"^Expected a precision of t4 \(float32, float16\), received bfloat16\. Fix: "
    ):
        assumptions_of("t4", "bfloat16", 224)


@pytest.mark.parametrize("given, told", [
    ("share_of_peek=0.5", "received 'share_of_peek'. Did you mean share_of_peak?"),
    ("zzz=1", "Allowed: peak_tflops, "),
    ("share_of_peak", "expected name=value, received 'share_of_peak'"),
    ("share_of_peak=1.5", "a number above 0 up to 1 for share_of_peak, received '1.5'"),
    ("share_of_peak=half", "received 'half'"),
    ("memory_gb=nan", "a number above 0 for memory_gb, received 'nan'"),
    ("memory_gb=inf", "received 'inf'"),
    ("memory_gb=0", "received '0'"),
    ("memory_gb=-3", "received '-3'"),
    ("devices_a_machine=2.5", "a whole number above 0 for devices_a_machine, received '2.5'"),
    ("=3", "received ''"),
])  # fmt: skip
def test_nonsense_is_told(given, told):
    with pytest.raises(ConfigError) as raised:
        with_given(A100, (given,))
    (problem,) = raised.value.problems
    assert problem.startswith("--assume: expected ") and told in problem


def test_all_mistakes_are_told_at_once():
    with pytest.raises(ConfigError) as raised:
        with_given(A100, ("memory_gb=0", "nothing", "share_of_peak=0.4"))
    assert len(raised.value.problems) == 2
