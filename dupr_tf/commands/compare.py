"""The command that compares backbones by fine-tuning."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import tyro

from dupr_tf.commands.checks import config_or_problems, has_gpu, output_problems, problems_of
from dupr_tf.commands.screen import print_line, print_table, print_warnings
from dupr_tf.config import Config
from dupr_tf.errors import UserError, raise_all
from dupr_tf.text import duration
from dupr_tf.training.cluster import refuse_cluster


@dataclasses.dataclass
class Compare:
    """Compare backbones by fine-tuning from each.

    The detector is trained on shares of the labelled images, with several seeds.
    For a share and a seed, all backbones train on the same images, in the same order and with the same augmentation,
    for the same number of steps. Scores are those of the last step on val; nothing is selected on val.
    Writes the table (compare.md, compare.json), a plot (compare.png) and the cells to --output.
    Run the same command again to resume. With more backbones, shares or seeds, only the new cells run.
    Any field of the config is a flag too: --train.batch_size 16. `dupr-tf fields` lists them.
    """

    EXAMPLE = (
        "dupr-tf compare configs/demo_retinanet.yaml --backbones runs/demo random --data runs/sample "
        "--shares 0.2 1 --output runs/comparison"
    )

    config: tyro.conf.Positional[Path]
    """Config of the detector."""
    data: Path
    """Root of a labelled data set with train and val, in any layout of docs/labels.md."""
    output: Path
    """Folder of the comparison, outside of the data."""
    backbones: tuple[str, ...] = ()
    """Weights as for `finetune`, or the word random. LABEL=PATH gives a label; LABEL=RUN,RUN,... is a pre-training with
    several seeds, of which fine-tuning seed i uses run i. Default: those of the comparison in --output."""
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
    jobs: int = 1
    """Cells that run at a time, one on each GPU, or sharing the cores."""
    dry_run: bool = False
    """Take a few steps and print the cells and the expected time. Trains and writes nothing."""

    def run(self, overrides: dict[str, str]) -> None:
        refuse_cluster()
        from dupr_tf.comparing.compare import compare, plan_comparison
        from dupr_tf.comparing.grid import parse_backbones
        from dupr_tf.comparing.plan import Settings, lost_classes
        from dupr_tf.comparing.results import sentences

        config, problems = config_or_problems(self.config, overrides, Config.finetune_problems)
        if not self.data.is_dir():
            problems.append(UserError("--data", f"{self.data} is not a folder.", "Pass the root of a data set."))
        if self.jobs < 1:
            problems.append(UserError("--jobs", f"Expected 1 or more, received {self.jobs}.", "Use --jobs 1."))
        problems += problems_of(parse_backbones, self.backbones)
        raise_all([*problems, *output_problems(self.output, self.data)])
        settings = Settings(
            parse_backbones(self.backbones), self.shares, self.seeds, self.steps, self.learning_rates,
            self.rate_share, self.reference,
        )  # fmt: skip
        planned = plan_comparison(config, self.data, self.output, settings)
        print_warnings(lost_classes(planned.comparison, planned.train))
        if self.dry_run:
            return self._forecast(planned)
        comparison, result = compare(planned, self.output, self.jobs, has_gpu(), _print)
        for sentence in sentences(result, comparison):
            print_line(sentence)
        print_line(f"wrote {self.output}/compare.md, compare.json and compare.png")
        return None

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
