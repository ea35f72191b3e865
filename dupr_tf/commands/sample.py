"""The command that draws the embedded sample."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import tyro


@dataclasses.dataclass
class Sample:
    """Draw the embedded sample: synthetic scenes of textured shapes, with and without boxes."""

    directory: tyro.conf.Positional[Path]
    """Folder to write: unlabeled/, and a COCO data set (images/, annotations/)."""
    train: int = 400
    """Labelled scenes to train on."""
    val: int = 100
    """Labelled scenes to evaluate on."""
    unlabeled: int = 1200
    """Scenes without labels, to pre-train on."""
    seed: int = 0

    def run(self, overrides: dict[str, str]) -> None:
        from dupr_tf.data.sample import write_sample

        write_sample(self.directory, train=self.train, val=self.val, unlabeled=self.unlabeled, seed=self.seed)
        print(f"synthetic sample: {self.directory}")
