"""Runs the cells of a comparison in processes, some at a time, and stops them together."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from dupr_tf.comparing.grid import Cell, Task
from dupr_tf.comparing.results import is_finished
from dupr_tf.detection.finetune import CHECKED_FILE
from dupr_tf.errors import RunFailed, RunInterrupted
from dupr_tf.files import last_lines
from dupr_tf.text import one_line
from dupr_tf.training.signals import noted_signals

LOG_FILE = "log.txt"  # output of a cell, in its folder
POLL = 0.5  # seconds


class Running(NamedTuple):
    """The cells of a process that runs, the process, and the number of the slot that it has."""

    cells: tuple[Cell, ...]
    process: subprocess.Popen
    slot: int


def run_cells(
    folder: Path,
    tasks: Sequence[Task],
    jobs: int,
    gpus: int,
    on_change: Callable[[list[Cell], Cell | None], None],
) -> None:
    """Runs the cells that are not finished, in order.

    Args:
        folder: folder of the comparison.
        tasks: cells, those of a process together, and their learning rates.
        jobs: processes at a time. With GPUs, each takes one; otherwise they share the cores.
        gpus: number of GPUs.
        on_change: called with the first cell of each process, and with a cell that has ended or None, twice a second.

    Raises:
        RunFailed: a cell failed. The others are stopped after their state is saved.
        RunInterrupted: a signal stopped all cells after their state was saved.
    """
    waiting = [task for task in (_unfinished(folder, task) for task in tasks) if task.cells]
    with noted_signals() as signals, _stopping() as running:
        while waiting or running:
            if signals:
                raise StoppedComparison(signals[0])
            free = sorted(set(range(jobs)) - {one.slot for one in running})
            for slot in free[: len(waiting)]:
                task = waiting.pop(0)
                running.append(Running(task.cells, _start(folder, task, slot, jobs, gpus), slot))
            for one in [one for one in running if one.process.poll() is not None]:
                running.remove(one)
                _check_end(folder / one.cells[0].folder, one)
                for cell in one.cells:
                    on_change([other.cells[0] for other in running], cell)
            on_change([one.cells[0] for one in running], None)
            time.sleep(POLL)


def _unfinished(folder: Path, task: Task) -> Task:
    return task._replace(cells=tuple(cell for cell in task.cells if not is_finished(folder / cell.folder)))


class StoppedComparison(RunInterrupted):
    """Reports that a signal stopped a comparison after the state of its cells was saved."""

    def __init__(self, number: int):
        super().__init__(number, 0)
        self.args = ("stopped, and the state of each cell is saved. Run the same command again to resume.",)


def _start(folder: Path, task: Task, slot: int, jobs: int, gpus: int) -> subprocess.Popen:
    """Starts the process of a task, by its first cell, in a new session: signals of the terminal do not reach it."""
    cell, rate = task.cells[0], "" if task.rate is None else repr(task.rate)
    place = folder / cell.folder
    place.mkdir(parents=True, exist_ok=True)
    checked = place / CHECKED_FILE
    if not checked.exists() and (folder / CHECKED_FILE).exists():
        shutil.copyfile(folder / CHECKED_FILE, checked)  # so that no cell decodes the images once more
    purpose = "score" if cell.rate is None else "choose"
    arguments = [str(os.getpid()), str(folder), cell.backbone, repr(cell.share), str(cell.seed), rate, purpose]
    environment = dict(os.environ)
    if gpus:
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        names = visible.split(",") if visible else [str(number) for number in range(gpus)]
        environment["CUDA_VISIBLE_DEVICES"] = names[slot % gpus]
    with (place / LOG_FILE).open("ab") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "dupr_tf.comparing.cell", *arguments],
            stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment, start_new_session=True,
        )  # fmt: skip
    if not gpus and jobs > 1 and hasattr(os, "sched_setaffinity"):
        cores = sorted(os.sched_getaffinity(0))
        with contextlib.suppress(ProcessLookupError):  # it has ended at once; its exit code is read later
            os.sched_setaffinity(process.pid, cores[slot::jobs] or cores)
    return process


def _check_end(place: Path, one: Running) -> None:
    """Raises RunFailed with the last line of a cell's output if it did not end well."""
    code = one.process.returncode
    if code == 0:
        return
    lines = [line for line in last_lines(place / LOG_FILE) if line.strip()] or [b"It printed nothing."]
    cause = one_line(lines[-1].decode("utf-8", "replace"), 300).removeprefix("error: ")
    raise RunFailed(f"{one.cells[0].text} ended with code {code}: {cause} Its output is in {place / LOG_FILE}.")


@contextlib.contextmanager
def _stopping() -> Iterator[list[Running]]:
    """Yields a list for running cells. At the end, it sends SIGTERM to those left, and waits until they have saved."""
    running: list[Running] = []
    try:
        yield running
    finally:
        for one in running:
            one.process.terminate()
        for one in running:
            one.process.wait()
