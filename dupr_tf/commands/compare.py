"""The command that compares backbones by fine-tuning, or by probes."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import tyro

from dupr_tf.commands.checks import config_or_problems, folder_problems, has_gpu, output_problems, problems_of
from dupr_tf.commands.screen import print_line, print_table, print_warnings
from dupr_tf.config import PROBED_LEVELS, Config
from dupr_tf.config.probes import PROBE_METRICS
from dupr_tf.errors import UserError, raise_all
from dupr_tf.text import duration
from dupr_tf.training.cluster import refuse_cluster


@dataclasses.dataclass
class Compare:
    """Compare backbones by fine-tuning from each, or by probes.

    The detector is trained on shares of the labelled images, with several seeds.
    For a share and a seed, all backbones train on the same images, in the same order and with the same augmentation,
    for the same number of steps. Scores are those of the last step on val; nothing is selected on val.
    Before the training, the photos of each pre-training that are in val are counted.
    Writes the table (compare.md, compare.json), a plot (compare.png) and the cells to --output.
    With --probes, frozen features are scored instead, which takes minutes; see docs/compare.md.
    Run the same command again to resume. With more backbones, shares or seeds, only the new cells run.
    Any field of the config is a flag too: --train.batch_size 16. `dupr-tf fields` lists them.
    """

    EXAMPLE = (
        "dupr-tf compare configs/demo_retinanet.yaml --backbones runs/try/photos random --data runs/sample "
        "--shares 0.2 1 --output runs/comparison"
    )

    config: tyro.conf.Positional[Path]
    """Config of the detector. --probes uses only its architecture and how it reads images."""
    data: Path
    """Root of a labelled data set in any layout of docs/labels.md. Without a split val, add --data.val_share 0.2."""
    output: Path
    """Folder of the comparison, outside of the data."""
    backbones: tuple[str, ...] = ()
    """Runs, exports, files, names of `dupr-tf list weights`, or the word random. LABEL=PATH gives a label;
    LABEL=RUN,RUN,... is a pre-training with several seeds, of which fine-tuning seed i uses run i. Default: those of
    the comparison in --output."""
    shares: tuple[float, ...] = ()
    """Shares of the labelled training images. Two or more tell how many labels a backbone saves. Default: 1."""
    seeds: int | None = None
    """Number of seeds, 0, 1, .... An interval needs two, a verdict mostly three or more. Default: 3."""
    steps: tuple[int, ...] = ()
    """Steps of each cell, one number or one for each share. Default: those of the config on all images."""
    learning_rates: tuple[float, ...] = ()
    """Rates of which each backbone gets the best on held-out training images. Default: optimizer.learning_rate."""
    rate_share: float | None = None
    """Share of the labels at which the rates are tried. Default: the middle one of --shares."""
    reference: str | None = None
    """Label of the backbone that the others are compared with. Default: random, or the first one."""
    probes: tuple[Literal[tuple(PROBE_METRICS)], ...] = ()
    """Probes to compare by instead of a detector, each in OUTPUT/PROBE. knn needs train/CLASS/ and val/CLASS/. svm
    takes these or boxes."""
    level: Literal[PROBED_LEVELS] | None = None
    """Level of the features of --probes. Default: P5."""
    jobs: int = 1
    """Cells that run at a time, one on each GPU, or sharing the cores."""
    dry_run: bool = False
    """Take a few steps and print the cells and the expected time. Trains and writes nothing. With --probes, print the
    cells only."""

    def run(self, overrides: dict[str, str]) -> None:
        refuse_cluster()
        from dupr_tf.comparing.grid import parse_backbones

        cross_field = None if self.probes else Config.finetune_problems
        config, problems = config_or_problems(self.config, overrides, cross_field)
        problems += self._flag_problems(overrides)
        problems += folder_problems(self.data, "Pass the root of a data set.")
        if self.jobs < 1:
            problems.append(UserError("--jobs", f"Expected 1 or more, received {self.jobs}.", "Use --jobs 1."))
        problems += problems_of(parse_backbones, self.backbones)
        raise_all([*problems, *output_problems(self.output, self.data)])
        self._compare(config)

    def _flag_problems(self, overrides: dict[str, str]) -> Iterator[UserError]:
        """Yields an error for each flag that has no meaning with, or without, --probes."""
        from dupr_tf.comparing.probe_plan import FIELDS

        if not self.probes:
            if self.level is not None:
                yield UserError("--level", "Only probes use a level.", "Add --probes svm, or leave it out.")
            return
        given = {"--steps": self.steps, "--learning-rates": self.learning_rates, "--rate-share": self.rate_share}
        flags = [flag for flag, value in given.items() if value not in ((), None)]
        for flag in [*flags, *(f"--{name}" for name in overrides if name not in FIELDS)]:
            fix = f"Leave it out. Of the config, probes use {', '.join(FIELDS)}."
            yield UserError(flag, "Probes train nothing, so that it has no effect on them.", fix)

    def _compare(self, config: Config) -> None:
        """Plans all comparisons, so that every mistake is reported first, and runs them."""
        from dupr_tf.comparing.compare import plan_comparison
        from dupr_tf.comparing.grid import parse_backbones
        from dupr_tf.comparing.plan import Settings

        settings = Settings(
            parse_backbones(self.backbones), self.shares, self.seeds, self.steps, self.learning_rates,
            self.rate_share, self.reference, self.level,
        )  # fmt: skip
        each = [(name, self.output / name) for name in dict.fromkeys(self.probes)] or [(None, self.output)]
        planned = [plan_comparison(config, self.data, output, settings, probe) for probe, output in each]
        for plan, (_, output) in zip(planned, each, strict=True):
            self._run_planned(plan, output)

    def _run_planned(self, planned, output: Path) -> None:
        from dupr_tf.comparing.compare import compare
        from dupr_tf.comparing.plan import lost_classes, schedule_warnings
        from dupr_tf.comparing.probe_plan import lost_probed_classes
        from dupr_tf.comparing.results import sentences

        probe = planned.comparison.probe
        if probe:
            print_line(f"{probe} on {planned.comparison.level}")
        lost = lost_probed_classes if probe else lost_classes
        print_warnings(lost(planned.comparison, planned.train))
        if not probe:
            print_warnings(schedule_warnings(planned.comparison))
        if self.dry_run:
            return self._list_cells(planned, output) if probe else self._forecast(planned)
        comparison, result = compare(planned, output, self.jobs, has_gpu(), _print)
        for sentence in sentences(result, comparison):
            print_line(sentence)
        print_line(f"wrote {output}/compare.md, compare.json and compare.png")
        return None

    def _list_cells(self, planned, output: Path) -> None:
        """Prints the cells of a probe that are left, and the images whose features they need."""
        from dupr_tf.comparing.compare import cells_left
        from dupr_tf.comparing.grid import probe_tasks

        left = cells_left(planned.comparison, output)
        images, weights = len(planned.train) + len(planned.val), len(probe_tasks(planned.comparison.backbones, left))
        features = f"{weights} times, of {images:,} images each"
        print_table(("dry run", ""), [("cells to run", str(len(left))), ("features to compute", features)])

    def _forecast(self, planned) -> None:
        """Prints the cells that are left and their expected time."""
        from dupr_tf.comparing.compare import cells_left
        from dupr_tf.comparing.timing import measure

        comparison, train, val, _ = planned
        left, seconds = cells_left(comparison, self.output), measure(comparison, train, val)
        total = sum(seconds.of_cell(comparison.steps_of(cell.share), len(val)) for cell in left)
        shared = f", if {self.jobs} cells at a time do not slow each other down" if self.jobs > 1 else ""
        rows = [
            ("cells to run", str(len(left))),
            ("a step", f"{seconds.step * 1000:.0f} ms"),
            ("evaluation", f"{duration(seconds.image * len(val))} for {len(val):,} images"),
            ("expected time", duration(total / self.jobs) + shared),
        ]
        print_table(("dry run", ""), rows)


def _print(comparison, result, rates) -> None:
    """Prints the table of a comparison, if a cell is finished."""
    from dupr_tf.comparing.outputs import head, table

    if result.rows:
        print_table(head(result, comparison), table(result, comparison, rates))
