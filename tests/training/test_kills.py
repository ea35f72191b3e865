"""Runs each kill test once. `make test-kill` kills pre-training fifty times, and fine-tuning ten times."""

import subprocess
import sys

import pytest

from dupr_tf.config.detectors import DETECTORS


def kill_test(*arguments, module="tests.kill_test"):
    """Runs a kill test in a process without threads, since it forks."""
    command = [sys.executable, "-m", module, *map(str, arguments)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr[-3000:]
    return result.stdout


def test_killed_pretraining_loses_nothing():
    assert "1 kills (" in kill_test("--kills", 1, "--steps", 8, "--seed", 1)


def test_killed_fine_tuning_loses_nothing():
    arguments = ("--kills", 1, "--steps", 6, "--seed", 1, "--kind", "fcn")
    assert "1 kills (" in kill_test(*arguments, module="tests.finetune_kill_test")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "neck"),
    [
        ("retinanet", "fpn"),
        ("kerashub_retinanet", "fpn"),
        ("faster_rcnn", "fpn"),
        ("faster_rcnn", "c4"),
        ("mask_rcnn", "fpn"),
        ("mask_rcnn", "c4"),
    ],
)
def test_killed_runs_of_every_detector_lose_nothing(kind, neck):
    if DETECTORS[kind].missing:
        pytest.skip(f"{kind} needs {DETECTORS[kind].missing}")
    arguments = ("--kills", 2, "--steps", 8, "--kind", kind, "--neck", neck)
    assert "2 kills (" in kill_test(*arguments, module="tests.finetune_kill_test")


@pytest.mark.slow
def test_killed_runs_on_two_devices_lose_nothing():
    assert "4 kills (" in kill_test("--kills", 4, "--steps", 20, "--replicas", 2)
