"""Keeps the list of the images that a run had to skip, and why."""

from __future__ import annotations

import bisect
import collections
import contextlib
import itertools
import logging
import math
import os
import re
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from dupr_tf.config import DataConfig
from dupr_tf.data.images.decode import FACTORS, MAX_PIXELS, Unusable, decode, uses_few_levels
from dupr_tf.data.images.listing import check_root, open_source
from dupr_tf.data.images.source import Files, ImageSource, as_source, read_file
from dupr_tf.errors import RunFailed, UserError
from dupr_tf.files import open_file, write_whole
from dupr_tf.text import escape
from dupr_tf.values import exceeds

TOO_LARGE = re.compile(r"too many pixels: (\d+) x (\d+)")
log = logging.getLogger(__name__)
WRITE_EVERY = 10.0  # seconds between two writes of the list during a run
MOST_LISTED = 10_000  # images of a run that are named with their reason; further ones are only counted
MORE = re.compile(r"([0-9]{1,18}) more")  # start of the reason in the last line of a list that is not complete
MOST_LINE = 1 << 16  # bytes
FIELDS = ("data.max_bad_share", "data.max_pixels", "data.depth")  # names of settings in a config
FLAGS = ("--max-bad-share", "--max-pixels", "--depth")  # and those of commands without a config


def unusable_reason(path: str | os.PathLike, max_pixels: int = MAX_PIXELS, depth: str = "full") -> str:
    """Returns why training would skip a file, as `kind of reason: details`; "" if it would not."""
    try:
        decode(read_file(path), max_pixels, factor=max(FACTORS), depth=depth)  # reads a JPEG's every coefficient
        return ""
    except Unusable as error:
        return str(error)


class BadImages:
    """Collects the unusable images met so far: counts them against a limit, and names each once in a log and a file.

    After `MOST_LISTED` images, further ones are only counted, so that memory and file stay small.

    Args:
        images: the source, or a list of paths.
        max_share: share of the images that may be unusable.
        max_pixels: an image with more pixels is unusable.
        report: file for the list, see `write_list`. It is replaced as a whole every few seconds. If images are files,
            `check_readable` checks those again that an earlier start of the run listed. None: no file.
        depth: `data.depth`.

    Attributes:
        reason_of: {image: reason} of the listed images.
        kinds: {kind of reason: number of images}, of all images met so far.
        on_new: called with (image, reason) for each new image, also if it is not listed.
        writes: whether the file may be written; false until a run has checked its start.
    """

    def __init__(
        self,
        images: ImageSource | Sequence[str],
        max_share: float,
        max_pixels: int = MAX_PIXELS,
        report: str | Path | None = None,
        depth: str = "full",
    ):
        self.source, self.max_share, self.max_pixels = as_source(images), max_share, max_pixels
        self.depth = depth
        self.report = None if report is None else Path(report)
        self.reason_of: dict[int, str] = {}
        self.kinds: collections.Counter[str] = collections.Counter()
        self.on_new: Callable[[tuple[int, str]], object] = lambda _: None
        self.writes = True
        self._met = bytearray(-(-len(self.source) // 8))  # a bit for each image
        self._lock, self._written, self._write_at = threading.Lock(), 0, 0.0

    @classmethod
    def of(cls, images: ImageSource | Sequence[str], data: DataConfig, report: str | Path | None = None) -> BadImages:
        """Takes the limits from the data section of a config."""
        return cls(images, data.max_bad_share, data.max_pixels, report, data.depth)

    def name(self, index: int) -> str:
        """Returns the name of an image, in one line."""
        return escape(self.source.name(index))

    def is_bad(self, index: int) -> bool:
        """Decodes image `index`, adds it to the list if it cannot be used, and returns whether that is so."""
        try:
            decode(self.source.read(index), self.max_pixels, depth=self.depth)
            return False
        except Unusable as error:
            self.add(index, str(error))
            return True

    def add(self, index: int, reason: str) -> None:
        """Counts image `index`, and adds it to the list unless that is full."""
        with self._lock:
            place, bit = index >> 3, 1 << (index & 7)
            if self._met[place] & bit:
                return
            self._met[place] |= bit
            self.kinds[kind_of(reason)] += 1
            self.on_new((index, reason))
            if len(self.reason_of) < MOST_LISTED:
                self.reason_of[index] = reason
                log.warning("skipped: %s (%s)", self.name(index), reason)
            elif self.count == MOST_LISTED + 1:
                log.warning("skipped more than %s images; further ones are counted, not named", f"{MOST_LISTED:,}")

    @property
    def count(self) -> int:
        """Returns the number of all images met so far."""
        return self.kinds.total()

    @property
    def reasons(self) -> dict[str, str]:
        """Returns {name: reason} of the listed images, in the order of the source."""
        return {self.name(index): self.reason_of[index] for index in sorted(self.reason_of)}

    @property
    def over_budget(self) -> bool:
        return exceeds(self.count, self.max_share, len(self.source))

    def check(self, running: bool = False) -> None:
        """Raises an error if more images are unusable than allowed. Keeps the list on disk up to date.

        Args:
            running: whether the training runs already.

        Raises:
            UserError: there are too many before the training.
            RunFailed: there are too many during the training.
        """
        if self.over_budget:
            self.close()
            where = f", listed in {self.report}" if self.report and self.report.exists() else ""
            error = UserError(
                "data.max_bad_share",
                f"{self.count} of {len(self.source)} images cannot be used, where {self.max_share:.2%} may be "
                f"skipped: {kinds_text(self.kinds)}{where}, the first is {self.name(next(iter(self.reason_of)))}.",
                advice(self.reason_of.values(), len(self.source), count=self.count),
            )
            raise RunFailed(str(error)) if running else error
        if time.monotonic() >= self._write_at:
            self.close()

    def close(self) -> None:
        """Writes the list atomically, if there is anything new to write."""
        self._write_at = time.monotonic() + WRITE_EVERY
        with self._lock:
            reasons, count = dict(self.reason_of), self.count
        if self.report is None or not self.writes or count == self._written or not self.report.parent.is_dir():
            return  # a run that is refused before it begins creates no folder
        listed = ((self.source.name(index), reasons[index]) for index in sorted(reasons))
        write_list(self.report, listed, count - len(reasons))
        self._written = count

    def earlier(self) -> list[int]:
        """Returns the files that an earlier start of the run listed and that are still in the source."""
        if self.report is None or not self.report.exists() or not isinstance(self.source, Files):
            return []  # to learn the names of packed images, all of them would have to be read
        names = {name for name, _ in itertools.islice(read_list(self.report), MOST_LISTED)}
        self._written = -1  # if all of these files are readable now, an empty list replaces the one on disk
        return [index for index in range(len(self.source)) if self.name(index) in names]


class LeftOut:
    """Counts the files that a command leaves out, and keeps the first `MOST_LISTED` of them by name.

    Attributes:
        count: number of all files.
        listed: (name, reason) of the first ones, sorted by name, however the files are met.
    """

    def __init__(self):
        self.count, self.listed, self._said = 0, [], False

    def add(self, name: str, reason: str, earlier: bool = False) -> None:
        """Counts a file, and names it in a warning unless too many were named.

        Args:
            name, reason: the file, and why it is left out.
            earlier: True if an earlier call met this file, which is then not named again.
        """
        self.count += 1
        bisect.insort(self.listed, (name, reason))
        del self.listed[MOST_LISTED:]
        if earlier or self._said:
            return
        self._said = self.count > MOST_LISTED
        if self._said:
            log.warning("skipped more than %s images; further ones are counted, not named", f"{MOST_LISTED:,}")
        else:
            log.warning("skipped, %s: %s", reason, escape(name))

    def write(self, path: Path) -> None:
        """Writes the list, see `write_list`."""
        write_list(path, self.listed, self.count - len(self.listed))


def check_photos(root: str | Path, kind: str = "auto", max_pixels: int = MAX_PIXELS, depth: str = "full") -> None:
    """Checks that a root has images (`check_root`) and that they are not all unreadable.

    If the first image can be decoded, the root is not walked further.

    Raises:
        UserError: there is no image, or no image that was tried can be decoded.
    """
    first = check_root(root, kind)
    if first is None or unusable_reason(first, max_pixels, depth):
        check_any_readable(open_source(root, kind)[1], max_pixels, depth=depth)


def check_any_readable(
    images: ImageSource | Sequence[str], max_pixels: int = MAX_PIXELS, tries: int = 64, depth: str = "full"
) -> None:
    """Decodes images spread over the source until one can be decoded.

    Raises:
        UserError: no image that was tried can be decoded.
    """
    source, first = as_source(images), ""
    spread = _spread(len(source), tries)
    for index in spread:
        try:
            decode(source.read(index), max_pixels, depth=depth)
            return
        except Unusable as error:
            first = first or f"{escape(source.name(index))} ({error})"
    problem = f"None of {len(spread)} images tried can be decoded, of {len(source)}. The first is {first}."
    raise UserError(None, problem, "Pass a folder of photos.")


def warn_of_few_levels(images: ImageSource | Sequence[str], depth: str, tries: int = 4) -> None:
    """Warns if images of 16 bits would gain from `data.depth: auto`, judged by a few spread over the source."""
    source = as_source(images)
    for index in _spread(len(source), tries) if depth == "full" else ():
        with contextlib.suppress(Unusable):  # it is reported when it is used
            if uses_few_levels(source.read(index)):
                log.warning(
                    "warning: %s has 16 bits, of which it uses few, so it is nearly of one colour to the network. "
                    "Train with --data.depth auto, which scales each such file by its own range.",
                    escape(source.name(index)),
                )
                return


def _spread(count: int, tries: int) -> range:
    return range(0, count, max(1, count // tries))


def check_readable(images: ImageSource | Sequence[str], bad: BadImages, tries: int = 64) -> None:
    """Decodes images spread over the source, and those listed as bad by an earlier start, before a run begins.

    Raises:
        UserError: no image can be decoded, or too many cannot.
    """
    check_any_readable(images, bad.max_pixels, tries, bad.depth)
    for index in (*_spread(len(images), tries), *bad.earlier()):
        bad.is_bad(index)
    bad.check()


def write_list(path: Path, images: Iterable[tuple[str, str]], more: int = 0) -> None:
    """Writes the name and reason of each image on a line, atomically.

    Args:
        path: the file.
        images: (name, reason) of each listed image.
        more: number of further images. If there are some, a last line without a name says so.
    """
    lines = [f"{escape(name)}\t{reason}\n" for name, reason in images]
    lines += [f"\t{more} more are not listed\n"] if more else []
    write_whole(path, "name\treason\n" + "".join(lines))


def read_list(path: Path) -> Iterator[tuple[str, str]]:
    """Yields (name, reason) of each line of a list, with an empty name for its last line about further images."""
    with open_file(path) as file:
        file.readline(MOST_LINE)  # its header
        while line := file.readline(MOST_LINE):
            name, _, reason = line.decode("utf-8", "backslashreplace").rstrip("\n").partition("\t")
            yield name, reason


def further_images(name: str, reason: str) -> int:
    """Returns the number of further images that a line of a list states; 0 for the line of an image."""
    match = None if name else MORE.match(reason)
    return int(match[1]) if match else 0


def advice(reasons: Iterable[str], total: int, names: tuple[str, str, str] = FIELDS, count: int | None = None) -> str:
    """Returns the settings, with values, that would let images be used or skipped.

    Args:
        reasons: reasons why images cannot be used.
        total: number of images.
        names: how the user sets the share of bad images, the limit on pixels, and the depth.
        count: number of images that cannot be used. Default: that of `reasons`.
    """
    share, pixels, depth = names
    reasons = list(reasons)
    count = len(reasons) if count is None else count
    ways = [f"raise {share} to {fitting_share(count, total):g}"] if count < total else []
    sizes = [math.prod(map(int, match.groups())) for match in map(TOO_LARGE.match, reasons) if match]
    ways += [f"set {pixels} to {max(sizes)} to use large images"] if sizes else []
    if any("data.depth" in reason for reason in reasons):
        ways.append(f"set {depth} to auto to use images of 32 bits")
    return "; or ".join(["Repair or remove them", *ways]) + "."


def fitting_share(count: int, total: int) -> float:
    """Returns a share of bad images, of whole percents, that a count of them does not exceed."""
    return min(1, math.ceil(100 * count / total) / 100)


def kind_of(reason: str) -> str:
    """Returns the kind of a reason, the part before its details."""
    return reason.split(":")[0]


def count_reasons(reasons: Iterable[str]) -> str:
    """Counts reasons by their kind, see `kinds_text`."""
    return kinds_text(collections.Counter(map(kind_of, reasons)))


def kinds_text(kinds: Mapping[str, int]) -> str:
    """Formats {kind: number of images}, the most frequent first: `2 cut short, 1 empty`."""
    return ", ".join(f"{count} {kind}" for kind, count in collections.Counter(kinds).most_common())
