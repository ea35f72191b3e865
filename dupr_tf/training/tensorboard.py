"""Writes TensorBoard's events of a run. If this fails, the run continues without them."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import tensorflow as tf

from dupr_tf.text import one_line

log = logging.getLogger(__name__)
FAILURES = (tf.errors.OpError, OSError, ValueError)


class TensorBoardEvents:
    """Writes scalars and pictures. After the first failure it warns once and writes no more.

    Args:
        folder: folder of the event files.
    """

    def __init__(self, folder: Path):
        self.folder, self._writer = folder, None
        self._attempt(self._open)

    def write(self, step: int, scalars: dict[str, float], pictures: dict[str, np.ndarray]) -> None:
        """Writes the numbers, and pictures (H, W, 3) uint8, of a step."""

        def write(writer):
            with writer.as_default(step=step):
                for name, value in scalars.items():
                    tf.summary.scalar(name, value)
                for name, picture in pictures.items():
                    tf.summary.image(name, picture[None])

        self._with_writer(write)

    def flush(self) -> None:
        """Writes buffered events to the disk."""
        self._with_writer(lambda writer: writer.flush())

    def close(self) -> None:
        """Ends the event file."""
        self._with_writer(lambda writer: writer.close())
        self._writer = None

    def _open(self) -> None:
        self._writer = tf.summary.create_file_writer(os.fsencode(self.folder))

    def _with_writer(self, work: Callable) -> None:
        if self._writer is not None:
            self._attempt(lambda: work(self._writer))

    def _attempt(self, work: Callable[[], None]) -> None:
        try:
            work()
        except FAILURES as error:
            self._writer = None
            log.warning("TensorBoard's events in %s are no longer written: %s", self.folder, one_line(error, 200))
