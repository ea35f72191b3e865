"""What a pack reads and how far it is: the files in their order, the finished shards, the files left out."""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import hashlib
import itertools
import json
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from dupr_tf.data.images.listing import list_images
from dupr_tf.data.shard_files import MANIFEST, PROGRESS, Shard, read_manifest, write_manifest
from dupr_tf.errors import RunFailed, UserError
from dupr_tf.files import write_whole

BAD_IMAGES = "bad_images.tsv"


class PackFiles:
    """The files of a folder and the order they are packed in.

    Args:
        root, kind: as `list_images` has them.
        seed: of the order; None is that of the paths.
    """

    def __init__(self, root: str | Path, kind: str, seed: int | None):
        self.paths = list_images(root, kind)
        self.prefix = len(os.path.join(os.path.abspath(root), ""))
        self.sizes = np.fromiter(_sizes(self.paths), np.int64, len(self.paths))
        self.numbers = np.arange(len(self.paths)) if seed is None else self._order(seed)
        digest = hashlib.sha256()
        for path, size in zip(self.paths, self.sizes.tolist(), strict=True):
            digest.update(os.fsencode(f"{path[self.prefix :]}\0{size}\0"))
        self.facts = {"files": len(self.paths), "bytes": int(self.sizes.sum()), "sha256": digest.hexdigest()}

    def _order(self, seed):
        """Files by a hash of seed and name: the same in every version of every library."""
        names = (os.fsencode(f"{seed}\0{self.name(i)}") for i in range(len(self.paths)))
        keys = (hashlib.blake2b(name, digest_size=8).digest() for name in names)
        return np.argsort(np.fromiter(map(int.from_bytes, keys), np.uint64, len(self.paths)), kind="stable")

    def name(self, number: int) -> str:
        return self.paths[number][self.prefix :]


def _sizes(paths: list[str]) -> Iterator[int]:
    return map(_size, paths)


def _size(path: str) -> int:
    try:
        return Path(path).stat().st_size
    except OSError:  # a link to nothing: it will be named when it is read
        return 0


class ProgressLog:
    """The progress of a pack, a line at a time, each on the disk when `add` returns; a second pack is kept away.

    Args:
        path: of the file, which is there.
    """

    def __init__(self, path: Path):
        self._file = path.open("r+b")
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self.close()
            raise UserError(None, f"Another pack writes to {path.parent}.", "Wait until it ends.") from None

    def read_whole(self) -> bytes:
        """The whole lines; what a kill cut off counts as not written."""
        content = self._file.read()
        whole = content[: content.rfind(b"\n") + 1]
        self._file.seek(len(whole))
        self._file.truncate()
        return whole

    def add(self, line: bytes) -> None:
        self._file.write(line)
        self._file.flush()
        os.fsync(self._file.fileno())

    def close(self) -> None:
        self._file.close()


class PackJob:
    """The folder of the shards: what is finished, what was left out, and the lock that keeps a second pack away.

    Args:
        output: the folder.
        header: format, settings and source, which stand in the first line of the progress and in the manifest.
        max_bad_share: share of the files that may be unreadable.
    """

    def __init__(self, output: Path, header: dict, max_bad_share: float):
        self.output, self.header, self.max_bad_share = output, header, max_bad_share
        self.files, self.per_shard = header["source"]["files"], header["settings"]["images_per_shard"]
        self.shard_count = -(-self.files // self.per_shard)
        self.finished: dict[int, Shard] = {}
        self.bad_count = 0

    def __enter__(self):
        self.output.mkdir(parents=True, exist_ok=True)
        path = self.output / PROGRESS
        if not path.exists():
            write_whole(path, b"".join(_line(entry) for entry in self._beginning()))
        with contextlib.ExitStack() as stack:
            self._log = stack.enter_context(contextlib.closing(ProgressLog(path)))
            self._read_progress()
            stack.pop_all()
        return self

    def __exit__(self, *_):
        self._log.close()
        for temporary in self.output.glob("shard-*.tmp"):
            temporary.unlink()

    def _beginning(self) -> list[dict]:
        """The lines of a progress that begins: of a finished pack, its shards, so that only missing ones follow."""
        if (self.output / MANIFEST).exists():
            facts, shards = read_manifest(self.output)
            self._check_header({name: facts[name] for name in self.header})
            return [self.header, *map(dataclasses.asdict, self._with_bad(shards))]
        if any(not path.name.startswith(("shard-", BAD_IMAGES, MANIFEST)) for path in self.output.iterdir()):
            raise UserError("--output", f"{self.output} has other files.", "Choose an empty folder.")
        return [self.header]

    def _with_bad(self, shards: list[Shard]) -> Iterator[Shard]:
        """The shards of a manifest with the files they left out, which are in `bad_images.tsv`."""
        bad = iter(read_bad_images(self.output))
        for shard in shards:
            span = self.span(shard.number)
            left_out = span.stop - span.start - shard.images
            yield dataclasses.replace(shard, bad=tuple(itertools.islice(bad, left_out)))

    def _read_progress(self) -> None:
        try:
            header, *lines = map(json.loads, self._log.read_whole().splitlines())
            shards = [Shard(**{**entry, "bad": tuple(map(tuple, entry["bad"]))}) for entry in lines]
        except (ValueError, TypeError, KeyError):
            raise UserError(
                None, f"{self.output / PROGRESS} is damaged.", "Remove it, and all shards are written again."
            ) from None
        self._check_header(header)
        self.finished = {shard.number: shard for shard in shards if self._is_there(shard)}
        self.bad_count = len(self.bad())

    def _check_header(self, header: dict) -> None:
        if header != self.header:
            raise UserError(
                "--output",
                f"{self.output} was packed with other {_changes(header, self.header)}.",
                "Use the same again, or choose another folder.",
            )

    def _is_there(self, shard: Shard) -> bool:
        path = self.output / shard.file
        return path.is_file() and path.stat().st_size == shard.bytes and (self.output / shard.index).is_file()

    def span(self, number: int) -> slice:
        """The places of the order a shard takes."""
        return slice(number * self.per_shard, min((number + 1) * self.per_shard, self.files))

    def note(self, shard: Shard) -> None:
        """Counts a shard as finished, on the disk too."""
        self.finished[shard.number] = shard
        self.bad_count += len(shard.bad)
        self._log.add(_line(dataclasses.asdict(shard)))

    def bad(self) -> list[tuple[str, str]]:
        return [pair for number in sorted(self.finished) for pair in self.finished[number].bad]

    def check_bad(self, more: list[tuple[str, str]]) -> None:
        """Raises RunFailed, the list written, once more files are unreadable than may be."""
        count = self.bad_count + len(more)
        if count > self.max_bad_share * self.files:
            write_bad_images(self.output, self.bad() + more)
            raise RunFailed(
                f"{count} of {self.files} images are unreadable, where {self.max_bad_share:.2%} may be; they are "
                f"listed in {self.output / BAD_IMAGES}. Mend or remove them, or pass --max-bad-share 0.1."
            )

    def finish(self) -> list[Shard]:
        """Writes the list of unreadable files, then the manifest, then removes the progress; returns the shards."""
        shards, bad = [self.finished[n] for n in range(self.shard_count)], self.bad()
        if len(bad) == self.files:
            raise RunFailed(
                f"None of {self.files} files can be decoded; the first is {bad[0][0]} ({bad[0][1]}). "
                "Pass a folder of photos."
            )
        write_bad_images(self.output, bad)
        write_manifest(self.output, self.header, shards)
        (self.output / PROGRESS).unlink()
        return shards


def write_bad_images(output: Path, bad: list[tuple[str, str]]) -> None:
    """`bad_images.tsv`: name and reason; backslash, tab and ends of lines are written as in Python strings."""
    rows = ("\t".join(text.translate(_ESCAPES) for text in pair) + "\n" for pair in [("name", "reason"), *bad])
    write_whole(output / BAD_IMAGES, os.fsencode("".join(rows)))


def read_bad_images(output: str | Path) -> list[tuple[str, str]]:
    """(name, reason) of each file `pack` left out."""
    rows = os.fsdecode((Path(output) / BAD_IMAGES).read_bytes()).split("\n")[1:-1]
    return [tuple(_unescaped(text) for text in row.split("\t")) for row in rows]


_ESCAPES = str.maketrans({"\\": r"\\", "\t": r"\t", "\n": r"\n", "\r": r"\r"})


def _unescaped(text: str) -> str:
    pieces = [piece.replace(r"\t", "\t").replace(r"\n", "\n").replace(r"\r", "\r") for piece in text.split(r"\\")]
    return "\\".join(pieces)


def _changes(old: dict, new: dict) -> str:
    before, after = old["settings"], new["settings"]
    changed = [name for name in {**before, **after} if before.get(name) != after.get(name)]
    if not changed:
        return "images (their number, names or sizes changed)"
    return " and ".join(f"{name} ({before.get(name)} -> {after.get(name)})" for name in changed)


def _line(entry: dict) -> bytes:
    return json.dumps(entry).encode() + b"\n"
