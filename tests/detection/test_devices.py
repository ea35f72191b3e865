"""Tests that two devices with synchronised norms take the steps of one device: losses, weights, statistics."""

import subprocess
import sys

import numpy as np
import pytest


def run(devices, kind, path):
    command = [sys.executable, "-m", "tests.detection.detector_run", str(devices), kind, str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    with np.load(path) as values:
        return dict(values)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["retinanet", "fcn"])
def test_two_devices_take_the_steps_of_one(kind, tmp_path):
    one, two = (run(devices, kind, tmp_path / f"{devices}.npz") for devices in (1, 2))
    assert one.keys() == two.keys() and {name.split("_")[0] for name in one} == {"weight", "mean", "precise", "log"}
    for name, value in one.items():
        if name != "log_percent_boxes_matched_with_anchor":  # KerasCV's metric, from one device
            np.testing.assert_allclose(
                two[name], value, rtol=1e-3, atol=2e-4 * max(1, np.abs(value).max()), err_msg=name
            )
