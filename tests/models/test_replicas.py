"""The same step on one device and on several logical ones (METHOD section 6). Each run is a process of its own."""

import functools
import subprocess
import sys

import numpy as np
import pytest

STEPS, GROUPS = 4, 4


def run(folder, devices, groups, steps=STEPS, kind="float32"):
    output = folder / f"{devices}x{groups}_{steps}_{kind}.npz"
    command = [sys.executable, "-m", "tests.models.replica_run", *map(str, (devices, groups, steps, output, kind))]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr[-3000:]
    return dict(np.load(output))


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """By devices: one has four batch-norm groups, two have two each, four have one each. Each is run when asked for."""
    folder = tmp_path_factory.mktemp("replicas")
    return functools.cache(lambda devices: run(folder, devices, GROUPS))


TWO_OR_FOUR = pytest.mark.parametrize("devices", [2, pytest.param(4, marks=pytest.mark.slow)])


@TWO_OR_FOUR
def test_losses_banks_and_updates_do_not_depend_on_the_number_of_devices(runs, devices):
    same_numbers(runs(1), runs(devices))


@pytest.mark.slow
def test_eight_devices_give_what_one_gives(tmp_path):
    one, eight = (run(tmp_path, devices, groups=8) for devices in (1, 8))
    same_numbers(one, eight)
    assert eight["replicas_agree"]


def same_numbers(one, many):
    np.testing.assert_allclose(many["losses"][0], one["losses"][0], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(many["losses"], one["losses"], rtol=2e-5, atol=1e-6)  # rounding adds up over steps
    for name in one:
        if name.startswith("bank"):
            np.testing.assert_allclose(many[name], one[name], atol=2e-4, err_msg=name)
    for name in ("weights", "key_weights"):
        np.testing.assert_allclose(many[name], one[name], atol=1e-5, err_msg=name)


@TWO_OR_FOUR
def test_every_replica_holds_the_same_bits(runs, devices):
    assert runs(devices)["replicas_agree"]


@pytest.mark.slow
def test_every_replica_holds_the_same_bits_after_fifty_steps(tmp_path):
    assert run(tmp_path, 2, groups=2, steps=50, kind="plain")["replicas_agree"]


@pytest.mark.slow
def test_the_number_of_groups_does_matter(runs, tmp_path):
    few = run(tmp_path, 1, GROUPS, steps=1, kind="coarse")["losses"][0]
    assert np.abs(few - runs(1)["losses"][0]).max() > 1e-2


@pytest.mark.slow
def test_float16_trains_on_two_devices_as_float32_does(tmp_path):
    half, full = (run(tmp_path, 2, 2, 2, kind) for kind in ("float16", "plain"))
    assert half["replicas_agree"] and half["moved"] > 0
    losses = [name.startswith("loss") for name in half["names"]]
    np.testing.assert_allclose(half["losses"][0][losses], full["losses"][0][losses], rtol=0.02, atol=1e-3)
    assert all(half[name].dtype == np.float32 for name in half if name.startswith("bank"))


def test_an_overflow_on_one_replica_skips_the_step_on_all(tmp_path):
    """Keras' loss scaling looks at the first replica alone: unheeded, the second's NaN would be in every weight."""
    result = run(tmp_path, 2, 2, 1, "overflow")
    assert result["replicas_agree"]
    assert result["moved"] == 0 and np.isfinite(result["weights"]).all()
    assert result["loss_scale"] == 2.0**14  # halved


@pytest.mark.slow
def test_a_nan_on_one_replica_is_logged_by_all(tmp_path):
    poisoned = run(tmp_path, 2, 2, 2, "nan")
    assert np.isnan(poisoned["losses"]).any(axis=1).tolist() == [False, True, True]
