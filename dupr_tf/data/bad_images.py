"""What is wrong with an image, and the list of those a run had to skip."""

from __future__ import annotations

import collections
import errno
import logging
import os
import stat
import threading
import time
from collections.abc import Iterable, Sequence
from pathlib import Path

import tensorflow as tf

from dupr_tf.data.decoding import JPEG_END, MAX_PIXELS, read_image
from dupr_tf.data.image_source import Files, ImageSource, as_source
from dupr_tf.data.pillow_images import decode, kind_of, too_many_pixels
from dupr_tf.errors import RunFailed, UserError
from dupr_tf.files import write_whole
from dupr_tf.text import escape

log = logging.getLogger(__name__)
HEADER = "name\treason"
WRITE_EVERY = 10.0  # seconds between two writings of the list while a run goes on
FILE_ERRORS = {
    errno.ENOENT: "no file: missing, or a link to nowhere",
    errno.ELOOP: "no file: a link loop",
    errno.EACCES: "cannot be opened: permission denied",
}


def unusable_reason(path: str, max_pixels: int = MAX_PIXELS) -> str:
    """Why training would skip a file, as `kind of reason: details`; "" if it would not. Decodes all of it."""
    try:
        place = Path(path)
        if not stat.S_ISREG(os.stat(path).st_mode):
            return "no file: a folder, pipe or device"  # a pipe would be waited on for ever
        content = place.read_bytes()
    except OSError as error:
        return FILE_ERRORS.get(error.errno, f"cannot be opened: {error.strerror}")
    return unusable_content(content, max_pixels)


def unusable_content(content: bytes, max_pixels: int = MAX_PIXELS) -> str:
    """As `unusable_reason`, of the bytes of a file. `read_image` decides, the rest looks for words."""
    try:
        read_image(tf.constant(content), max_pixels)
        return ""
    except tf.errors.OpError:
        return escape(_reason(content, max_pixels))


def _reason_of(source: ImageSource, index: int, max_pixels: int) -> str:
    """`unusable_reason` of an image, wherever it comes from."""
    if isinstance(source, Files):
        return unusable_reason(source.paths[index], max_pixels)
    try:
        content = source.read(tf.constant(index, tf.int64)).numpy()
    except tf.errors.OpError:
        content = b""
    return unusable_content(content, max_pixels) if content else "damaged: its bytes are not those that were packed"


def _reason(content: bytes, max_pixels: int) -> str:
    kind = kind_of(content)
    if not content:
        return "empty: 0 bytes"
    if kind is None:
        return "no image: not a JPEG, PNG, GIF, BMP, WebP or TIFF inside"
    if kind not in ("JPEG", "PNG"):
        return decode(content, max_pixels)[1] or f"damaged: {kind}"
    sides = _sides(content, kind)
    if sides is not None and sides[0] * sides[1] > max_pixels:
        return too_many_pixels(*sides)
    return f"{'cut short' if _is_cut(content, kind) else 'damaged'}: {kind}"


def _sides(content: bytes, kind: str) -> tuple[int, int] | None:
    if kind == "PNG":
        return int.from_bytes(content[20:24], "big"), int.from_bytes(content[16:20], "big")
    try:
        return tuple(int(side) for side in tf.image.extract_jpeg_shape(content)[:2])
    except tf.errors.OpError:
        return None


def _is_cut(content: bytes, kind: str) -> bool:
    return not content.rstrip(b"\0").endswith(JPEG_END) if kind == "JPEG" else b"IEND" not in content[-64:]


class BadImages:
    """The unusable images met so far: named in the log once, counted, held against a budget, listed in a file.

    Args:
        images: the source, or a list of paths.
        max_share: share of them that may be unusable.
        max_pixels: of an image; one of more is unusable.
        report: file for the list, a line of name and reason each, replaced as a whole every few seconds. What an
            earlier start of the run left there is looked at again by `check_readable`, where images are files.
            None: no file.

    Attributes:
        writes: whether the file may be written; false until a run has checked its start.
    """

    def __init__(
        self,
        images: ImageSource | Sequence[str],
        max_share: float,
        max_pixels: int = MAX_PIXELS,
        report: str | Path | None = None,
    ):
        self.source, self.max_share, self.max_pixels = as_source(images), max_share, max_pixels
        self.report = None if report is None else Path(report)
        self.found: dict[int, str] = {}
        self.writes = True
        self._lock, self._written, self._write_at = threading.Lock(), 0, 0.0

    def name(self, index: int) -> str:
        """The name of an image, in one line."""
        return escape(self.source.name(index))

    def is_bad(self, index: int) -> bool:
        """Looks at image `index`, all of it, and notes it if it cannot be used."""
        reason = _reason_of(self.source, index, self.max_pixels)
        if reason:
            self.add(index, reason)
        return bool(reason)

    def add(self, index: int, reason: str) -> None:
        """Notes that image `index` cannot be used."""
        with self._lock:
            if index in self.found:
                return
            self.found[index] = reason
            log.warning("skipped: %s (%s)", self.name(index), reason)

    @property
    def reasons(self) -> dict[str, str]:
        """{name: reason}, in the order of the source."""
        return {self.name(index): self.found[index] for index in sorted(self.found)}

    @property
    def over_budget(self) -> bool:
        return len(self.found) > self.max_share * len(self.source)

    def check(self, running: bool = False) -> None:
        """Refuses more unusable images than allowed; keeps the list on disk up to date.

        Args:
            running: whether training has begun.

        Raises:
            UserError: there are too many, and training has not begun.
            RunFailed: there are too many, and it has.
        """
        if self.over_budget:
            self.close()
            where = f", listed in {self.report}" if self.report and self.report.exists() else ""
            error = UserError(
                "data.max_bad_share",
                f"{len(self.found)} of {len(self.source)} images cannot be used, where {self.max_share:.2%} may be "
                f"skipped: {count_reasons(self.found.values())}{where}, the first is "
                f"{self.name(next(iter(self.found)))}.",
                "Mend or remove them, or raise --data.max_bad_share.",
            )
            raise RunFailed(str(error)) if running else error
        if time.monotonic() >= self._write_at:
            self.close()

    def close(self) -> None:
        """Writes the list, whole or not at all, if there is anything new to write."""
        self._write_at = time.monotonic() + WRITE_EVERY
        with self._lock:
            found = dict(self.found)
        if self.report is None or not self.writes or len(found) == self._written or not self.report.parent.is_dir():
            return  # a run that is refused before it begins makes no folder
        lines = [HEADER, *(f"{self.name(index)}\t{found[index]}" for index in sorted(found))]
        write_whole(self.report, "\n".join(lines) + "\n")
        self._written = len(found)

    def earlier(self) -> list[int]:
        """The files that an earlier start of the run listed and that are still in the source."""
        if self.report is None or not self.report.exists() or not isinstance(self.source, Files):
            return []  # to learn the names of packed images, all of them would have to be read
        lines = self.report.read_text(encoding="utf-8", errors="replace").splitlines()[1:]
        names = {line.split("\t")[0] for line in lines}
        self._written = -1  # if all of them were mended, the list on disk is to be replaced by an empty one
        return [index for index in range(len(self.source)) if self.name(index) in names]


def check_readable(images: ImageSource | Sequence[str], bad: BadImages, tries: int = 64) -> None:
    """Decodes images spread over the source, and those known to be bad from earlier, before a run begins.

    Raises:
        UserError: none of them can be decoded, or too many cannot.
    """
    count = len(images)
    spread = range(0, count, max(1, count // tries))
    readable = sum(not bad.is_bad(index) for index in spread)
    if not readable:
        raise UserError(
            None,
            f"None of {len(spread)} images tried can be decoded, of {count}; the first is {bad.name(0)} "
            f"({bad.found[0]}).",
            "Pass a folder of photos.",
        )
    for index in bad.earlier():
        bad.is_bad(index)
    bad.check()


def count_reasons(reasons: Iterable[str]) -> str:
    """`2 cut short, 1 empty`, the most frequent first."""
    counts = collections.Counter(reason.split(":")[0] for reason in reasons)
    return ", ".join(f"{count} {reason}" for reason, count in counts.most_common())
