"""The command that writes labels in another layout."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Literal

import tyro

from dupr_tf.commands.checks import output_problems
from dupr_tf.commands.screen import print_line, print_table
from dupr_tf.config import parse_config
from dupr_tf.data.labels.counts import count_lines
from dupr_tf.errors import UserError, raise_all

FLAGS = {"data.max_bad_share": "--max-bad-share", "data.kind": "--kind"}  # {field of a config: flag of this command}


@dataclasses.dataclass
class Convert:
    """Write a labelled data set in the layout of COCO or YOLO.

    Prints what the labels have that was not read, what the new layout cannot hold, and the number of boxes of each
    class. Images are hard links of the old ones, or copies if the file system allows no links.
    """

    EXAMPLE = "dupr-tf convert runs/sample --output runs/sample_yolo --to yolo"

    labels: tyro.conf.Positional[Path]
    """Root of a labelled data set, in any layout of docs/labels.md."""
    output: Path
    """Folder to write, new or empty, outside of the data."""
    to: Literal["coco", "yolo"]
    """Layout to write."""
    kind: str = "auto"
    """Layout of the labels, see `dupr-tf list boxes`. auto detects it."""
    max_bad_share: float = 0.01
    """Share of the images, and of the objects, that may be unusable. They are left out."""

    def run(self, overrides: dict[str, str]) -> None:
        parse_config({"data": {"max_bad_share": self.max_bad_share}})
        problems = output_problems(self.output, self.labels)
        if not problems and self.output.is_dir() and any(self.output.iterdir()):
            problems.append(UserError("--output", f"{self.output} is not empty.", "Pass a new folder."))
        raise_all(problems)
        parts = self._convert()
        for part in parts:
            print_line(f"{part.split}: {part.images} images, {part.boxes} boxes")
            for title, counts in (("in the labels", part.read), (f"not in {self.to}", part.lost)):
                for line in count_lines(counts):
                    print_line(f"  {title}: {line}")
        _print_classes({part.split: part.classes for part in parts})
        print_line(f"wrote {self.output}")

    def _convert(self) -> list:
        from dupr_tf.data.labels.convert import convert

        try:
            return convert(self.labels, self.output, self.to, self.kind, self.max_bad_share)
        except UserError as error:
            if error.field not in FLAGS:
                raise
            flag = FLAGS[error.field]
            raise UserError(flag, error.problem, error.fix.replace(error.field, flag)) from None


def _print_classes(boxes: dict[str, dict[str, int]]) -> None:
    """Prints a table of {split: {class: number of boxes}}."""
    from dupr_tf.data.labels.class_names import grouped_counts

    rows = [(title, *(f"{count:,}" for count in of_splits.values())) for title, of_splits in grouped_counts(boxes)]
    print_table(("boxes of the class", *boxes), rows)
