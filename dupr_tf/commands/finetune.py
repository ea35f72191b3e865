"""The command that fine-tunes a detector."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Literal

import tyro

from dupr_tf.commands.checks import (
    config_or_problems,
    folder_problems,
    output_problems,
    problems_of,
    public_problems,
)
from dupr_tf.commands.evaluate import print_scores
from dupr_tf.config import Config
from dupr_tf.errors import raise_all
from dupr_tf.streams import lasting_streams
from dupr_tf.training.cluster import refuse_cluster
from dupr_tf.weights.catalogue import is_public


@dataclasses.dataclass
class Finetune:
    """Fine-tune and evaluate a detector on labelled images.

    Run the same command again to resume. The config field detector.kind selects the detector.
    Writes metrics.json (AP or mIoU), detector.keras, saved_model/ and pictures to --output.
    Any field of the config is a flag too: --train.epochs 10. `dupr-tf fields` lists them.
    """

    EXAMPLE = (
        "dupr-tf finetune configs/demo_retinanet.yaml --weights runs/try/photos --data runs/sample "
        "--output runs/try/detector"
    )

    config: tyro.conf.Positional[Path]
    """Config of the experiment."""
    data: Path
    """Root of a labelled data set, in any layout of docs/labels.md."""
    output: Path
    """Folder of the run, outside of the data."""
    weights: str | None = None
    """Backbone to start from: a run, an export, a .keras file, a checkpoint that `import` reads, or the word random. A
    detector.keras, or the folder of its run, continues from that detector. Public weights are downloaded: imagenet,
    another name of `dupr-tf list weights`, hf:OWNER/NAME or https://ADDRESS. A run in --output that has a checkpoint
    needs none."""
    allow_change: bool = False
    """Resume although the config or the data differ from those of the start. The differences are printed."""
    after_change: Literal["planned", "decay", "warmup"] | None = None
    """Learning rate after an allowed change: that of the new schedule (planned), the present rate that decays over the
    steps left, or a new warm-up. Default: planned, or warmup if the rate would jump."""

    def run(self, overrides: dict[str, str]) -> None:
        config, problems = config_or_problems(self.config, overrides, Config.finetune_problems)
        problems += problems_of(refuse_cluster)
        problems += folder_problems(self.data, "Pass the root of a data set.")
        from dupr_tf.detection.finetune import finetune, starting_file

        kind = config.detector.kind if config is not None and config.detector is not None else None
        problems += public_problems(self.weights, config)
        if self.weights is not None and not is_public(self.weights):  # those are downloaded after the other checks
            problems += problems_of(starting_file, self.weights, kind, field="--weights")
        raise_all([*problems, *output_problems(self.output, self.data)])
        with lasting_streams():
            scores = finetune(config, self.weights, self.data, self.output, None, self.allow_change, self.after_change)
            print_scores(scores, self.output)
