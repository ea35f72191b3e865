"""The command that evaluates a saved detector."""

from __future__ import annotations

import contextlib
import dataclasses
from pathlib import Path

import tyro

from dupr_tf.commands.checks import output_problems, problems_of, refuse_kept_fields
from dupr_tf.commands.screen import print_line, print_table
from dupr_tf.errors import raise_all
from dupr_tf.locks import locked
from dupr_tf.training.cluster import refuse_cluster


@dataclasses.dataclass
class Evaluate:
    """Evaluate a saved detector on labelled images.

    The images must have the classes of the detector.
    Any field of the data section is a flag too: --data.max_pixels 200000000.
    """

    EXAMPLE = "dupr-tf evaluate runs/try/detector --data runs/sample"

    detector: tyro.conf.Positional[Path]
    """A detector.keras, or the folder of a `finetune` run."""
    data: Path
    """Root of a labelled data set, in any layout of docs/labels.md."""
    output: Path | None = None
    """Folder for metrics.json and pictures. Default: scores are only printed."""
    split: str = "val"
    """Split of the data to evaluate on."""
    image_size: int | None = None
    """Size at which images are evaluated, px: the side of the square, or the short side of images of any size.
    Default: that of the detector."""

    def run(self, overrides: dict[str, str]) -> None:
        refuse_cluster()
        raise_all([*problems_of(refuse_kept_fields, overrides), *output_problems(self.output, self.data)])
        from dupr_tf.detection.finetune import evaluate

        size = self.image_size
        with contextlib.nullcontext() if self.output is None else locked(self.output):
            scores = evaluate(self.detector, self.data, self.output, self.split, image_size=size, overrides=overrides)
        print_scores(scores, self.output)


def print_scores(scores: dict, output: Path | None) -> None:
    """Prints a detector's scores by every metric, a table of its classes, best first, and the output folder."""
    from dupr_tf.detection.curves import class_rows, score_lines, threshold_lines

    for line in score_lines(scores):
        print_line(line)
    head, *rows = class_rows(scores)
    print_table(head, rows)
    for line in threshold_lines(scores):
        print_line(line)
    if output is not None:
        print_line(f"wrote {output}")
