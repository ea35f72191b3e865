"""The command that packs images into shards."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Literal

import tyro

from dupr_tf.commands.checks import output_problems
from dupr_tf.commands.screen import print_line
from dupr_tf.config import DataConfig
from dupr_tf.data.images.listing import check_root
from dupr_tf.errors import UserError, raise_all
from dupr_tf.text import escape


@dataclasses.dataclass
class Pack:
    """Pack a folder of images into ArrayRecord shards.

    `pretrain --data SHARDS` reads them. Run the same command again to resume. Unreadable files are skipped and listed
    in bad_images.tsv. Each shard is a random sample of the images, so a few shards represent all of them.
    """

    EXAMPLE = "dupr-tf pack runs/sample/unlabeled --output runs/shards"

    directory: tyro.conf.Positional[Path]
    """Folder of images, or a COCO or VOC root. With --verify or --list, the folder of shards."""
    output: Path | None = None
    """Folder of the shards, outside of the images. Required without --verify and --list."""
    long_side: int | None = None
    """Longest side in pixels. Larger images are shrunk, turned upright and saved as JPEG. Default: files are copied."""
    quality: int = 95
    """JPEG quality of the shrunk images."""
    images_per_shard: int = 2000
    """Number of images in a shard. 2,000 of ImageNet take 200 MB."""
    shuffle: bool = True
    """Pack in a random order drawn from --seed instead of the order of the names."""
    seed: int = 0
    """Seed of the random order."""
    workers: int | None = None
    """Threads that read, check and encode. Default: one for each usable CPU."""
    max_bad_share: float = 0.01
    """Largest share of unreadable files."""
    max_pixels: int = DataConfig().max_pixels
    """Largest number of pixels of an image."""
    depth: Literal["full", "auto"] = "full"
    """Scale of images of 16 or 32 bits that are shrunk: the upper 8 of 16 bits, or each file's own range."""
    verify: bool = False
    """Compare shards with their checksums. Writes nothing."""
    list: bool = False
    """Print the name of each packed image, one per line. Writes nothing."""

    def run(self, overrides: dict[str, str]) -> None:
        if self.verify:
            return verify_shards(self.directory)
        if self.list:
            return print_names(self.directory)
        if self.output is None:
            raise UserError("--output", "No folder for the shards is given.", "Pass --output SHARDS.")
        check_root(self.directory)
        raise_all(output_problems(self.output, self.directory))
        from dupr_tf.data.shards.pack import PackSettings, pack

        order = self.images_per_shard, self.shuffle, self.seed
        settings = PackSettings(self.long_side, self.quality, *order, self.max_pixels, self.depth)
        packed = pack(self.directory, self.output, settings, self.workers, self.max_bad_share)
        size = sum(shard.bytes for shard in packed.shards)
        print_line(
            f"{packed.images:,} images in {len(packed.shards)} shards ({packed.written} written now), {size:,} bytes"
        )
        if packed.left_out:
            print_line(f"{packed.left_out:,} unreadable files were left out: {self.output / 'bad_images.tsv'}")
        print_line(f"wrote {self.output}")


def verify_shards(root: Path) -> None:
    """Compares shards with their checksums. Raises a `UserError` for each that is damaged."""
    from dupr_tf.data.shards.index import find_damage

    errors = list(find_damage(root))
    raise_all(list(filter(None, errors)))
    print_line(f"{len(errors)} shards match their checksums: {root}")


def print_names(root: Path) -> None:
    """Prints the name of each packed image on a line, special characters escaped."""
    from dupr_tf.data.shards.index import list_names

    for name in list_names(root):
        print(escape(name))
