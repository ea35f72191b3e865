"""Records the schedule of a run: the begin of its epochs and its learning rate, also after a change.

A run that is resumed with another length, other images or another rate (`--allow-change`) has a new schedule. Its
epochs are counted from the epoch it had reached. `after_change` chooses the rate:

| value | learning rate from the change on |
|---|---|
| planned | that of the new schedule at this step |
| decay | the new schedule, scaled so that it starts at the rate before the change |
| warmup | the new schedule, after a linear warm-up |

Without a choice it is planned, or warmup if the rate would jump.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import math
import os
from pathlib import Path
from typing import Literal

from dupr_tf.config import Config, load_config
from dupr_tf.files import write_whole
from dupr_tf.records import MOST_NUMBER, mapping, read_record, whole
from dupr_tf.training.optimizers import AfterChange, build_schedule
from dupr_tf.training.run import CONFIG_FILE

log = logging.getLogger(__name__)
SCHEDULE_FILE = "schedule.json"
AfterChangeName = Literal["planned", "decay", "warmup"]
JUMP = 1.5  # ratio of two learning rates that needs a warm-up, unless another choice is made
WARMUP_SHARE, LEAST_WARMUP = 0.05, 10  # share of the steps left, and steps, if optimizer.warmup_steps is 0


@dataclasses.dataclass(frozen=True)
class Schedule:
    """The lengths of a run and its newest change.

    Args:
        steps_per_epoch, total_steps: lengths since the change.
        since_step, since_epoch: step and epoch at the change; 0 if there was none.
        rate_before: learning rate of the step before the change.
        factor: factor on the learning rate of the config's schedule.
        warmup_steps: steps of the warm-up after the change.
    """

    steps_per_epoch: int
    total_steps: int
    since_step: int = 0
    since_epoch: float = 0.0
    rate_before: float = 0.0
    factor: float = 1.0
    warmup_steps: int = 0

    def epoch(self, step: int) -> float:
        """Returns the epoch at a step."""
        return self.since_epoch + (step - self.since_step) / self.steps_per_epoch

    def rates(self, config: Config):
        """Returns the learning-rate schedule of a config with these lengths."""
        rates = build_schedule(config, self.steps_per_epoch, self.total_steps)
        if not self.since_step:
            return rates
        return AfterChange(rates, self.since_step, self.factor, self.warmup_steps)


def read_schedule(run: Path) -> Schedule | None:
    """Reads the record of a run; None for a run without one.

    Raises:
        UserError: it is damaged.
    """
    path = run / SCHEDULE_FILE
    if not os.path.lexists(path):
        return None
    return read_record(
        path, _schedule, "Restore the file, or remove it; then the schedule is that of the config alone."
    )


def _schedule(value) -> Schedule:
    """Converts a record. Raises ValueError for values outside their range."""
    saved = Schedule(**mapping(value))
    for length in (saved.steps_per_epoch, saved.total_steps, saved.since_step + 1, saved.warmup_steps + 1):
        if not whole(length):
            raise ValueError("expected lengths above 0")
    if not all(
        type(x) in (int, float) and 0 <= x < MOST_NUMBER for x in (saved.since_epoch, saved.rate_before, saved.factor)
    ):
        raise ValueError("expected epoch, rate and factor of 0 or more")
    return saved


def write_schedule(run: Path, schedule: Schedule) -> None:
    """Writes the record of a run."""
    write_whole(run / SCHEDULE_FILE, json.dumps(dataclasses.asdict(schedule), indent=2) + "\n")


def next_schedule(
    run: Path, config: Config, images: int, step: int, changed: bool, after_change: AfterChangeName | None = None
) -> Schedule:
    """Returns the schedule of this start. Logs what a change does to rate, epochs and steps.

    Args:
        run: the run's folder, whose record is still that of the last start.
        config: config of this start.
        images: number of images of this start.
        step: step from which it resumes.
        changed: True if config or images differ from those of the last start.
        after_change: learning rate after the change. It also counts in a repeated start at the step of the change.
            Default: "planned", or "warmup" if the rate would jump.
    """
    new = Schedule(config.steps_per_epoch(images), config.total_steps(images))
    saved = read_schedule(run) if step else None
    if saved is None:
        return new
    again = saved.since_step == step
    if not changed and not (again and after_change):
        if after_change:
            log.info("--after-change %s: nothing has changed since the last start, whose schedule stays", after_change)
        return saved
    rates = saved.rates(load_config(run / CONFIG_FILE))
    before = saved.rate_before if again else float(rates(step - 1))
    new = dataclasses.replace(new, since_step=step, since_epoch=saved.epoch(step), rate_before=before)
    if not after_change:  # an earlier choice of decay stays
        new = dataclasses.replace(new, factor=saved.factor or 1.0)
    planned = float(new.rates(config)(step))
    expected = max(before, float(rates(step)))  # inside a warm-up, the next rate is higher anyway
    choice = after_change or ("warmup" if planned > JUMP * expected else "planned")
    if choice == "decay":
        new = dataclasses.replace(new, factor=before / planned if planned else 0.0)
    elif choice == "warmup":
        new = dataclasses.replace(new, warmup_steps=_warmup_steps(config, new.total_steps - step))
    _report(saved, new, before, float(new.rates(config)(step)), choice)
    if choice == "warmup" and not after_change:
        log.warning(
            "the learning rate would jump to %.3g, so a new warm-up of %d steps begins. Until a checkpoint is saved, "
            "which Ctrl-C does too, the same command with --after-change decay or planned chooses otherwise",
            planned, new.warmup_steps,
        )  # fmt: skip
    return new


def _warmup_steps(config: Config, left: int) -> int:
    """Returns the steps of a warm-up after a change, at most half of those left."""
    wanted = config.optimizer.warmup_steps or max(LEAST_WARMUP, math.ceil(WARMUP_SHARE * left))
    return max(1, min(wanted, math.ceil(left / 2)))


def _report(old: Schedule, new: Schedule, before: float, now: float, choice: str) -> None:
    step = new.since_step
    left = [max(one.total_steps - step, 0) for one in (old, new)]
    epochs = [one.epoch(max(one.total_steps, step)) for one in (old, new)]
    log.warning(
        "after the change at step %d, epoch %.2f: learning rate %.3g -> %.3g (--after-change %s), steps left %d -> %d, "
        "epochs in all %.2f -> %.2f",
        step, new.since_epoch, before, now, choice, *left, *epochs,
    )  # fmt: skip
