"""The command that finds photos that occur twice."""

from __future__ import annotations

import contextlib
import dataclasses
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated

import tyro

from dupr_tf.commands.screen import print_line, print_rows, with_progress
from dupr_tf.config import DataConfig, parse_config
from dupr_tf.data.images.listing import check_root
from dupr_tf.errors import UserError
from dupr_tf.files import open_file, write_whole
from dupr_tf.text import escape

HEADER = "name\tdiffer in\tother\n"  # first line of a list


@dataclasses.dataclass
class Duplicates:
    """Find photos that occur twice, within a folder or in two.

    Duplicates have the same bytes, or show nearly the same picture: their perceptual hashes (ImageHash's phash, 64
    bits) differ in at most --distance bits. Another size or JPEG quality changes up to 2 bits. Other photos mostly
    differ in 16 or more, and sometimes in 6. Nothing is deleted.
    """

    EXAMPLE = "dupr-tf duplicates runs/sample/unlabeled"

    pool: Annotated[Path, tyro.conf.arg(metavar="POOL"), tyro.conf.Positional]
    """Folder of images, COCO or VOC root, shards, or tfds:NAME."""
    against: tyro.conf.Positional[Path | None] = None
    """Other images, such as a test set: lists the photos of POOL that occur there too. Default: POOL itself."""
    distance: int = 3
    """Most bits in which near duplicates differ, 0 to 3."""
    output: Path | None = None
    """File for a line for each duplicate: name, bits that differ, other photo. It replaces earlier lists only."""
    workers: int | None = None
    """Images decoded at a time. Default: one for each usable CPU."""
    max_pixels: int = DataConfig().max_pixels
    """Largest number of pixels of an image. Larger images are skipped."""

    def run(self, overrides: dict[str, str]) -> None:
        parse_config({"data": {"max_pixels": self.max_pixels, "threads": self.workers}})
        from dupr_tf.data.images.duplicates import MAX_BUCKET, MAX_DISTANCE, find_duplicates

        if not 0 <= self.distance <= MAX_DISTANCE:
            problem = f"Expected 0 to {MAX_DISTANCE} bits, received {self.distance}."
            raise UserError("--distance", problem, f"Pass {MAX_DISTANCE}.")
        self._check_output()
        roots = [root for root in (self.pool, self.against) if root is not None]
        for root in roots:
            check_root(root)
        (hashes, names) = zip(*(self._hashed(root) for root in roots), strict=True)
        matches = find_duplicates(*hashes, distance=self.distance)
        pairs = names[0], names[-1]
        print_rows(("photos", "differ in", "such as", "and"), list(_rows(matches, self.distance, *pairs)))
        if matches.capped:
            print_line(
                f"{matches.capped:,} hashes share a quarter of their bits with more than {MAX_BUCKET:,} others. Each "
                f"was compared with {MAX_BUCKET:,} of them, so near duplicates among them may be missing."
            )
        positions = (matches.of >= 0).nonzero()[0].tolist()
        where = "an earlier one" if self.against is None else f"one in {self.against}"
        print_line(f"{len(positions):,} of {len(matches.of):,} photos are duplicates of {where}")
        if self.output is not None:
            lines = ["\t".join(row) + "\n" for row in _lines(matches, positions, *pairs)]
            write_whole(self.output, HEADER + "".join(lines))
            print_line(f"wrote {self.output}")

    def _check_output(self) -> None:
        """Raises UserError for an output that is a folder, or a file that is no list of duplicates."""
        if self.output is None or not os.path.lexists(self.output):
            return
        if self.output.is_dir():
            raise UserError("--output", f"{self.output} is a folder.", f"Pass --output {self.output}/duplicates.tsv.")
        with contextlib.suppress(OSError), open_file(self.output) as file:
            if file.read(len(HEADER)) == HEADER.encode():
                return
        problem = f"{self.output} exists and is no list of duplicates, so it is not replaced."
        raise UserError("--output", problem, "Pass another name.")

    def _hashed(self, root: Path) -> tuple:
        """Returns the hashes of a root, and a function from their positions to names."""
        from dupr_tf.data.images.duplicates import collect_hashes, hash_images
        from dupr_tf.data.images.listing import open_source

        source = open_source(root)[1]
        hashed = hash_images(source, self.workers, self.max_pixels)
        hashes = collect_hashes(with_progress(hashed, len(source), "hashing"))
        for number, reason in hashes.unreadable:
            print_line(f"skipped: {escape(source.name(number))} ({reason})")
        print_line(f"{len(hashes.index):,} of {len(source):,} images of {root} compared")
        return hashes, lambda position: escape(source.name(int(hashes.index[position])))


def _difference(matches, position: int) -> str:
    return "no byte" if matches.exact[position] else f"{matches.distance[position]} bits"


def _lines(matches, positions: list[int], name: Callable, other: Callable) -> Iterator[tuple[str, str, str]]:
    for position in positions:
        yield name(position), _difference(matches, position), other(matches.of[position])


def _rows(matches, threshold: int, name: Callable, other: Callable) -> Iterator[tuple[str, str, str, str]]:
    """Yields a row with an example for the same bytes, for each distance, and for the next one above the threshold."""
    groups = [matches.exact, *((matches.distance == bits) & ~matches.exact for bits in range(threshold + 1))]
    for group in groups:
        positions = group.nonzero()[0]
        if len(positions):
            first = int(positions[0])
            yield f"{len(positions):,}", _difference(matches, first), name(first), other(matches.of[first])
    above = [bits for bits in matches.examples if bits > threshold]
    if above:
        first, second = matches.examples[above[0]]
        yield "not counted", f"{above[0]} bits", name(first), other(second)
