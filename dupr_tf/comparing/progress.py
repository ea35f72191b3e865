"""Shows the progress of a comparison: the running cells on a terminal, and a line for each cell that ends."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from pathlib import Path

from rich.console import Console

from dupr_tf.comparing.grid import Cell
from dupr_tf.comparing.record import Comparison
from dupr_tf.comparing.results import METRICS, is_finished, read_scores
from dupr_tf.files import last_lines
from dupr_tf.records import parse_json, read_metrics_line
from dupr_tf.text import duration, visible

METRICS_LOG = "metrics.jsonl"
CHECKPOINTS_FOLDER = "checkpoints"


class CellProgress:
    """Prints what a comparison does. Use it as a context.

    Args:
        folder: folder of the comparison.
        comparison: the comparison.
        show: called after the last backbone of a share and seed, to print the table.
    """

    def __init__(self, folder: Path, comparison: Comparison, show: Callable[[], object]):
        self.folder, self.comparison, self.show = folder, comparison, show
        self.cells = [*comparison.rate_cells(), *comparison.scored_cells()]
        self.unreported = {cell for cell in self.cells if not is_finished(folder / cell.folder)}
        for cell in set(self.cells) - self.unreported:
            self._remove_checkpoints(cell)  # if an earlier call was killed before it did
        self.began, self.at_start = time.monotonic(), self._steps_done()
        self.console = Console(stderr=True)
        self.status = self.console.status("starting")

    def __enter__(self):
        if self.console.is_terminal:
            self.status.start()
        return self

    def __exit__(self, *_):
        self.status.stop()

    def update(self, running: list[Cell], ended: Cell | None) -> None:
        """Shows the running cells; prints the score of a cell that has ended, and the table after a whole row."""
        if ended is not None:
            self._report(ended)
        if self.console.is_terminal and running:
            parts = [self._text(cell) for cell in running]
            self.status.update(visible(f"{'; '.join(parts)}. {self._left()}"))

    def _text(self, cell: Cell) -> str:
        if self.comparison.probe:
            return f"{cell.backbone}: {self.comparison.probe}"
        return f"{cell.text}: step {self._step(cell):,}/{self._steps(cell):,}"

    def _report(self, cell: Cell) -> None:
        self._remove_checkpoints(cell)
        self.unreported.discard(cell)
        scores = read_scores(self.folder / cell.folder)
        name = next(name for name in METRICS if name in scores)
        done = f"{len(self.cells) - len(self.unreported)}/{len(self.cells)}"
        line = f"{done}  {cell.text}: {name} {scores[name]:.4f}. {self._left()}"
        self.console.print(visible(line), markup=False, highlight=False, soft_wrap=True)
        row = [one for one in self.unreported if (one.share, one.seed, one.rate) == (cell.share, cell.seed, None)]
        grows = self.comparison.probe is None and cell.rate is None and not row  # the cells of a probe end together
        if grows and self.unreported:  # at the end, the table is printed anyway
            self.show()

    def _remove_checkpoints(self, cell: Cell) -> None:
        """Removes the checkpoints of a finished cell, which needs none."""
        shutil.rmtree(self.folder / cell.folder / CHECKPOINTS_FOLDER, ignore_errors=True)

    def _left(self) -> str:
        """Returns the expected time of the steps that are left, from those of this call."""
        done = self._steps_done()
        steps = done - self.at_start
        if steps <= 0:
            return ""
        left = sum(map(self._steps, self.cells)) - done
        return f"ETA {duration(left * (time.monotonic() - self.began) / steps)}"

    def _steps_done(self) -> int:
        return sum(map(self._step, self.cells))

    def _steps(self, cell: Cell) -> int:
        return self.comparison.steps_of(cell.share)

    def _step(self, cell: Cell) -> int:
        """Returns the last logged step of a cell; 0 before its first line."""
        place = self.folder / cell.folder
        if is_finished(place):
            return self._steps(cell)
        try:
            return read_metrics_line(parse_json(last_lines(place / METRICS_LOG)[-1]))["step"]
        except (OSError, ValueError, LookupError, TypeError):  # no line yet, or half of one
            return 0
