"""The command that makes a page of runs."""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path

import tyro

from dupr_tf.commands.places import Place
from dupr_tf.commands.report import refuse
from dupr_tf.errors import UserError

MOST_VIEWS = 64


@dataclasses.dataclass
class Report:
    """Write one HTML file about runs: what they did, how they differ, what was skipped, and what their backbones know.

    It needs no network and nothing beside it. What a run lacks is said so.
    """

    runs: tyro.conf.Positional[tuple[Place, ...]]
    """Folders of pretrain or finetune, of exports, of probes; what lies below a run is found."""
    output: Place = Path("report.html")
    """File to write; an earlier report is replaced, another file is not."""
    views: int = 4
    """Pairs of views drawn for each pre-training run, from its images; 0: none, and TensorFlow is not loaded."""

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

        problems = (
            [] if self.runs else ["RUN: expected the folder of a run, received none. Fix: dupr-tf report runs/mine"]
        )
        if not 0 <= self.views <= MOST_VIEWS:
            problems.append(f"--views: expected 0 to {MOST_VIEWS}, received {self.views}")
        if self.output.is_dir():
            problems.append(
                f"--output: expected a file, received the folder {self.output}. Fix: {self.output}/report.html"
            )
        elif self.output.exists() and not is_report(self.output):
            problems.append(
                f"--output: expected a new file or an earlier report, received {self.output}, which is neither"
            )
        refuse(problems)

    def _write(self, page: str) -> None:
        from dupr_tf.whole_files import write_whole

        content = page.encode("utf-8", "backslashreplace")
        try:
            write_whole(self.output, content)
        except OSError as error:
            raise UserError("--output", f"{self.output} cannot be written: {error}.") from None
        print(f"wrote {self.output}, {len(content):,} bytes")
