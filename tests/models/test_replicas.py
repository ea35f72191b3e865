"""The same step on one device and on several logical ones (METHOD section 6). Each run is a process of its own."""

import subprocess
import sys

import numpy as np
import pytest

STEPS = 4


def run(folder, devices, groups, steps=STEPS):
    output = folder / f"{devices}x{groups}.npz"
    command = [sys.executable, "-m", "tests.models.replica_run", *map(str, (devices, groups, steps)), str(output)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr[-3000:]
    return dict(np.load(output))


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("replicas")
    return {devices: run(folder, devices, groups=4) for devices in (1, 2, 4)}


@pytest.mark.parametrize("devices", [2, 4])
def test_losses_banks_and_updates_do_not_depend_on_the_number_of_devices(runs, devices):
    one, many = runs[1], runs[devices]
    np.testing.assert_allclose(many["losses"], one["losses"], rtol=2e-5, atol=1e-6)
    for name in one:
        if name.startswith("bank"):
            np.testing.assert_allclose(many[name], one[name], atol=2e-4, err_msg=name)
    for name in ("weights", "key_weights"):
        np.testing.assert_allclose(many[name], one[name], atol=1e-5, err_msg=name)


@pytest.mark.parametrize("devices", [2, 4])
def test_every_replica_holds_the_same_bits(runs, devices):
    assert runs[devices]["replicas_agree"]


def test_the_number_of_groups_does_matter(runs, tmp_path):
    assert np.abs(run(tmp_path, 1, groups=1)["losses"] - runs[1]["losses"]).max() > 1e-2
