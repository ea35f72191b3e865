"""Computes results for any number of image files, in parts that are kept if the run stops.

A part is a file of the results for some hundred images, written as a whole. A resumed run looks for these files and
computes the missing ones. At the end a command makes its output of the parts.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from dupr_tf.config import DataConfig
from dupr_tf.data.detection import read_image
from dupr_tf.data.file_results import file_stamp
from dupr_tf.data.images.bad_images import LeftOut, fitting_share, warn_of_few_levels
from dupr_tf.data.images.decode import Unusable
from dupr_tf.data.images.listing import list_images
from dupr_tf.data.shards.index import read_sealed, seal
from dupr_tf.errors import RunFailed, UserError
from dupr_tf.files import local_path, write_whole
from dupr_tf.records import MISTAKES
from dupr_tf.text import duration, escape, one_line
from dupr_tf.values import exceeds

SAY_EVERY, SAME_BATCH = 5.0, 0.01  # seconds
Bad = list[tuple[str, str]]  # name and reason
Stream = Callable[[list[str]], Iterator[tuple[int, Any]]]  # paths -> number and result, or why there is none
Encode = Callable[[str, Any], bytes]  # name of an image and its result -> bytes in the part


def list_inputs(paths: Sequence[str | Path]) -> tuple[str, list[str]]:
    """Returns a folder that holds all images, and their names below it, sorted.

    Args:
        paths: folders, whose images are listed, and files.

    Raises:
        UserError: a path does not exist, or a folder has no image.
    """
    if not paths:
        raise UserError("--images", "No images are given.", "Pass a folder of images, or image files.")
    files, folders = set(), set()
    for path in (local_path(path, "--images") for path in paths):
        if path.is_dir():
            try:
                files.update(list_images(path))
            except UserError as error:
                raise UserError("--images", error.problem, error.fix) from None
            folders.add(os.path.abspath(path))
        elif path.exists():
            files.add(os.path.abspath(path))
            folders.add(os.path.dirname(os.path.abspath(path)))
        else:
            raise UserError("--images", f"{path} does not exist.", "Pass a folder of images, or image files.")
    root = os.path.commonpath(folders)
    return root, sorted(file[len(os.path.join(root, "")) :] for file in files)


def source_facts(root: str, names: Iterable[str]) -> dict:
    """Returns a description of the images of a run, for its record: their root, number and sha256 of the names."""
    digest, count = hashlib.sha256(), 0
    for name in names:
        digest.update(os.fsencode(f"{name}\0"))
        count += 1
    return {"root": os.fsdecode(root), "files": count, "sha256": digest.hexdigest()}


def recorded_differences(saved: dict, now: dict) -> str:
    """Returns how the record of an earlier run differs from that of this run, as text; empty if they are the same.

    Args:
        saved, now: {part of the record: value or {name: value}}.
    """
    found = []
    for part, value in now.items():
        old = saved.get(part)
        if not isinstance(value, dict) or not isinstance(old, dict):
            found += [f"{part} {old}, not {value}"] if old != value else []
            continue
        names = [name for name in {**old, **value} if old.get(name) != value.get(name)]
        visible = [name for name in names if name != "sha256"]  # digests mean nothing to the user
        found += [f"{name} {_shown(old.get(name))}, not {_shown(value.get(name))}" for name in visible]
        found += [f"another {part}"] if names and not visible else []
    return escape("; ".join(found))


def _shown(value) -> str:
    return "unset" if value is None else str(value)


def check_range(flag: str, value: float, low: float, high: float) -> None:
    """Raises UserError if the value of a flag or argument is not between two limits."""
    if not low <= value <= high:
        raise UserError(flag, f"Expected {low} to {high}, received {value}.", f"Pass {max(low, min(value, high))}.")


def left_out_facts(root: str, bad: Bad, data: DataConfig) -> dict:
    """Returns the record of images that cannot be used: names and reasons, and a digest of the files and the limit."""
    stamps = [(name, *file_stamp(os.path.join(root, name))) for name, _ in bad]
    state = hashlib.sha256(json.dumps([data.max_pixels, stamps]).encode()).hexdigest()
    return {"bad": [list(pair) for pair in bad], "state": state}


def some_usable(root: str, facts: dict, data: DataConfig) -> bool:
    """Returns True if an image that was left out can be used now.

    It may have been replaced, or `data.max_pixels` raised. Nothing is decoded if neither has changed.

    Args:
        root: folder of the images.
        facts: result of `left_out_facts` in a record; one of an earlier version has no digest.
        data: settings for reading images.
    """
    bad = [(str(name), str(reason)) for name, reason in facts["bad"]]
    if facts.get("state") == left_out_facts(root, bad, data)["state"]:
        return False
    for name, _ in bad:
        with contextlib.suppress(Unusable):
            read_image(Path(root, name), data)
            return True
    return False


class ImageParts:
    """Computes and reads the parts of a run.

    Args:
        folder: folder of the parts.
        ending: ending of their file names.
        root, names: the images, see `list_inputs`.
        size: number of images of a part.
        run_id: text that identifies the run. Parts of another run are computed again.
        data: settings for reading images. A part is computed again if an image that it leaves out can be read now.
    """

    def __init__(
        self, folder: Path, ending: str, root: str, names: list[str], size: int, run_id: str, data: DataConfig
    ):
        self.folder, self.ending, self.root, self.names, self.run_id = folder, ending, root, names, run_id
        self.data = data
        self.parts = [names[first : first + size] for first in range(0, len(names), size)]

    def compute(
        self, stream: Stream, encode: Encode, max_bad_share: float, bad_list: Path, console: Console
    ) -> LeftOut:
        """Writes the missing parts. Returns the unreadable images of all parts.

        Args:
            stream: computes the results of a list of paths.
            encode: makes bytes of a result.
            max_bad_share: share of the images that may be unreadable, 0 to 1.
            bad_list: file that lists unreadable images if there are too many.
            console: for progress.

        Raises:
            RunFailed: too many images are unreadable, or all.
        """
        left_out, missing, kept = LeftOut(), [], 0
        for number, names in enumerate(self.parts):
            bad = self._read_bad(number)
            if bad is None:
                missing.append(number)
                continue
            kept += len(names)
            for name, reason in bad:
                left_out.add(name, reason, earlier=True)
        if kept:
            console.print(f"resuming after {kept} of {len(self.names)} images")
        warn_of_few_levels([os.path.join(self.root, name) for name in self.names], self.data.depth)
        progress = ImageProgress(len(self.names), kept, console)
        budget = _BadBudget(len(self.names), max_bad_share, bad_list, left_out)
        for number in missing:
            self._compute_part(number, stream, encode, progress, budget)
        if left_out.count == len(self.names):
            name, reason = left_out.listed[0]
            raise RunFailed(f"None of {left_out.count} images can be read, such as {escape(name)} ({reason}).")
        return left_out

    def read(self) -> Iterator[tuple[list[str], bytes]]:
        """Yields the names and the encoded results of the readable images, in order, a part at a time."""
        for number, names in enumerate(self.parts):
            facts, _, content = read_sealed(self._file(number))
            bad = {name for name, _ in facts["bad"]}
            yield [name for name in names if name not in bad], content

    def _file(self, number: int) -> Path:
        return self.folder / f"part-{number:06d}{self.ending}"

    def _compute_part(
        self, number: int, stream: Stream, encode: Encode, progress: ImageProgress, budget: _BadBudget
    ) -> None:
        names, encoded, bad = self.parts[number], {}, []
        for index, result in stream([os.path.join(self.root, name) for name in names]):
            progress.add()
            if isinstance(result, Unusable):
                bad.append((names[index], one_line(result, 200)))
                budget.add(*bad[-1])
            else:
                encoded[index] = encode(names[index], result)
        facts = {"run": self.run_id, "number": number, **left_out_facts(self.root, sorted(bad), self.data)}
        content = b"".join(encoded[index] for index in sorted(encoded))
        write_whole(self._file(number), seal(facts, content)[0])

    def _read_bad(self, number: int) -> Bad | None:
        """Returns the unreadable images of a part that an earlier call wrote.

        None if the part is missing or damaged, or an image that it leaves out can be read now.
        """
        with contextlib.suppress(OSError, *MISTAKES):
            facts, _, _ = read_sealed(self._file(number))
            own = (facts["run"], facts["number"]) == (self.run_id, number)
            if own and not some_usable(self.root, facts, self.data):
                return [(str(name), str(reason)) for name, reason in facts["bad"]]
        return None


class _BadBudget:
    """Counts unreadable images, and ends a run with too many of them."""

    def __init__(self, images: int, max_share: float, bad_list: Path, left_out: LeftOut):
        self.images, self.max_share, self.bad_list, self.left_out = images, max_share, bad_list, left_out

    def add(self, name: str, reason: str) -> None:
        self.left_out.add(name, reason)
        if exceeds(self.left_out.count, self.max_share, self.images):
            self.left_out.write(self.bad_list)
            share = fitting_share(self.left_out.count, self.images)
            fix = f"Replace them, or raise --max-bad-share (to {share:g} or more), and run the same command again."
            raise RunFailed(
                f"{self.left_out.count} of {self.images} images cannot be read so far, such as {escape(name)} "
                f"({reason}), where {self.max_share:.2%} may be left out: see {self.bad_list}. {fix}"
            )


class ImageProgress:
    """Prints the number of images, their speed and the time that is left, every few seconds and at the end.

    The first batch is not timed, because TensorFlow prepares the model in it.
    """

    def __init__(self, total: int, done: int, console: Console):
        self.total, self.done, self.untimed, self.console = total, done, done, console
        self.start = self.said = None

    def add(self) -> None:
        """Counts an image."""
        self.done += 1
        now = time.monotonic()
        if self.start is None or now - self.start < SAME_BATCH:
            self.untimed, self.start, self.said = self.done, self.start or now, now
        if now - self.said >= SAY_EVERY or self.done == self.total:
            text, self.said = f"image {self.done}/{self.total}", now
            if self.done > self.untimed:
                rate = (self.done - self.untimed) / (now - self.start)
                text += f"  {rate:.1f} images/s  ETA {duration((self.total - self.done) / rate)}"
            self.console.print(text)
