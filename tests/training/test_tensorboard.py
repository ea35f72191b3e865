"""Tests that a run continues if TensorBoard's events cannot be written."""

import logging
import subprocess

import numpy as np
import pytest

from dupr_tf.training.tensorboard import TensorBoardEvents
from tests.odd_names import ODD


def write_lines(events, lines):
    for step in range(lines):
        events.write(step, {"loss": 1.0}, {"picture": np.zeros((64, 64, 3), np.uint8)})
        events.flush()
    events.close()


def test_events_are_written_to_the_folder(tmp_path):
    write_lines(TensorBoardEvents(tmp_path / ODD), 2)
    assert [path.stat().st_size > 300 for path in (tmp_path / ODD).iterdir()] == [True]


def test_file_in_place_of_the_folder_gives_one_warning(tmp_path, caplog):
    caplog.set_level(logging.WARNING)
    (tmp_path / "tensorboard").write_text("x")
    write_lines(TensorBoardEvents(tmp_path / "tensorboard"), 3)
    assert [record.levelname for record in caplog.records] == ["WARNING"]


def test_full_disk_does_not_end_a_run(tmp_path, caplog):
    caplog.set_level(logging.WARNING)
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16k", "none", str(folder)], capture_output=True)
    if mounted.returncode:
        pytest.skip("a disk of 16 kB cannot be mounted here (needs root)")
    try:
        events = TensorBoardEvents(folder)
        (folder / "rest").write_bytes(b"x" * 8000)
        noise = np.random.default_rng(0).integers(0, 256, (128, 128, 3)).astype(np.uint8)
        for step in range(5):
            events.write(step, {"loss": 1.0}, {"picture": noise})
            events.flush()
        events.close()
        assert len(caplog.records) <= 1  # TensorFlow drops events silently, or raises
        assert sum(path.stat().st_size for path in folder.iterdir()) <= 16 << 10
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)
