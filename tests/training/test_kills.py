"""SIGKILL at random moments, once; `make test-kill` does it fifty times."""

import subprocess
import sys

import pytest


def kill_test(*arguments):
    """Runs `tests.kill_test` in a process without threads, as its forks need."""
    command = [sys.executable, "-m", "tests.kill_test", *map(str, arguments)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr[-3000:]
    return result.stdout


def test_a_kill_loses_nothing():
    assert "1 kills (" in kill_test("--kills", 1, "--steps", 8, "--seed", 1)


@pytest.mark.slow
def test_kills_of_two_devices_lose_nothing():
    assert "4 kills (" in kill_test("--kills", 4, "--steps", 20, "--replicas", 2)
