"""Validates a detector while it trains: scores, the weights of the best step, and early stopping.

The weights are in `checkpoints/best-STEP.npz`, float32 arrays in the order of `get_weights`. A file is kept while a
checkpoint exists for which it is the best.
"""

from __future__ import annotations

import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np

from dupr_tf.errors import RunFailed, UserError
from dupr_tf.training.callbacks import Validate
from dupr_tf.training.checkpoints import saved_checkpoints, step_of

LOGGED = ("AP", "AP50", "mIoU")
RANKED = ("AP", "mIoU")  # the score that ranks detectors


class ValidateDetector(Validate):
    """Measures a detector on the split val every `every` steps and at the end, and keeps the weights of the best step.

    Neither weights nor random draws of the training change. `state` goes into each checkpoint.

    Args:
        detector: the detector that trains.
        measure: () -> scores with `AP` or `mIoU`, as in `Task.measure`; the entry `masks` has those of masks.
        folder: folder of the checkpoints.
        every: steps between two validations.
        steps: steps of this start of the run, (first, last).
        patience: number of validations without a better score after which training stops. None: it does not stop.
        saved: `state` of the checkpoint that the run resumes from.

    Raises:
        UserError: the weights of the best step are not in `folder`.
    """

    def __init__(
        self,
        detector,
        measure: Callable[[], dict],
        folder: Path,
        every: int,
        steps: tuple[int, int],
        patience: int | None = None,
        saved: dict | None = None,
    ):
        super().__init__(self._compare, every, *steps)
        self.detector, self.measure, self.folder, self.patience = detector, measure, folder, patience
        self.best: dict | None = None  # {"step", "score"}
        self.without_gain = 0  # validations since the best one
        vars(self).update(saved or {})
        for step in self._saved_steps():
            if step > steps[0]:  # a killed start made this validation, which is repeated
                self._file(step).unlink()
        if self.best is not None and not self._file(self.best["step"]).exists():
            problem = f"{self._file(self.best['step'])}, the weights of the best step, is missing."
            raise UserError(None, problem, f"Restore it, or remove {folder} to start again.")

    @property
    def is_over(self) -> bool:
        """Returns True if the patience has run out."""
        return patience_is_over(self.patience, self.state())

    def state(self) -> dict:
        return {"validation": {"best": self.best, "without_gain": self.without_gain}}

    def _compare(self):
        scores = self.measure()
        score = next(scores[name] for name in RANKED if name in scores)
        if self.best is None or score > self.best["score"]:
            self.best, self.without_gain = {"step": self.step, "score": score}, 0
            self._save()
        else:
            self.without_gain += 1
        self.detector.stop_training = self.is_over
        return logged_scores(scores), {}

    def _save(self):
        file = self._file(self.step)
        file.parent.mkdir(parents=True, exist_ok=True)
        temporary = file.with_suffix(".tmp.npz")
        np.savez(temporary, *self.detector.get_weights())
        temporary.replace(file)
        steps = self._saved_steps()
        resumable = [step_of(path) for path in saved_checkpoints(self.folder)]
        kept = {max((step for step in steps if step <= last), default=None) for last in [*resumable, self.step]}
        for step in set(steps) - kept:
            self._file(step).unlink()

    def _saved_steps(self) -> list[int]:
        names = (path.stem.removeprefix("best-") for path in self.folder.glob("best-*.npz"))
        return [int(name) for name in names if name.isdigit()]

    def _file(self, step: int) -> Path:
        return self.folder / f"best-{step}.npz"

    def load_best(self) -> None:
        """Gives the detector the weights of the best step. Raises RunFailed if their file is damaged."""
        file = self._file(self.best["step"])
        try:
            with np.load(file) as arrays:
                self.detector.set_weights([arrays[name] for name in arrays.files])
        except (OSError, ValueError, zipfile.BadZipFile) as error:
            problem = f"{file}, the weights of the best step, cannot be read. Remove {self.folder} to start again."
            raise RunFailed(problem) from error


def logged_scores(scores: dict) -> dict[str, float]:
    """Returns AP and AP50, or mIoU, of the scores of a detector; those of masks as `masks_AP` and `masks_AP50`."""
    logged = {name: scores.get(name) for name in LOGGED}
    logged |= {f"masks_{name}": value for name, value in scores.get("masks", {}).items() if name in LOGGED}
    return {name: value for name, value in logged.items() if value is not None}


def patience_is_over(patience: int | None, state: dict) -> bool:
    """Returns True if the patience of a run has run out, by the state in its checkpoint."""
    saved = state.get("validation") or {}
    return patience is not None and saved.get("without_gain", 0) >= patience
