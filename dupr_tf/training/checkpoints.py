"""Checkpoints of a run: every variable a step depends on, in TensorFlow's checksummed format.

A flat dict of variables is saved, since `tf.train.Checkpoint(model)` silently skips what sits in Python containers.
With batches a function of (seed, step), these variables are the whole state: a resumed run continues bit-identically.
"""

from __future__ import annotations

import logging
from pathlib import Path

import keras
import tensorflow as tf

log = logging.getLogger(__name__)


class RunCheckpoints:
    """Saves and restores a model with its optimiser below one folder.

    Args:
        model: a compiled DUPR whose optimiser is built.
        folder: where the checkpoints go.
        keep: checkpoints kept, the newest.
    """

    def __init__(self, model: keras.Model, folder: str | Path, keep: int = 2):
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        for leftover in folder.glob("*_temp*"):  # of a save that was killed
            _remove(leftover)
        optimizer = model.optimizer
        self.variables = {
            f"{owner}_{i:04d}": variable.value
            for owner, variables in (("model", model.variables), ("optimizer", optimizer.variables))
            for i, variable in enumerate(variables)
        }
        self.step = model.step
        self.checkpoint = tf.train.Checkpoint(variables=self.variables)
        self.manager = tf.train.CheckpointManager(self.checkpoint, str(folder), max_to_keep=keep)

    def save(self) -> str:
        """Writes a checkpoint of the current step and returns its path."""
        return self.manager.save(checkpoint_number=int(self.step))

    def restore(self) -> int:
        """Restores the newest checkpoint that is whole; returns its step, 0 where there is none.

        Raises:
            ValueError: there are checkpoints and none of them fits or is whole.
        """
        paths = list(reversed(self.manager.checkpoints))
        for path in paths:
            try:
                self.checkpoint.restore(path).assert_consumed()
                return int(self.step)
            except (tf.errors.OpError, AssertionError, ValueError) as error:
                log.warning("checkpoint %s cannot be used: %s", path, " ".join(str(error).split())[:200])
        if paths:
            raise ValueError(
                f"Expected a whole checkpoint of this model, received {len(paths)} damaged or foreign ones below "
                f"{self.manager.directory}. Fix: another --output, or remove that folder to start again"
            )
        return 0


def _remove(path: Path) -> None:
    if path.is_dir():
        for inner in path.iterdir():
            _remove(inner)
        path.rmdir()
    else:
        path.unlink()
