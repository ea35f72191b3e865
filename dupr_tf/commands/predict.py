"""The command that runs a detector over image files."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Literal

import tyro

from dupr_tf.commands.checks import output_problems, problems_of, refuse_kept_fields
from dupr_tf.commands.screen import print_line
from dupr_tf.detection.outputs import OUTPUTS
from dupr_tf.errors import raise_all
from dupr_tf.training.cluster import refuse_cluster


@dataclasses.dataclass
class Predict:
    """Detect objects in any number of images.

    Writes boxes (and masks), or the class of every pixel, to --output. Run the same command again to resume: finished
    parts of 256 images are kept. Unreadable images are skipped and listed in bad_images.tsv.
    With --min-score, the output can be the labels of `finetune` (pseudo-labels).
    The fields data.max_pixels and data.depth are flags too; by default they are those of the fine-tuning.
    """

    EXAMPLE = "dupr-tf predict runs/detector --images runs/sample/unlabeled --output runs/boxes"

    detector: tyro.conf.Positional[Path]
    """A detector.keras, or the folder of a `finetune` run."""
    images: tuple[Path, ...]
    """Folders of images, nested or flat, or image files."""
    output: Path
    """Folder to write, outside of the images."""
    to: Literal[tuple(OUTPUTS)] | None = None
    """Output format. coco writes annotations/instances_train.json, yolo and png a file for each image, csv one table.
    Default: coco, or png for a detector of segments."""
    min_score: float | None = None
    """Lowest score of a detection. Default: detector.score_threshold of the detector."""
    image_size: int | None = None
    """Size at which the detector sees images, px: the side of the square, or the short side of images of any size.
    Default: that of the detector."""
    pictures: int = 0
    """Number of images to draw with their detections, spread over all."""
    max_bad_share: float = 0.01
    """Largest share of unreadable files."""
    batch_size: int = 8
    """Images that the detector takes at a time."""

    def run(self, overrides: dict[str, str]) -> None:
        refuse_cluster()
        folders = [path for path in self.images if path.is_dir()]
        problems = [problem for folder in folders for problem in output_problems(self.output, folder)]
        raise_all([*problems_of(refuse_kept_fields, overrides), *problems])
        from dupr_tf.detection.predict import BAD_IMAGES, PredictSettings, predict

        settings = PredictSettings(self.to, self.min_score, self.image_size)
        limits = self.pictures, self.max_bad_share, self.batch_size
        done = predict(self.detector, self.images, self.output, settings, *limits, overrides=overrides)
        detections = "" if done.detections is None else f", {done.detections:,} detections"
        print_line(f"{done.images:,} images{detections}")
        if done.left_out:
            print_line(f"{done.left_out:,} unreadable files were left out: {self.output / BAD_IMAGES}")
        print_line(f"wrote {self.output}")
