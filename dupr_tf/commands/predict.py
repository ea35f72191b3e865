"""The command that runs a detector over image files."""

from __future__ import annotations

import contextlib
import dataclasses
from pathlib import Path
from typing import Annotated, Literal

import tyro

from dupr_tf.commands.checks import output_problems, problems_of, refuse_kept_fields
from dupr_tf.commands.screen import print_line
from dupr_tf.detection.outputs import OUTPUTS
from dupr_tf.errors import UserError, raise_all
from dupr_tf.training.cluster import refuse_cluster


@dataclasses.dataclass
class Predict:
    """Detect objects in any number of images.

    Writes boxes (and masks), or the class of every pixel, to --output. Run the same command again to resume: finished
    parts of 256 images are kept. Unreadable images are skipped and listed in bad_images.tsv.
    With --min-score, the output can be the labels of `finetune` (pseudo-labels).
    The fields data.max_pixels and data.depth are flags too; by default they are those of the fine-tuning.
    """

    EXAMPLE = "dupr-tf predict runs/try/detector --images runs/sample/unlabeled --output runs/boxes"

    detector: tyro.conf.Positional[Path]
    """A detector.keras, or the folder of a `finetune` run."""
    images: tuple[Path, ...]
    """Folders of images, nested or flat, or image files."""
    output: Path
    """Folder to write, outside of the images."""
    to: Literal[tuple(OUTPUTS)] | None = None
    """Output format. coco writes annotations/instances_train.json, yolo and png a file for each image, csv one table.
    Default: coco, or png for a detector of segments."""
    min_score: Annotated[float | Literal["suggested"] | None, tyro.conf.arg(metavar="FLOAT|suggested")] = None
    """Lowest score of a detection, or the word suggested: the score with the best F1 on val. Default:
    detector.score_threshold of the detector, which also keeps many wrong detections."""
    image_size: int | None = None
    """Size at which the detector sees images, px: the side of the square, or the short side of images of any size.
    Default: that of the detector."""
    one_class_per_box: bool = False
    """Where boxes of several classes cover each other, keep only the best one."""
    pictures: int = 0
    """Number of images to draw with their detections, spread over all. Without --min-score, detections from the
    suggested score on are drawn."""
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

        settings = PredictSettings(self.to, self.min_score, self.image_size, self.one_class_per_box)
        limits = self.pictures, self.max_bad_share, self.batch_size
        done = predict(self.detector, self.images, self.output, settings, *limits, overrides=overrides)
        detections = "" if done.detections is None else f", {done.detections:,} detections"
        print_line(f"{done.images:,} images{detections}")
        self._say_suggestion()
        if done.left_out:
            print_line(f"{done.left_out:,} unreadable files were left out: {self.output / BAD_IMAGES}")
        print_line(f"wrote {self.output}")

    def _say_suggestion(self) -> None:
        """Prints the suggested threshold of the detector, if it has one and none was given."""
        from dupr_tf.detection.finetune import detector_file, suggested_score

        low = None
        if self.min_score is None:
            with contextlib.suppress(UserError):  # a damaged metrics.json, which this output does not need
                low = suggested_score(detector_file(self.detector))
        if low is not None:
            print_line(f"most detections of a low score are wrong: --min-score suggested keeps those from {low:g} on")
