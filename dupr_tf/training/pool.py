"""Opens the images of a pre-training run, without duplicates of the test images that `--exclude` names.

| file of a run | contents |
|---|---|
| excluded.json | `Exclusion`: the test images, their digest, and how many images of the pool were left out |
| excluded.tsv | a line for each image left out: number and name, the bits that differ, and the test image |
| hashes.bin | hashes of all images, so that a resume need not decode them again; hashes-N.bin of worker N |

The pool follows from the contents of the images, so every start and every worker gets the same one. Imports no
TensorFlow.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from dupr_tf.config import Config, load_config
from dupr_tf.data.images.duplicates import MAX_BUCKET, MAX_DISTANCE, Hashes, Matches
from dupr_tf.data.images.hash_cache import HashCache
from dupr_tf.data.images.listing import open_source
from dupr_tf.data.images.overlap import ValImages, check_val, hash_val, open_val
from dupr_tf.data.images.source import ImageSource, as_source
from dupr_tf.data.layouts import TFDS
from dupr_tf.errors import UserError, raise_all
from dupr_tf.files import open_file
from dupr_tf.records import digest, listing, read_record, text, whole
from dupr_tf.text import escape
from dupr_tf.training.run import CONFIG_FILE
from dupr_tf.training.run_images import IMAGES_FILE, KEEP_OR_ALLOW, MOST_IMAGES, image_changes, images_entry
from dupr_tf.weights.paths import EXCLUDED_FILE

log = logging.getLogger(__name__)
FIELD = "--exclude"
TABLE_FILE = "excluded.tsv"
HASHES_FILE = "hashes.bin"
HEAD = "number\tname\tdiffer in\tduplicate of\n"
MOST_LINE = 1 << 17  # characters
Roots = Sequence[str | Path]


@dataclasses.dataclass(frozen=True)
class Exclusion:
    """Records the images that a run leaves out of its pool.

    Args:
        roots: roots of the test images.
        val_images: number of the readable test images.
        sha256: digest of their contents, independent of names and folders.
        distance: most bits in which hashes of near duplicates differ.
        images, images_sha256: number of all images of the pool's root, and the digest of their names.
        exact: number of images left out because a test image has the same bytes.
        near: number of other images left out.
    """

    roots: tuple[str, ...]
    val_images: int
    sha256: str
    distance: int
    images: int
    images_sha256: str
    exact: int
    near: int

    @property
    def left_out(self) -> int:
        return self.exact + self.near

    def summary(self) -> str:
        """Returns how many images were left out, in a few words."""
        return (
            f"{self.left_out:,} of {self.images:,} images left out as duplicates of {', '.join(self.roots)} "
            f"({self.val_images:,} images): {self.exact:,} with the same bytes, {self.near:,} that differ in at most "
            f"{self.distance} bits of their hashes"
        )


class Pool(NamedTuple):
    """Holds the images of a run.

    Attributes:
        config: the config with the absolute root in use.
        source: the images to train on.
        exclusion: the record of the images left out. None without `--exclude`.
        table: contents of excluded.tsv.
    """

    config: Config
    source: ImageSource
    exclusion: Exclusion | None = None
    table: str = ""

    def files(self) -> dict[str, str]:
        """Returns {name: contents} of the files that record the exclusion."""
        if self.exclusion is None:
            return {}
        entry = json.dumps(dataclasses.asdict(self.exclusion), indent=2)
        return {TABLE_FILE: self.table, EXCLUDED_FILE: entry + "\n"}


def open_pool(
    config: Config,
    data: str | Path | None = None,
    exclude: Roots = (),
    run: Path | None = None,
    worker: int = 0,
    saves: bool = True,
) -> Pool:
    """Opens the images of a run.

    Args:
        config: the experiment.
        data: as in `open_source`. Default: `config.data.root`.
        exclude: roots of test images, as in `open_val`. Default: those that the run recorded.
        run: the run's folder, which has the record and the hashes of earlier starts.
        worker: number of this worker, 0 for the chief.
        saves: False to leave the hashes on disk unchanged.

    Raises:
        UserError: no root is given, or it has no images; or the test images are missing, or nothing else is left.
    """
    root = data or config.data.root
    if root is None:
        raise UserError("data.root", "No folder of images is given.", "Pass --data DIR.")
    root, source = open_source(root, config.data.kind)
    config = config.model_copy(update={"data": config.data.model_copy(update={"root": root})})
    recorded = read_exclusion(run) if run and (run / CONFIG_FILE).exists() else None
    exclude = exclude or (recorded.roots if recorded else ())
    if not exclude:
        return Pool(config, source)
    name = f"hashes-{worker}.bin" if worker else HASHES_FILE
    cache = HashCache(run and run / name, config.data.max_pixels, config.data.threads, saves)
    return _without_duplicates(config, source, exclude, cache)


def check_exclude(exclude: Roots, root: str | Path | None) -> None:
    """Raises the errors about `--exclude` that show before any image is read."""
    for one in exclude:
        with _named():
            check_val(one, root)


def exclusion_changes(run: Path, exclusion: Exclusion | None) -> list[UserError]:
    """Returns an error if a run has left out the duplicates of other test images; [] for a folder without a run."""
    saved = read_exclusion(run)
    keys = [one and (one.sha256, one.distance) for one in (saved, exclusion)]
    if not (run / CONFIG_FILE).exists() or keys[0] == keys[1]:
        return []
    before, after = (_described(one) for one in (saved, exclusion))
    problem = f"The run was started without the duplicates of {before}, and now of {after}."
    return [UserError(FIELD, problem, KEEP_OR_ALLOW)]


def read_exclusion(run: Path) -> Exclusion | None:
    """Reads the record of a run. None for a run that leaves nothing out. Raises UserError if it is damaged."""
    path = run / EXCLUDED_FILE
    return read_record(path, _exclusion) if os.path.lexists(path) else None


def recorded_pool(run: Path, config: Config) -> tuple[str, ImageSource]:
    """Opens the images that a run was trained on, and their root. Compares no contents.

    Raises:
        UserError: the images are gone, their names have changed, or the record is damaged.
    """
    root, source = open_source(config.data.root, config.data.kind)
    exclusion = read_exclusion(run)
    if exclusion is None:
        return root, source
    if (len(source), source.digest(root)) != (exclusion.images, exclusion.images_sha256):
        problem = f"{root} had {exclusion.images:,} images at the start, and now has other ones ({len(source):,})."
        raise UserError("data.root", problem, "Restore them.")
    left_out = list(_numbers(run / TABLE_FILE, exclusion))
    return root, source.select(np.setdiff1d(np.arange(len(source)), left_out))


@dataclasses.dataclass(frozen=True)
class ValOverlap:
    """Counts the images of a run's pool that occur among test images too.

    Args:
        images: number of images of the pool.
        val_images: number of readable test images.
        exact: images of the pool with the same bytes as a test image.
        near: other images of the pool whose hash differs from that of a test image in at most `MAX_DISTANCE` bits.
        unread: images of the pool that cannot be read.
        unknown: why nothing could be counted; "" if the counts hold.
    """

    images: int = 0
    val_images: int = 0
    exact: int = 0
    near: int = 0
    unread: int = 0
    unknown: str = ""

    @property
    def duplicates(self) -> int:
        return self.exact + self.near


def overlap(run: Path, val_images: ImageSource | Sequence[str], cache: Path | None = None) -> ValOverlap:
    """Counts how many images of a pre-training run are duplicates of test images.

    Args:
        run: folder of the run.
        val_images: the test images, or their paths.
        cache: file for the hashes. Default: hashes.bin of the run. The run's own hashes are read in any case.

    Returns:
        The counts; `unknown` if the images of the run are gone or have changed since.

    Raises:
        UserError: no test image can be read.
    """
    try:
        config = load_config(run / CONFIG_FILE)
        pool = _unchanged_pool(run, config)
    except UserError as error:
        return ValOverlap(unknown=str(error.errors[0].problem))
    limits, own = (config.data.max_pixels, config.data.threads), run / HASHES_FILE
    cached = HashCache(cache or own, *limits)
    val = hash_val([as_source(val_images)], cached)
    hashes = (HashCache(own, *limits, saves=False) if cache and own.is_file() else cached).hashes(pool)
    matches = val.find_in(hashes)
    exact, all_of_them = int(matches.exact.sum()), int((matches.of >= 0).sum())
    return ValOverlap(len(pool), len(val.merged.index), exact, all_of_them - exact, len(hashes.unreadable))


def _unchanged_pool(run: Path, config: Config) -> ImageSource:
    """Opens the images of a run. Raises UserError if they are not those of the record."""
    if config.data.root is None or not (run / IMAGES_FILE).is_file():
        raise UserError(None, f"{run} does not record its images.", "")
    root, source = recorded_pool(run, config)
    raise_all(image_changes(run, images_entry(root, source)))
    return source


def _without_duplicates(config: Config, source: ImageSource, exclude: Roots, cache: HashCache) -> Pool:
    root = config.data.root
    roots = tuple(str(one) if str(one).startswith(TFDS) else os.path.abspath(one) for one in exclude)
    with _named():
        for one in roots:
            check_val(one, root)
        val = hash_val([open_val(one) for one in roots], cache)
    hashes = cache.hashes(source)
    matches = val.find_in(hashes)
    at = np.flatnonzero(matches.of >= 0)
    exact = int(matches.exact.sum())
    exclusion = Exclusion(
        roots, len(val.merged.index), val.digest, MAX_DISTANCE, len(source), source.digest(root), exact, len(at) - exact
    )
    _report(exclusion, val, hashes, matches)
    if len(at) == len(source):
        problem = f"All {len(source):,} images of {root} are duplicates of {', '.join(roots)}."
        raise UserError(FIELD, problem, "Pass other images to --data or to --exclude.")
    table = HEAD + "".join(_lines(source, hashes, val, matches, at.tolist()))
    kept = np.setdiff1d(np.arange(len(source)), hashes.index[at])
    return Pool(config, source.select(kept), exclusion, table)


def _report(exclusion: Exclusion, val: ValImages, hashes: Hashes, matches: Matches) -> None:
    log.info("%s", escape(exclusion.summary()))
    unread = sum(len(one.unreadable) for one in val.hashes)
    if unread or hashes.unreadable:
        log.warning(
            "%s images of the pool and %s of %s cannot be read, and were not compared",
            f"{len(hashes.unreadable):,}", f"{unread:,}", escape(", ".join(exclusion.roots)),
        )  # fmt: skip
    if matches.capped:
        log.warning(
            "%s hashes share a quarter of their bits with more than %s others, so near duplicates among them may be "
            "missing",
            f"{matches.capped:,}", f"{MAX_BUCKET:,}",
        )  # fmt: skip


def _lines(source: ImageSource, hashes: Hashes, val: ValImages, matches: Matches, at: list[int]) -> Iterator[str]:
    for position in at:
        number = int(hashes.index[position])
        bits = "no byte" if matches.exact[position] else f"{matches.distance[position]} bits"
        yield f"{number}\t{escape(source.name(number))}\t{bits}\t{escape(val.name(int(matches.of[position])))}\n"


def _numbers(path: Path, exclusion: Exclusion) -> Iterator[int]:
    """Yields the numbers of the images left out. Raises UserError if excluded.tsv is missing or damaged."""
    try:
        with open_file(path) as file:
            file.readline(MOST_LINE)  # its header
            count = 0
            while count < exclusion.left_out:
                yield whole(int(file.readline(MOST_LINE).split(b"\t", 1)[0]), exclusion.images - 1)
                count += 1
    except (OSError, ValueError) as error:
        problem = f"{path} cannot be used: {getattr(error, 'strerror', None) or error}."
        raise UserError(None, problem, "Restore the file.") from None


def _exclusion(value) -> Exclusion:
    """Checks the contents of excluded.json."""
    names = [field.name for field in dataclasses.fields(Exclusion)]
    saved = {name: value[name] for name in names}
    for name in ("val_images", "images", "exact", "near"):
        whole(saved[name], MOST_IMAGES)
    whole(saved["distance"], MAX_DISTANCE)
    digest(saved["sha256"]), digest(saved["images_sha256"])
    return Exclusion(**{**saved, "roots": tuple(text(root) for root in listing(saved["roots"]))})


def _described(exclusion: Exclusion | None) -> str:
    if exclusion is None:
        return "no images"
    return f"the {exclusion.val_images:,} images of {', '.join(exclusion.roots)} ({exclusion.sha256[:8]})"


@contextlib.contextmanager
def _named() -> Iterator[None]:
    """Gives the errors of a block the field `--exclude`."""
    try:
        yield
    except UserError as error:
        raise_all([UserError(FIELD, one.problem, one.fix) for one in error.errors])
