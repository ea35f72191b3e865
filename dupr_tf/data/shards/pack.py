"""Packs a folder of images into shards. Whatever ends a pack, the same command resumes it, to the same bytes.

A shard is a function of files and settings alone: shard i takes the i-th stretch of the order. It is finished once its
sidecar is there, so a resumed pack looks for sidecars and writes the missing shards.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import hashlib
import itertools
import json
import logging
import os
import shutil
import time
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from dupr_tf.data.images.decode import Unusable
from dupr_tf.data.images.listing import list_images
from dupr_tf.data.shards.encode import encoder_version, packed_image
from dupr_tf.data.shards.manifest import FORMAT, MANIFEST, MAX_IMAGES, PROGRESS, Shard, read_manifest, read_sealed, seal
from dupr_tf.data.shards.read import import_array_record
from dupr_tf.errors import RunFailed, UserError, is_disk_full
from dupr_tf.files import publish, sha256_of, write_whole
from dupr_tf.text import duration, escape, one_line

log = logging.getLogger(__name__)
BAD_IMAGES = "bad_images.tsv"
AHEAD = 4  # images each worker may be ahead of the writer, which bounds the memory
REPORT_SECONDS = 10


@dataclasses.dataclass(frozen=True)
class PackSettings:
    """The settings that decide the bytes of the shards.

    Args:
        long_side: px; larger images are shrunk to it and stored as JPEG. None keeps the bytes of every file.
        quality: of those JPEGs, 1..100.
        images_per_shard: files a shard takes, at least 1.
        shuffle: whether files come in an order drawn from `seed` instead of that of their names.
        seed: of that order.
    """

    long_side: int | None = None
    quality: int = 95
    images_per_shard: int = 2000
    shuffle: bool = True
    seed: int = 0

    def __post_init__(self):
        for name, low, high in (("long_side", 16, 65500), ("quality", 1, 100), ("images_per_shard", 1, MAX_IMAGES)):
            value = getattr(self, name)
            if value is not None and not low <= value <= high:
                flag, fix = f"--{name.replace('_', '-')}", f"Pass {max(low, min(value, high))}."
                raise UserError(flag, f"Expected {low} to {high}, received {value}.", fix)


@dataclasses.dataclass(frozen=True)
class Packed:
    """The result of a pack: the shards, and (name, reason) of each file that is not in them."""

    shards: tuple[Shard, ...]
    written: int  # shards written by this call; the others were there
    bad: tuple[tuple[str, str], ...]

    @property
    def images(self) -> int:
        return sum(shard.images for shard in self.shards)


def pack(
    root: str | Path,
    output: str | Path,
    settings: PackSettings | None = None,
    workers: int | None = None,
    max_bad_share: float = 0.01,
) -> Packed:
    """Writes shards of a folder of images, their sidecars, `shards.json` and `bad_images.tsv`.

    Args:
        root: folder of images, or a COCO or VOC root.
        output: folder of the shards.
        settings: None takes the defaults.
        workers: threads that read, check and encode; None takes one a CPU.
        max_bad_share: share of the files that may be unreadable.

    Raises:
        UserError: no images, or an output of other files or settings.
        RunFailed: the disk is full, or too many images are unreadable.
    """
    workers = workers or os.cpu_count() or 1
    if not 0 <= max_bad_share <= 1:
        raise UserError("--max-bad-share", f"Expected 0 to 1, received {max_bad_share:g}.", "Pass 0.01.")
    if workers < 1:
        raise UserError("--workers", f"Expected at least 1, received {workers}.", "Pass 1.")
    import_array_record()
    job = _Job(root, Path(output), settings or PackSettings(), max_bad_share)
    with _locked(job.output, job.header):
        job.find_finished()
        try:
            return job.run(workers)
        except (OSError, RuntimeError) as error:  # ArrayRecord raises a RuntimeError with the system's message
            if not is_disk_full(error):
                raise
            raise job.no_room() from error


@contextlib.contextmanager
def _locked(output: Path, header: dict) -> Iterator[None]:
    """Holds the folder of the shards for this pack alone, and notes there what is packed."""
    import fcntl  # not on Windows, where there is no ArrayRecord either

    output.mkdir(parents=True, exist_ok=True)
    _check_output(output, header)
    with (output / PROGRESS).open("a+b") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(None, f"Another pack writes to {output}.", "Wait until it ends.") from None
        if not _check_output(output, header):  # again: another pack may have begun or ended in between
            file.truncate(0)
            file.write(seal(header)[0])
            file.flush()
            os.fsync(file.fileno())
        try:
            yield
        finally:
            for temporary in output.glob("*.tmp"):
                temporary.unlink()


def _check_output(output: Path, header: dict) -> bool:
    """Whether a folder says what is packed there. Raises UserError if that is something else, or it has other files."""
    names, facts = [path.name for path in output.iterdir()], None
    if MANIFEST in names:
        facts = read_manifest(output)[0]
    elif any(not name.startswith(("shard-", BAD_IMAGES, PROGRESS)) for name in names):
        raise UserError("--output", f"{output} has other files.", "Choose an empty folder.")
    with contextlib.suppress(FileNotFoundError, ValueError):  # a kill came before it was written
        facts = facts or read_sealed(output / PROGRESS)[0]
    if facts and any(facts.get(name) != header[name] for name in header):
        problem = f"{output} was packed with other {_changes(facts['settings'], header['settings'])}."
        raise UserError("--output", problem, "Use the same again, or choose another folder.")
    return facts is not None


def _changes(old: dict, new: dict) -> str:
    changed = [name for name in {**old, **new} if old.get(name) != new.get(name)]
    pairs = " and ".join(f"{name} ({old.get(name)} -> {new.get(name)})" for name in changed)
    return pairs or "images (their number, names or sizes changed)"


class _Job:
    """What is packed, and what of it is finished.

    Args:
        root: of the images.
        output: the folder of the shards.
        settings: of the pack.
        max_bad_share: share of the files that may be unreadable.
    """

    def __init__(self, root: str | Path, output: Path, settings: PackSettings, max_bad_share: float):
        self.output, self.settings = output, settings
        self.paths = list_images(root)
        self._prefix = len(os.path.join(os.path.abspath(root), ""))
        self.sizes = np.fromiter(map(_size, self.paths), np.int64, len(self.paths))
        digest = hashlib.sha256()
        for number, size in enumerate(self.sizes.tolist()):
            digest.update(os.fsencode(f"{self._name(number)}\0{size}\0"))
        facts = dataclasses.asdict(settings) | ({"encoder": encoder_version()} if settings.long_side else {})
        source = {"files": len(self.paths), "bytes": int(self.sizes.sum()), "sha256": digest.hexdigest()}
        self.header = {"format": FORMAT, "settings": facts, "source": source}
        self._id = seal(self.header)[1]
        order, step = self._order(), settings.images_per_shard
        self.parts = [order[first : first + step] for first in range(0, len(order), step)]  # files of each shard
        self.finished: dict[int, tuple[Shard, list]] = {}  # by number; with (name, reason) of the files left out
        self.max_bad_share, self._bad_count = max_bad_share, 0

    def _name(self, number: int) -> str:
        return self.paths[number][self._prefix :]

    def _order(self) -> np.ndarray:
        """Files by a hash of seed and name: the same in every version of every library."""
        if not self.settings.shuffle:
            return np.arange(len(self.paths))
        names = (os.fsencode(f"{self.settings.seed}\0{self._name(i)}") for i in range(len(self.paths)))
        keys = (hashlib.blake2b(name, digest_size=8).digest() for name in names)
        return np.argsort(np.fromiter(map(int.from_bytes, keys), np.uint64, len(self.paths)), kind="stable")

    def find_finished(self) -> None:
        """Looks for the shards that an earlier call wrote; a damaged one is written again."""
        for number in range(len(self.parts)):
            with contextlib.suppress(OSError, ValueError, KeyError):
                path = self.output / Shard(number).sidecar
                facts, found, _ = read_sealed(path)
                shard = Shard(number, facts["images"], facts["bytes"], facts["sha256"], found)
                whole = (self.output / shard.file).stat().st_size == shard.bytes
                if whole and (facts["pack"], facts["number"]) == (self._id, number):
                    self._note(shard, facts["bad"])

    def run(self, workers: int) -> Packed:
        """Writes the shards that are missing, and the manifest."""
        todo = [number for number in range(len(self.parts)) if number not in self.finished]
        if self.settings.long_side is None and shutil.disk_usage(self.output).free < self._missing_bytes():
            raise self.no_room()

        def encode(number: int) -> tuple[str, bytes | Unusable]:
            image = packed_image(self.paths[number], self.settings.long_side, self.settings.quality)
            return self._name(number), image

        numbers = (int(number) for shard in todo for number in self.parts[shard])
        with (
            ThreadPoolExecutor(workers) as pool,
            contextlib.closing(_in_order(pool, encode, numbers, workers * AHEAD)) as results,
        ):
            reported = _reported(results, sum(len(self.parts[shard]) for shard in todo))
            for shard in todo:
                self._write_shard(shard, itertools.islice(reported, len(self.parts[shard])))
        return Packed(tuple(self._finish()), len(todo), tuple(map(tuple, self._bad())))

    def _write_shard(self, number: int, images: Iterator) -> None:
        """Writes a shard, then its sidecar, under their names once they are on the disk."""
        path, lines, bad = self.output / Shard(number).file, [], []
        temporary = path.with_name(path.name + ".tmp")
        writer = import_array_record().ArrayRecordWriter(str(temporary), "group_size:1,uncompressed")
        with contextlib.closing(writer):
            for name, image in images:
                if isinstance(image, Unusable):
                    log.warning("skipped, %s: %s", image, escape(name))
                    bad.append([name, one_line(image, 200)])
                    self._check_bad(bad)
                    continue
                writer.write(image)
                lines.append(json.dumps([name, len(image), zlib.crc32(image)]) + "\n")
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        facts = {"images": len(lines), "bytes": temporary.stat().st_size, "sha256": sha256_of(temporary)}
        sealed, digest = seal({"pack": self._id, "number": number, **facts, "bad": bad}, "".join(lines).encode())
        publish(temporary, path)
        write_whole(self.output / Shard(number).sidecar, sealed)
        self._note(Shard(number, **facts, seal=digest), bad)

    def _note(self, shard: Shard, bad: list) -> None:
        self.finished[shard.number] = shard, bad
        self._bad_count += len(bad)

    def _bad(self) -> list:
        return [pair for number in sorted(self.finished) for pair in self.finished[number][1]]

    def _check_bad(self, more: list) -> None:
        """Raises RunFailed, the list written, once more files are unreadable than may be."""
        count, files = self._bad_count + len(more), len(self.paths)
        if count > self.max_bad_share * files:
            self._write_bad(self._bad() + more)
            raise RunFailed(
                f"{count} of {files} images are unreadable, where {self.max_bad_share:.2%} may be; they are "
                f"listed in {self.output / BAD_IMAGES}. Mend or remove them, or pass --max-bad-share 0.1."
            )

    def _write_bad(self, bad: list) -> None:
        rows = (f"{escape(name)}\t{reason}\n" for name, reason in bad)
        write_whole(self.output / BAD_IMAGES, "name\treason\n" + "".join(rows))

    def _finish(self) -> list[Shard]:
        """Writes the list of unreadable files, then the manifest, then removes the progress; returns the shards."""
        shards, bad = [self.finished[number][0] for number in range(len(self.parts))], self._bad()
        if len(bad) == len(self.paths):
            first = f"{escape(bad[0][0])} ({bad[0][1]})"
            raise RunFailed(f"None of {len(bad)} files can be decoded, such as {first}. Pass a folder of photos.")
        self._write_bad(bad)
        images = sum(shard.images for shard in shards)
        facts = {**self.header, "images": images, "shards": [shard.facts for shard in shards]}
        write_whole(self.output / MANIFEST, seal(facts)[0])
        (self.output / PROGRESS).unlink()
        return shards

    def _missing_bytes(self) -> int:
        """Bytes of the files that go into shards that are not finished."""
        return sum(int(self.sizes[part].sum()) for n, part in enumerate(self.parts) if n not in self.finished)

    def no_room(self) -> RunFailed:
        free = shutil.disk_usage(self.output).free
        return RunFailed(
            f"The disk is full: {self._missing_bytes():,} bytes do not fit in {self.output} ({free:,} bytes free). "
            "Finished shards are kept. Free some space and run the same command again."
        )


def _size(path: str) -> int:
    try:
        return os.stat(path).st_size
    except OSError:  # a link to nothing: it will be named when it is read
        return 0


def _in_order(pool: ThreadPoolExecutor, work, items: Iterator, ahead: int) -> Iterator:
    """Results of `work` in the order of the items, so many at a time."""
    running = collections.deque(pool.submit(work, item) for item in itertools.islice(items, ahead))
    try:
        while running:
            yield running.popleft().result()
            running.extend(pool.submit(work, item) for item in itertools.islice(items, 1))
    finally:
        for future in running:  # after an error, images that nobody waits for
            future.cancel()


def _reported(results: Iterator, total: int) -> Iterator:
    """Passes results on; every few seconds the log says how many there were."""
    start = reported = time.monotonic()
    for done, result in enumerate(results, 1):
        now = time.monotonic()
        if now - reported >= REPORT_SECONDS:
            reported, rate = now, done / (now - start)
            log.info(
                "%s of %s images, %.0f img/s, ETA %s", f"{done:,}", f"{total:,}", rate, duration((total - done) / rate)
            )
        yield result
