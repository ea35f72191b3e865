"""Writes the features of any number of image files, in parts that are kept if the run stops. Loads no TensorFlow.

`FILE.parquet.json` describes the run from its start, and `FILE.parquet.parts/` has its parts until its end.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from rich.console import Console

from dupr_tf.config import PROBED_LEVELS, DataConfig
from dupr_tf.data.parts import (
    Bad,
    ImageParts,
    check_range,
    left_out_facts,
    list_inputs,
    recorded_differences,
    some_usable,
    source_facts,
)
from dupr_tf.data.shards.index import read_sealed, seal
from dupr_tf.errors import UserError
from dupr_tf.files import draw_pictures, local_path, sha256_of, write_whole
from dupr_tf.locks import locked
from dupr_tf.probing.feature_files import FEATURE_FILES, NAMES_ENDING, format_of
from dupr_tf.probing.image_views import spread
from dupr_tf.weights.catalogue import find_public, is_public
from dupr_tf.weights.paths import weights_file

FORMAT = "dupr_tf features 1"
RECORD, BAD_IMAGES, PICTURE, PARTS = ".json", ".bad_images.tsv", ".features.png", ".parts"  # after the output's name
LEVELS = PROBED_LEVELS[1:]
PART, PART_BYTES = 512, 1 << 26  # largest part, in images and bytes
DRAWN, DRAWN_CELLS = 8, 144  # photos in a picture, and cells a side


@dataclasses.dataclass(frozen=True)
class EmbedSettings:
    """Holds the settings that determine the features.

    Args:
        level: P2 to P5.
        dense: True keeps the cells of the feature map, False averages them.
        image_size: px. Images are squeezed into a square of this side.
        batch_size: images that the backbone takes at a time. Another number can change the last bits.
    """

    level: str = "P5"
    dense: bool = False
    image_size: int = 224
    batch_size: int = 32


@dataclasses.dataclass(frozen=True)
class Embedded:
    """Holds the result of a run: number of images, shape of the features of one, and number of images left out.

    `bad` has (name, reason) of the images left out, at most `MOST_LISTED`.
    """

    images: int
    shape: tuple[int, ...]
    left_out: int
    bad: Bad


def embed_files(
    weights: str | Path,
    images: Sequence[str | Path],
    output: str | Path,
    settings: EmbedSettings | None = None,
    picture: bool = False,
    max_bad_share: float = 0.01,
    data: DataConfig | None = None,
    console: Console | None = None,
) -> Embedded:
    """Writes the features of image files. Called again, it resumes.

    Args:
        weights: path, name or address for `load_backbone`. Public weights are downloaded after the other checks.
        images: folders and files.
        output: `.parquet` or `.npy` file to write.
        settings: None takes the defaults.
        picture: True draws the principal components of all levels for a few photos.
        max_bad_share: share of the images that may be unreadable, 0 to 1.
        data: settings for reading files. Default: those of the schema.
        console: console for progress. Default: the terminal.

    Raises:
        UserError: something does not fit together, or the output exists and is not that of the same call.
        RunFailed: too many images are unreadable, or the disk is full.
    """
    settings, output, data = settings or EmbedSettings(), local_path(output, "--output"), data or DataConfig()
    check_settings(settings)
    check_range("--max-bad-share", max_bad_share, 0, 1)
    format_of(output)
    run = EmbedRun(output, *list_inputs(images), settings, data, console or Console())
    run.check(_weights_facts(weights))
    if run.finished and not (picture and not run.beside(PICTURE).exists()):
        run.console.print(f"{output} has ended before")
        shutil.rmtree(run.beside(PARTS), ignore_errors=True)  # a kill may have left them
        return run.result()
    from dupr_tf.probing.embedder import Embedder  # loads TensorFlow

    return run.run(
        Embedder(weights, settings.level, not settings.dense, settings.image_size, settings.batch_size, data),
        picture,
        max_bad_share,
    )


def _weights_facts(weights: str | Path) -> dict[str, str]:
    """Describes the weights for the record: name and sha256 of the file, and name and address of public ones."""
    file = weights_file(weights)
    facts = {"file": file.name, "sha256": sha256_of(file)}
    return {**facts, "name": weights, "url": find_public(weights).url} if is_public(weights) else facts


def check_settings(settings: EmbedSettings) -> None:
    """Raises UserError if a setting is out of its range."""
    if settings.level not in LEVELS:
        raise UserError("--level", f"Expected one of {', '.join(LEVELS)}, received {settings.level}.", "Pass P5.")
    check_range("--image-size", settings.image_size, 32, 4096)
    check_range("--batch-size", settings.batch_size, 1, 4096)


class EmbedRun:
    """Manages the files of a run.

    Args:
        output: file to write.
        root, names: the images, see `list_inputs`.
        settings: settings of the features.
        data: settings for reading files.
        console: for progress.

    Attributes:
        finished: True if the run had ended before; known after `check`.
    """

    def __init__(
        self, output: Path, root: str, names: list[str], settings: EmbedSettings, data: DataConfig, console: Console
    ):
        self.output, self.root, self.names, self.settings = output, root, names, settings
        self.data, self.console, self.finished = data, console, False
        self.header: dict = {}

    def beside(self, ending: str) -> Path:
        """Returns the path of a file of this run: the output with an ending after its name."""
        return self.output.with_name(self.output.name + ending)

    def check(self, weights: dict) -> None:
        """Compares the files of the output with this run. Raises UserError if they are not of this run."""
        settings = {**dataclasses.asdict(self.settings), "depth": self.data.depth}
        source = source_facts(self.root, self.names)
        self.header = {"format": FORMAT, "weights": weights, "settings": settings, "source": source}
        if self.output.is_dir():
            raise UserError("--output", f"{self.output} is a folder.", "Pass a file that ends in .parquet or .npy.")
        record = self.beside(RECORD)
        if not record.exists():
            self._refuse_foreign()
            return
        try:
            facts, _, _ = read_sealed(record)
        except (OSError, ValueError):
            fix = "Choose another output, or remove it."
            raise UserError("--output", f"{record} exists and describes no features.", fix) from None
        if "result" not in facts and not self.output.exists() and not any(self.beside(PARTS).glob("part-*.f4")):
            return  # an earlier run has ended before its first part
        changed = recorded_differences(facts, self.header)
        if changed:
            problem = f"{self.output} holds features with {changed}."
            raise UserError("--output", problem, "Use the same again, or choose another output.")
        endings = FEATURE_FILES[format_of(self.output)].facts["beside"]
        self.finished = (
            "result" in facts
            and all(path.exists() for path in (self.output, *map(self.beside, endings)))
            and not some_usable(self.root, facts["result"], self.data)
        )

    def _refuse_foreign(self) -> None:
        for path in (self.output, *map(self.beside, (NAMES_ENDING, BAD_IMAGES, PICTURE, PARTS))):
            if path.exists():
                raise UserError("--output", f"{path} exists already.", "Choose another output, or remove it.")

    def run(self, embedder, picture: bool, max_bad_share: float) -> Embedded:
        """Computes the missing parts, then writes the output.

        Args:
            embedder: an `Embedder`.
            picture: True draws a picture.
            max_bad_share: as in `embed_files`.
        """
        size = part_size(embedder.shape)
        with locked(self.output, beside=True):
            self.check(self.header["weights"])  # another process may have written since
            if not self.finished:
                self._write(embedder, size, max_bad_share)
            if picture:
                bad = {name for name, _ in self.result().bad}
                shown = spread([name for name in self.names if name not in bad], DRAWN)
                paths = [str(Path(self.root, name)) for name in shown]
                name = self.beside(PICTURE).name
                draw_pictures({name: functools.partial(draw_components, embedder, paths)}, self.output.parent)
        return self.result()

    def _write(self, embedder, size: int, max_bad_share: float) -> None:
        parts = ImageParts(self.beside(PARTS), ".f4", self.root, self.names, size, seal(self.header)[1], self.data)
        write_whole(self.beside(RECORD), seal(self.header)[0])
        left_out = parts.compute(embedder.stream, encode_row, max_bad_share, self.beside(BAD_IMAGES), self.console)
        count, facts = len(self.names) - left_out.count, {**self.header, "shape": list(embedder.shape)}
        FEATURE_FILES.load(format_of(self.output))(self.output, parts.read(), count, embedder.shape, facts)
        left_out.write(self.beside(BAD_IMAGES))
        result = {"images": count, "shape": list(embedder.shape)}
        result |= left_out_facts(self.root, left_out.listed, self.data)
        write_whole(self.beside(RECORD), seal({**self.header, "result": result})[0])
        shutil.rmtree(parts.folder)

    def result(self) -> Embedded:
        """Returns the result of a run that has ended."""
        facts = read_sealed(self.beside(RECORD))[0]["result"]
        images, bad = facts["images"], [tuple(pair) for pair in facts["bad"]]
        return Embedded(images, tuple(facts["shape"]), len(self.names) - images, bad)


def encode_row(_name: str, row: np.ndarray) -> bytes:
    """Returns the features of an image as little-endian float32 bytes."""
    return row.astype("<f4").tobytes()


def part_size(shape: tuple[int, ...]) -> int:
    """Returns the number of images in a part. Raises UserError if the features of one image are too large."""
    row = 4 * math.prod(shape)
    if row > PART_BYTES:
        problem = f"Features of {' x '.join(map(str, shape))} take {row:,} bytes an image, of at most {PART_BYTES:,}."
        raise UserError("--image-size", problem, "Use a smaller size, a higher level, or leave out --dense.")
    return min(PART, PART_BYTES // row)


def draw_components(embedder, paths: Sequence[str], path: Path) -> None:
    """Draws the principal components of all levels for a few photos.

    Args:
        embedder: an `Embedder`.
        paths: photos.
        path: PNG file to write.
    """
    from dupr_tf.probing.component_sheet import component_sheet
    from dupr_tf.probing.drawing import save

    views = [view for view in map(embedder.view, paths) if isinstance(view, np.ndarray)]
    save(component_sheet(views, list(embedder.levels(views, DRAWN_CELLS))), path, colours=None)
