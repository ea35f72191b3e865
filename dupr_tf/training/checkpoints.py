"""Checkpoints of a run: every variable a step depends on, in TensorFlow's format, with the sha256 of its files.

A flat dict of variables is saved, because `tf.train.Checkpoint(model)` silently skips variables in Python containers.
Batches are a function of (seed, step), so these variables are the whole state. A resumed run continues bit-identically.

TensorFlow writes `ckpt-STEP.index` and `ckpt-STEP.data-*` under other names, and both are then renamed. The last file
is `ckpt-STEP.sha256`, which `sha256sum -c` reads. TensorFlow's own checksums cover the data, but not every bit of the
index. Its state file `checkpoint` has none, so it is not used: the folder is listed instead.
"""

from __future__ import annotations

import collections
import contextlib
import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf

from dupr_tf.errors import RunFailed, UserError, is_disk_full
from dupr_tf.files import plain_alias
from dupr_tf.records import mapping, parse_json
from dupr_tf.text import one_line
from dupr_tf.weights.checkpoint_files import (
    check_files,
    find_damage,
    remove_checkpoint,
    remove_unfinished,
    saved_checkpoints,
    step_of,
    write_sums,
)

log = logging.getLogger(__name__)


class RunCheckpoints:
    """Saves and restores a model with its optimiser in one folder.

    Args:
        model: a compiled Keras model whose optimiser is built. Its variable `step`, or the optimiser's `iterations`,
            counts steps.
        folder: folder of the checkpoints; the first save creates it.
        keep: number of newest checkpoints to keep.
        run: id of the run, which its checkpoints carry. Checkpoints with another id are refused. "" for a new run,
            which has no id yet. None: ids are not compared.

    Attributes:
        variables: {key: variable} of the whole state.
        before_save: called before a checkpoint is written. It returns further contents, {name: JSON value}.
        announce: wraps the function that writes a checkpoint, such as `Workers.announce`.
        extra: further contents of the restored checkpoint.
    """

    def __init__(self, model: keras.Model, folder: str | Path, keep: int = 2, run: str | None = None):
        self.folder, self.keep, self.run = Path(folder), keep, run
        self.variables = state_of(model)
        self.step = model.step if hasattr(model, "step") else model.optimizer.iterations
        with tf.device("CPU:0"):
            self._extra = tf.Variable("{}", dtype=tf.string, trainable=False)
        self.checkpoint = tf.train.Checkpoint(variables=self.variables, extra=self._extra)
        _ = self.checkpoint.save_counter  # created here, because checkpoints of earlier versions have one
        self.before_save: Callable[[], dict] = dict
        self.announce: Callable[[Callable], Callable] = lambda function: function
        self._at_hand: int | None = None  # the step whose checkpoint was last saved or restored

    @property
    def size(self) -> int:
        """Returns the bytes of the state."""
        return state_bytes(self.variables)

    @property
    def extra(self) -> dict:
        return _read_extra(self._extra.numpy())

    def save(self) -> Path:
        """Writes a checkpoint of the current step, unless it exists. Returns its path without the endings.

        Raises:
            RunFailed: the checkpoint could not be written. Earlier checkpoints are unchanged.
        """
        step = int(self.step.numpy())
        path = self.folder / f"ckpt-{step}"
        if step == self._at_hand:
            return path
        try:
            self.announce(self._write)(path)
        except (tf.errors.OpError, OSError) as error:
            with contextlib.suppress(OSError):  # the folder may be gone or read-only
                remove_unfinished(self.folder)
                remove_checkpoint(path)
            raise RunFailed(self._not_written(step, error)) from error
        self._at_hand = step
        self._remove_old(step)
        return path

    def _write(self, path):
        self.folder.mkdir(exist_ok=True)  # not its parents: a run whose folder was removed must not continue
        remove_unfinished(self.folder)
        remove_checkpoint(path)  # a damaged checkpoint of the same step
        self._extra.assign(json.dumps({**self.before_save(), "run": self.run}))
        with plain_alias(self.folder) as folder:
            self.checkpoint.write(str(folder / path.name))
        write_sums(path)

    def restore(self) -> int:
        """Restores the newest undamaged checkpoint. Returns its step, or 0 without a checkpoint. Changes no file.

        Raises:
            UserError: checkpoints exist, but all are damaged or do not fit, or one is of another run.
        """
        check_files(self.folder)
        unfit = 0
        for path in saved_checkpoints(self.folder):
            finished = path.with_suffix(".sha256").exists()
            damage = find_damage(path)
            if damage is None:
                try:
                    self._read(path)
                    self._at_hand = int(self.step.numpy())
                    return self._at_hand
                except UserError:
                    raise
                except (tf.errors.OpError, AssertionError, ValueError, RuntimeError) as error:
                    damage = one_line(error, 200)
                    if not finished and isinstance(error, tf.errors.OpError):
                        continue  # a save that was killed while writing its index
            unfit += 1
            log.warning("checkpoint %s cannot be used: %s", path, damage)
        if unfit:
            problem = f"{self.folder} has {unfit} checkpoints, and each is damaged or of another model."
            raise UserError(None, problem, "Choose another --output, or remove that folder to start again.")
        return 0

    def restore_step(self, step: int) -> None:
        """Restores the checkpoint of the step that another worker has restored. Step 0 has no checkpoint.

        Raises:
            UserError: the checkpoint is missing or damaged.
        """
        path = self.folder / f"ckpt-{step}"
        if not step:
            return
        damage = find_damage(path) if path.with_suffix(".index").exists() else "it is missing"
        if damage:
            problem = f"The chief has restored the checkpoint of step {step}, and here {path} cannot be used: {damage}."
            raise UserError("--output", problem, "Use a folder that all workers share.")
        self._read(path)
        self._at_hand = step

    def _read(self, path: Path) -> None:
        """Reads the variables of a checkpoint. Raises UserError if it is of another run."""
        with plain_alias(self.folder) as folder:
            self.checkpoint.read(str(folder / path.name)).assert_consumed()
        name = self.extra.get("run")
        if name and self.run is not None and name != self.run:
            problem = f"{path} is a checkpoint of another run."
            raise UserError(None, problem, "Move it away with its .sha256, or choose another --output.")

    def _remove_old(self, step):
        """Keeps the newest checkpoints up to this step. Later ones must be damaged: the run did not start from them."""
        paths = saved_checkpoints(self.folder)
        later = [path for path in paths if step_of(path) > step]
        for path in [*later, *paths[len(later) + self.keep :]]:
            remove_checkpoint(path)

    def _not_written(self, step, error) -> str:
        """Returns the message for a checkpoint that could not be written."""
        paths = saved_checkpoints(self.folder)
        left = f"The one of step {step_of(paths[0])} is untouched." if paths else "There is none before it."
        what, reason = f"The checkpoint of step {step} ({self.size:,} bytes)", one_line(error, 120)
        if not is_disk_full(error) or not self.folder.is_dir():
            return f"{what} cannot be written below {self.folder} ({reason}). {left} Check that folder."
        free = shutil.disk_usage(self.folder).free
        return (
            f"{what} cannot be written below {self.folder}, which has "
            f"{free:,} bytes free ({reason}). {left} Free some space and run the same command again."
        )


def _read_extra(content: bytes | str) -> dict:
    """Parses the further contents of a checkpoint: the run's id, and sums [total, count] of the line in progress.

    Raises:
        ValueError: they are of another kind.
    """
    extra = mapping(parse_json(content))
    for name, pair in mapping(extra.get("sums", {})).items():
        if len(pair) != 2 or not all(type(value) in (int, float) for value in pair):
            raise ValueError(f"expected [total, count] for {name}")
    return extra


def state_of(model: keras.Model) -> dict:
    """Returns {unique name: variable} of all that future steps depend on. The model's optimiser must be built.

    A name follows from a variable's path, or from the model's own `named_variables`. A further layer therefore does not
    rename the rest. Metrics are left out, because they are reset before each step.

    Raises:
        RuntimeError: two variables share a name, or `named_variables` leaves some out.
    """
    own = model.named_variables().items() if hasattr(model, "named_variables") else _by_path(model.variables)
    named = [*((f"model/{name}", variable) for name, variable in own)]
    named += [(f"optimizer/{name}", variable) for name, variable in _by_path(model.optimizer.variables)]
    counts = collections.Counter(name for name, _ in named)
    shared = [name for name, count in counts.items() if count > 1]
    if shared:
        raise RuntimeError(f"{len(shared)} names belong to several variables, such as {shared[0]}")
    missing = len(model.variables) + len(model.optimizer.variables) - len(named)
    if missing:
        raise RuntimeError(f"named_variables leaves out {missing} of the model's variables")
    return {name: variable.value for name, variable in named}


def _by_path(variables) -> list[tuple]:
    return [(variable.path, variable) for variable in variables]


def state_bytes(variables: dict) -> int:
    """Returns the bytes of the variables of `state_of`."""
    return sum(int(np.prod(v.shape)) * v.dtype.size for v in variables.values())
