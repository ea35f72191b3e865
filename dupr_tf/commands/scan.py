"""The command that checks every image of a folder."""

from __future__ import annotations

import contextlib
import dataclasses
from pathlib import Path
from typing import Literal

import tyro

from dupr_tf.commands.screen import print_rows, print_warnings, with_progress
from dupr_tf.config import DataConfig, parse_config
from dupr_tf.data.images.listing import list_images
from dupr_tf.errors import UserError
from dupr_tf.locks import locked
from dupr_tf.values import exceeds

REFUSED = 1


@dataclasses.dataclass
class Scan:
    """List which files training will use or skip, and why.

    The exit code is 1 if more files would be skipped than --max-bad-share allows. Training would stop then, too.
    """

    EXAMPLE = "dupr-tf scan runs/sample/unlabeled"

    directory: tyro.conf.Positional[Path]
    """Folder of images, nested or flat, or a COCO or VOC root."""
    output: Path | None = None
    """Tab-separated file with a line for each image. A second scan resumes from it and reads changed files again.
    Default: only the counts are printed."""
    workers: int | None = None
    """Images decoded at a time. Default: one for each usable CPU."""
    max_bad_share: float = DataConfig().max_bad_share
    """Largest share of skipped files, as data.max_bad_share of the training."""
    max_pixels: int = DataConfig().max_pixels
    """Largest number of pixels of an image, as data.max_pixels of the training."""
    depth: Literal["full", "auto"] = "full"
    """Scale of images of 16 or 32 bits, as data.depth of the training."""

    def run(self, overrides: dict[str, str]) -> int:
        limits = {"max_bad_share": self.max_bad_share, "max_pixels": self.max_pixels}
        parse_config({"data": limits})
        if self.workers is not None and self.workers < 1:
            raise UserError("--workers", f"Expected 1 or more, received {self.workers}.")
        paths = list_images(self.directory)
        from dupr_tf.data.images.bad_images import FLAGS, advice
        from dupr_tf.data.images.duplicates import frames_warning, near_identical_folders
        from dupr_tf.data.images.scan import SKIPPED, count_groups, scan_images

        scan = scan_images(paths, self.max_pixels, self.workers, self.output, self.depth)
        with contextlib.nullcontext() if self.output is None else locked(self.output, beside=True):
            looks = list(with_progress(scan, len(paths), "scanning"))
        skipped = sum(look.outcome == SKIPPED for look in looks)
        print_rows(("outcome", "reason", "files", "such as"), count_groups(looks))
        print(f"{skipped} of {len(looks)} images would be skipped ({skipped / len(looks):.2%})")
        print_warnings(frames_warning(folder, share) for folder, share in near_identical_folders(paths))
        if not exceeds(skipped, self.max_bad_share, len(looks)):
            return 0
        reasons = [look.reason for look in looks if look.outcome == SKIPPED]
        print_warnings([advice(reasons, len(looks), FLAGS)])
        return REFUSED
