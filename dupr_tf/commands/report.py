"""The command that writes a page about runs."""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path

import tyro

from dupr_tf.commands.screen import print_line
from dupr_tf.errors import UserError, raise_all

MOST_VIEWS = 64


@dataclasses.dataclass
class Report:
    """Write an HTML report on runs.

    It shows curves, differences of the configs, skipped images and probes in one file that needs no network.
    """

    EXAMPLE = "dupr-tf report runs/try/photos runs/try/detector --output runs/report.html"

    runs: tyro.conf.Positional[tuple[Path, ...]]
    """Folders of `pretrain`, `finetune`, exports and probes. Those below a run are included."""
    output: Path = Path("report.html")
    """File to write. An earlier report is replaced, but no other file."""
    views: int = 4
    """Pairs of views to draw for each pre-training run. 0 draws none and does not load TensorFlow."""

    def run(self, overrides: dict[str, str]) -> None:
        from dupr_tf.reporting.folders import PRETRAINING, read_folders
        from dupr_tf.reporting.page import render

        self._check()
        runs = read_folders(list(dict.fromkeys(self.runs)))
        samples = []
        if self.views:
            from dupr_tf.reporting.samples import sample_views

            samples = [sample_views(run, self.views) for run in runs if run.kind == PRETRAINING]
        page = render(runs, samples, time.strftime("%Y-%m-%d %H:%M"))
        self._write(page)

    def _check(self) -> None:
        from dupr_tf.reporting.page import is_report

        problems = []
        if not self.runs:
            problems.append(UserError("RUNS", "There is no run to report on.", "Run: dupr-tf report runs/mine."))
        if not 0 <= self.views <= MOST_VIEWS:
            problem = f"Expected 0 to {MOST_VIEWS}, received {self.views}."
            problems.append(UserError("--views", problem, "Use 4, for example."))
        if self.output.is_dir():
            fix = f"Pass --output {self.output}/report.html."
            problems.append(UserError("--output", f"{self.output} is a folder.", fix))
        elif self.output.exists() and not is_report(self.output):
            problem = f"{self.output} exists and is not a report, so it is not replaced."
            problems.append(UserError("--output", problem, "Pass another name."))
        raise_all(problems)

    def _write(self, page: str) -> None:
        from dupr_tf.files import write_whole

        content = page.encode("utf-8", "backslashreplace")
        try:
            write_whole(self.output, content)
        except OSError as error:
            problem = f"{self.output} cannot be written: {error.strerror or error}."
            raise UserError("--output", problem, "Pass another name.") from None
        print_line(f"wrote {self.output}, {len(content):,} bytes")
