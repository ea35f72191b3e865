"""The command that writes the features of images."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Literal

import tyro

from dupr_tf.commands.checks import check_outside, problems_of
from dupr_tf.commands.screen import print_line
from dupr_tf.config import PROBED_LEVELS, DataConfig, load_config
from dupr_tf.errors import UserError, raise_all
from dupr_tf.training.cluster import refuse_cluster
from dupr_tf.weights.paths import check_weights_file

READING = ("data.depth", "data.max_pixels")  # fields of a config that are flags too


@dataclasses.dataclass
class Embed:
    """Write the features of any number of images.

    Writes a table (.parquet) or an array (.npy) with the features of every image, for search, clustering or choosing
    images to label. Run the same command again to resume: finished parts of up to 512 images are kept. Unreadable
    images are skipped and listed in FILE.bad_images.tsv. FILE.json describes the features.
    Two fields of the data section are flags too: --data.depth and --data.max_pixels.
    """

    EXAMPLE = "dupr-tf embed runs/try/photos --images runs/sample/unlabeled --output runs/features.npy"

    weights: tyro.conf.Positional[str]
    """A run, an export, a .keras file, a checkpoint that `import` reads, or a public one (`dupr-tf list weights`)."""
    images: tuple[Path, ...]
    """Folders of images, nested or flat, or image files."""
    output: Path
    """File to write, outside of the images. It ends in .parquet (needs pyarrow) or .npy."""
    level: Literal[PROBED_LEVELS[1:]] = "P5"
    """Level of the features. P2 has the smallest cells, P5 the largest."""
    dense: bool = False
    """Write the whole feature map. By default, it is averaged over its cells."""
    image_size: int = 224
    """Side in pixels of the square into which images are squeezed."""
    picture: bool = False
    """Draw the features of 8 photos as colours of their first three principal components, into FILE.features.png."""
    max_bad_share: float = 0.01
    """Largest share of unreadable files."""
    batch_size: int = 32
    """Images that the backbone takes at a time."""

    def run(self, overrides: dict[str, str]) -> None:
        refuse_cluster()
        folders = [path for path in self.images if path.is_dir()]
        problems = [problem for folder in folders for problem in problems_of(check_outside, self.output, folder)]
        raise_all([*problems_of(_reading, overrides), *problems, *problems_of(check_weights_file, self.weights)])
        from dupr_tf.probing.embed import BAD_IMAGES, PICTURE, EmbedSettings, embed_files

        settings = EmbedSettings(self.level, self.dense, self.image_size, self.batch_size)
        limits = self.picture, self.max_bad_share, _reading(overrides)
        done = embed_files(self.weights, self.images, self.output, settings, *limits)
        print_line(f"{done.images:,} images, {' x '.join(map(str, done.shape))} numbers each")
        if done.left_out:
            print_line(f"{done.left_out:,} unreadable files were left out: {self.output}{BAD_IMAGES}")
        print_line(f"wrote {self.output}")
        if self.picture and Path(f"{self.output}{PICTURE}").is_file():
            print_line(f"wrote {self.output}{PICTURE}")


def _reading(overrides: dict[str, str]) -> DataConfig:
    """Returns the settings for reading images. Raises UserError for an override of another field."""
    others = [name for name in overrides if name not in READING]
    if others:
        raise UserError(f"--{others[0]}", f"embed takes no other fields than {', '.join(READING)}.", "Leave it out.")
    return load_config(None, overrides).data
