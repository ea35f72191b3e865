"""Tests that two devices compute what one device computes."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest


def run(devices, folder):
    output = folder / f"{devices}.npz"
    command = [sys.executable, "-m", "tests.detection.rcnn.replica_run", str(devices), str(output)]
    done = subprocess.run(command, cwd=Path(__file__).parents[3], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return np.load(output)


@pytest.mark.slow
def test_two_replicas_train_as_one_device(tmp_path):
    one, two = run(1, tmp_path), run(2, tmp_path)
    np.testing.assert_allclose(two["losses"], one["losses"], rtol=1e-4)
    np.testing.assert_allclose(two["weights"], one["weights"], atol=2e-5)
    np.testing.assert_allclose(two["means"], one["means"], atol=1e-5)  # statistics of both devices' images
