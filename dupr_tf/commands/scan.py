"""The command that looks at every image of a folder."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

import tyro

from dupr_tf.commands.tables import print_table
from dupr_tf.config import DataConfig, parse_config
from dupr_tf.data.images.listing import list_images
from dupr_tf.errors import UserError

REFUSED = 1


@dataclasses.dataclass
class Scan:
    """Say what pre-training will make of every file of a folder: used, and how, or skipped, and why.

    Exit code 1 if more would be skipped than --max-bad-share allows, as then the run would stop too.
    """

    directory: tyro.conf.Positional[Path]
    """Folder of images (nested or flat), or a COCO or VOC root, as for `pretrain --data`."""
    output: Path | None = None
    """File for a line for each image, tab-separated. Run again, it goes on there; changed files are looked at again."""
    workers: int = os.cpu_count() or 1
    """Images decoded at a time."""
    max_bad_share: float = DataConfig().max_bad_share
    """data.max_bad_share of the run to come."""
    max_pixels: int = DataConfig().max_pixels
    """data.max_pixels of the run to come."""

    def run(self, overrides: dict[str, str]) -> int:
        limits = {"max_bad_share": self.max_bad_share, "max_pixels": self.max_pixels}
        parse_config({"data": limits})
        if self.workers < 1:
            raise UserError("--workers", f"Expected 1 or more, received {self.workers}.")
        paths = list_images(self.directory)
        from dupr_tf.data.images.scan import SKIPPED, count_groups, scan_images

        looks = list(with_progress(scan_images(paths, self.max_pixels, self.workers, self.output), len(paths)))
        skipped = sum(look.outcome == SKIPPED for look in looks)
        print_table(("outcome", "reason", "files", "such as"), count_groups(looks))
        print(f"{skipped} of {len(looks)} images would be skipped ({skipped / len(looks):.2%})")
        return REFUSED if skipped > self.max_bad_share * len(looks) else 0


def with_progress(items, total: int):
    """Yields the items; on a terminal, a bar counts them."""
    from rich.console import Console
    from rich.progress import track

    console = Console(stderr=True)
    yield from track(items, "scanning", total, console=console, disable=not console.is_terminal)
