"""Commands about folders of images."""

from __future__ import annotations

import dataclasses
import os
import sys
from pathlib import Path
from typing import Literal

import tyro

from dupr_tf.commands.report import REFUSED, print_names, print_rows, print_verified, with_progress
from dupr_tf.config import DataConfig, parse_config
from dupr_tf.data.images.listing import check_root, list_images
from dupr_tf.errors import UserError


@dataclasses.dataclass
class Pack:
    """Write a folder of images as ArrayRecord shards, for `pretrain --data SHARDS`. Run it again to resume.

    Unreadable files are left out, named, and listed in bad_images.tsv. Each shard is a random sample of the images, so
    that a part of the shards stands for all, and readers that shuffle only what they hold see a shuffled whole.
    """

    directory: tyro.conf.Positional[Path]
    """Folder of images, or a COCO or VOC root; with --verify or --list, the shards."""
    output: Path | None = None
    """Folder of the shards; needed unless --verify or --list."""
    long_side: int | None = None
    """Shrink larger images to this, px, turned upright, as JPEG; none: the files' own bytes."""
    quality: int = 95
    """Of those JPEGs."""
    images_per_shard: int = 2000
    """Files a shard takes: 200 MB of ImageNet's."""
    shuffle: bool = True
    """Pack in an order drawn from --seed, or in that of the names."""
    seed: int = 0
    workers: int | None = None
    """Threads that read, check and encode; none: one a CPU."""
    max_bad_share: float = 0.01
    """Share of the files that may be unreadable."""
    max_pixels: int = DataConfig().max_pixels
    """An image of more is left out."""
    depth: Literal["full", "auto"] = "full"
    """Deeper images that are shrunk: keep the upper 8 of 16 bits, or scale each by its minimum and maximum."""
    verify: bool = False
    """Compare shards with their checksums, write nothing."""
    list: bool = False
    """Print the name of each packed image on a line, write nothing."""

    def run(self, overrides: dict[str, str]) -> None:
        if self.verify:
            return print_verified(self.directory)
        if self.list:
            return print_names(self.directory)
        if self.output is None:
            raise UserError("--output", "No folder for the shards is given.", "Pass --output SHARDS.")
        check_root(self.directory)
        from dupr_tf.data.shards.pack import PackSettings, pack

        order = self.images_per_shard, self.shuffle, self.seed
        settings = PackSettings(self.long_side, self.quality, *order, self.max_pixels, self.depth)
        packed = pack(self.directory, self.output, settings, self.workers, self.max_bad_share)
        size = sum(shard.bytes for shard in packed.shards)
        print(f"{packed.images:,} images in {len(packed.shards)} shards ({packed.written} written now), {size:,} bytes")
        if packed.bad:
            print(f"{len(packed.bad)} unreadable files were left out: {self.output / 'bad_images.tsv'}")
        print(f"wrote {self.output}")


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
    depth: Literal["full", "auto"] = "full"
    """data.depth of the run to come."""

    def run(self, overrides: dict[str, str]) -> int:
        limits = {"max_bad_share": self.max_bad_share, "max_pixels": self.max_pixels}
        parse_config({"data": limits})
        if self.workers < 1:
            raise UserError("--workers", f"Expected 1 or more, received {self.workers}.")
        paths = list_images(self.directory)
        from dupr_tf.data.images.bad_images import advice
        from dupr_tf.data.images.duplicates import frames_warning, near_identical_folders
        from dupr_tf.data.images.scan import SKIPPED, count_groups, scan_images

        looks = list(
            with_progress(scan_images(paths, self.max_pixels, self.workers, self.output, self.depth), len(paths))
        )
        skipped = sum(look.outcome == SKIPPED for look in looks)
        print_rows(("outcome", "reason", "files", "such as"), count_groups(looks))
        print(f"{skipped} of {len(looks)} images would be skipped ({skipped / len(looks):.2%})")
        for folder, share in near_identical_folders(paths):
            print(f"dupr-tf: warning: {frames_warning(folder, share)}", file=sys.stderr)
        if skipped <= self.max_bad_share * len(looks):
            return 0
        reasons = [look.reason for look in looks if look.outcome == SKIPPED]
        print(f"dupr-tf: warning: {advice(reasons, len(looks), flags=True)}", file=sys.stderr)
        return REFUSED
