"""Checkpoints of a run: every variable a step depends on, in TensorFlow's format, with the sha256 of its files.

A flat dict of variables is saved, since `tf.train.Checkpoint(model)` silently skips what sits in Python containers.
With batches a function of (seed, step), these variables are the whole state: a resumed run continues bit-identically.

A checkpoint is `ckpt-STEP.index` and `ckpt-STEP.data-*`, written by TensorFlow under other names and then renamed, and
last `ckpt-STEP.sha256`, which `sha256sum -c` reads. TensorFlow's own checksums would do for the data, but not for every
bit of the index, and its state file `checkpoint` has none, so it is not used: the folder is listed instead.
"""

from __future__ import annotations

import collections
import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf

from dupr_tf.errors import RunFailed, UserError
from dupr_tf.files import sha256_of
from dupr_tf.text import one_line

ENDINGS = ("data-00000-of-00001", "index")  # of TensorFlow's files

log = logging.getLogger(__name__)


class RunCheckpoints:
    """Saves and restores a model with its optimiser below one folder.

    Args:
        model: a compiled Keras model whose optimiser is built. Its variable `step`, or the optimiser's `iterations`,
            counts steps.
        folder: where the checkpoints go; made by the first save.
        keep: checkpoints kept, the newest.

    Attributes:
        variables: {key: variable} of the whole state.
        before_save: called before a checkpoint is written; returns what it holds besides, {name: JSON value}.
        extra: what the restored checkpoint holds besides.
    """

    def __init__(self, model: keras.Model, folder: str | Path, keep: int = 2):
        self.folder, self.keep = Path(folder), keep
        self.variables = state_of(model)
        self.step = model.step if hasattr(model, "step") else model.optimizer.iterations
        with tf.device("CPU:0"):
            self._extra = tf.Variable("{}", dtype=tf.string, trainable=False)
        self.checkpoint = tf.train.Checkpoint(variables=self.variables, extra=self._extra)
        _ = self.checkpoint.save_counter  # made here, since checkpoints of earlier versions hold one
        self.before_save: Callable[[], dict] = dict
        self._at_hand: int | None = None  # the step that is saved, or was restored, as it is

    @property
    def size(self) -> int:
        """Bytes of the state."""
        return state_bytes(self.variables)

    @property
    def extra(self) -> dict:
        return json.loads(self._extra.numpy())

    def save(self) -> Path:
        """Writes a checkpoint of the current step, unless there is one, and returns its path without the endings.

        Raises:
            RunFailed: it could not be written; the ones before it are as they were.
        """
        step = int(self.step.numpy())
        path = self.folder / f"ckpt-{step}"
        if step == self._at_hand:
            return path
        self.folder.mkdir(parents=True, exist_ok=True)
        _remove_unfinished(self.folder)
        _remove_checkpoint(path)  # a damaged one of the same step
        try:
            self._extra.assign(json.dumps(self.before_save()))
            self.checkpoint.write(str(path))
            _write_sums(path)
        except (tf.errors.OpError, OSError) as error:
            _remove_unfinished(self.folder)
            _remove_checkpoint(path)
            raise RunFailed(self._no_room(step, error)) from error
        self._at_hand = step
        self._remove_old(step)
        return path

    def restore(self) -> int:
        """Restores the newest checkpoint that is whole; returns its step, 0 where there is none. Changes no file.

        Raises:
            UserError: there are checkpoints and none of them fits or is whole.
        """
        unfit = 0
        for path in saved_checkpoints(self.folder):
            finished = path.with_suffix(".sha256").exists()
            damage = find_damage(path)
            if damage is None:
                try:
                    self.checkpoint.read(str(path)).assert_consumed()
                    self._at_hand = int(self.step.numpy())
                    return self._at_hand
                except (tf.errors.OpError, AssertionError, ValueError) as error:
                    damage = one_line(error, 200)
                    if not finished and isinstance(error, tf.errors.OpError):
                        continue  # a save that was killed while its index was written
            unfit += 1
            log.warning("checkpoint %s cannot be used: %s", path, damage)
        if unfit:
            problem = f"{self.folder} has {unfit} checkpoints, and each is damaged or of another model."
            raise UserError(None, problem, "Choose another --output, or remove that folder to start again.")
        return 0

    def restore_step(self, step: int) -> None:
        """Restores the checkpoint of a step, the one another worker has restored; of step 0 there is none.

        Raises:
            UserError: it is not here, or not what was written.
        """
        path = self.folder / f"ckpt-{step}"
        if not step:
            return
        damage = find_damage(path) if path.with_suffix(".index").exists() else "it is not there"
        if damage:
            problem = f"The chief has restored the checkpoint of step {step}, and here {path} cannot be used: {damage}."
            raise UserError("--output", problem, "Use a folder that all workers share.")
        self.checkpoint.read(str(path)).assert_consumed()
        self._at_hand = step

    def _remove_old(self, step):
        """Keeps the newest, up to this step: later ones are damaged, or the run would have begun from them."""
        paths = saved_checkpoints(self.folder)
        later = [path for path in paths if step_of(path) > step]
        for path in [*later, *paths[len(later) + self.keep :]]:
            _remove_checkpoint(path)

    def _no_room(self, step, error):
        paths = saved_checkpoints(self.folder)
        free = shutil.disk_usage(self.folder).free
        left = f"The one of step {step_of(paths[0])} is untouched." if paths else "There is none before it."
        return (
            f"The checkpoint of step {step} ({self.size:,} bytes) cannot be written below {self.folder}, which has "
            f"{free:,} bytes free ({one_line(error, 120)}). {left} Free some space and run the same command again."
        )


def state_of(model: keras.Model) -> dict:
    """{unique name: variable} of all that the steps to come depend on; the model's optimiser is built.

    A name follows from a variable's path, or from the model's own `named_variables`, so that a further layer does not
    rename the rest. Metrics are left out: they are reset before each step.

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
    """Bytes of the variables of `state_of`."""
    return sum(int(np.prod(v.shape)) * v.dtype.size for v in variables.values())


def saved_checkpoints(folder: str | Path) -> list[Path]:
    """The checkpoints below a folder, newest first: paths without the endings; whole or not."""
    found = {path.with_suffix("") for ending in ("index", "sha256") for path in Path(folder).glob(f"ckpt-*.{ending}")}
    return sorted((path for path in found if path.name[5:].isdigit()), key=step_of, reverse=True)


def step_of(path: Path) -> int:
    """The step of `…/ckpt-STEP`."""
    return int(path.name.removeprefix("ckpt-"))


def find_damage(path: Path) -> str | None:
    """Which file of a checkpoint is not what was written, None if all are; without sums TensorFlow's own must do."""
    sums = path.with_suffix(".sha256")
    if not sums.exists():
        return None
    written = sums.read_bytes().decode("ascii", "replace").splitlines(keepends=True)
    found = [_sum_line(file) for file in _files(path)]
    if written == found:
        return None
    wrong = [line[66:].rstrip("\n") for line in found if line not in written]
    missing = [name for name in (f"{path.name}.{ending}" for ending in ENDINGS) if not path.with_name(name).exists()]
    return f"{', '.join([*missing, *wrong]) or 'something else'} is not as {sums.name} has it"


def _write_sums(path: Path) -> None:
    temporary = path.with_suffix(".sums_temp")
    temporary.write_text("".join(map(_sum_line, _files(path))), encoding="ascii")
    temporary.replace(path.with_suffix(".sha256"))


def _sum_line(file: Path) -> str:
    return f"{sha256_of(file)}  {file.name}\n"


def _files(path: Path) -> list[Path]:
    """TensorFlow's files of a checkpoint."""
    return [file for file in (path.with_name(f"{path.name}.{ending}") for ending in ENDINGS) if file.exists()]


def _remove_checkpoint(path: Path) -> None:
    for file in [path.with_suffix(".sha256"), *reversed(_files(path))]:  # a kill in between leaves no half one
        file.unlink(missing_ok=True)


def _remove_unfinished(folder: Path) -> None:
    """What a save that was killed has left: files under other names, and data whose index was never written."""
    for leftover in [*folder.glob("*_temp*"), *folder.glob("*.tempstate*")]:
        shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink()
    for data in folder.glob("ckpt-*.data-*"):
        path = data.with_suffix("")
        if not any(path.with_suffix(ending).exists() for ending in (".index", ".sha256")):
            data.unlink()
