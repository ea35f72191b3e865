"""The command that packs images into shards."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import tyro

from dupr_tf.data.images.listing import check_root
from dupr_tf.errors import UserError, raise_all
from dupr_tf.text import escape


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
        check_root(self.directory, "folder")
        from dupr_tf.data.shards.pack import PackSettings, pack

        settings = PackSettings(self.long_side, self.quality, self.images_per_shard, self.shuffle, self.seed)
        packed = pack(self.directory, self.output, settings, self.workers, self.max_bad_share)
        size = sum(shard.bytes for shard in packed.shards)
        print(f"{packed.images:,} images in {len(packed.shards)} shards ({packed.written} written now), {size:,} bytes")
        if packed.bad:
            print(f"{len(packed.bad)} unreadable files were left out: {self.output / 'bad_images.tsv'}")
        print(f"wrote {self.output}")


def print_verified(root: Path) -> None:
    """Compares shards with their checksums. Raises a `UserError` for each that is damaged."""
    from dupr_tf.data.shards.manifest import find_damage

    errors = list(find_damage(root))
    raise_all(list(filter(None, errors)))
    print(f"{len(errors)} shards are what was packed: {root}")


def print_names(root: Path) -> None:
    """Prints the name of each packed image on a line, special characters escaped."""
    from dupr_tf.data.shards.manifest import list_names

    for name in list_names(root):
        print(escape(name))
