"""The command that fine-tunes a detector."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import tyro

from dupr_tf.commands.checks import config_or_problems, output_problems, problems_of
from dupr_tf.commands.evaluate import print_scores
from dupr_tf.config import Config
from dupr_tf.errors import UserError, raise_all
from dupr_tf.training.cluster import refuse_cluster
from dupr_tf.weights.paths import RANDOM, weights_file


@dataclasses.dataclass
class Finetune:
    """Fine-tune a detector from a backbone on labelled images, and evaluate it; run again, it resumes.

    detector.kind says which detector it is.
    Writes metrics.json (AP or mIoU), detector.keras, saved_model/ and pictures below --output.
    Any field of the config can be set here as well: --train.epochs 10 (see `dupr-tf fields`).
    """

    config: tyro.conf.Positional[Path]
    """Experiment file, e.g. configs/retinanet_r18_small.yaml."""
    weights: str
    """A run, an export, .keras, another tool's checkpoint (as `import` reads), or the word random."""
    data: Path
    """Root of a COCO, VOC or Cityscapes set, or of folders of images and masks (see docs/detection.md)."""
    output: Path
    """Folder of the run."""
    allow_change: bool = False
    """Resume a run with another config or other data than it was started with; the differences are printed."""

    def run(self, overrides: dict[str, str]) -> None:
        config, problems = config_or_problems(self.config, overrides, Config.finetune_problems)
        problems += problems_of(refuse_cluster)
        if not self.data.is_dir():
            problems.append(UserError("--data", f"{self.data} is not a folder.", "Pass the root of a data set."))
        if self.weights != RANDOM:
            problems += problems_of(weights_file, self.weights, field="--weights")
        raise_all([*problems, *output_problems(self.output)])
        from dupr_tf.detection.finetune import finetune

        scores = finetune(config, self.weights, self.data, self.output, allow_change=self.allow_change)
        print_scores(scores, self.output)
