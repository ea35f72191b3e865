"""The command that draws the embedded sample."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import tyro

from dupr_tf.commands.screen import print_line


@dataclasses.dataclass
class Sample:
    """Draw a synthetic data set, the one of `make demo`.

    It has scenes of textured shapes, with and without boxes.
    """

    EXAMPLE = "dupr-tf sample runs/sample"

    directory: tyro.conf.Positional[Path]
    """Folder to write: unlabeled/, and a COCO data set in images/ and annotations/."""
    train: int = 400
    """Number of labelled scenes to train on."""
    val: int = 100
    """Number of labelled scenes to evaluate on."""
    unlabeled: int = 1200
    """Number of scenes without labels, to pre-train on."""
    seed: int = 0
    """Seed of the scenes."""

    def run(self, overrides: dict[str, str]) -> None:
        from dupr_tf.data.sample import write_sample

        write_sample(self.directory, train=self.train, val=self.val, unlabeled=self.unlabeled, seed=self.seed)
        print_line(f"synthetic sample: {self.directory}")
