"""A folder of images into TFRecord shards. Run again after anything that ended it, it goes on, to the same bytes.

A shard is a function of files and settings alone: the i-th takes the i-th stretch of the order. So nothing needs to be
carried over a kill but which shards are finished, and missing ones are written again one by one.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import errno
import itertools
import logging
import os
import shutil
import time
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path

import numpy as np
import tensorflow as tf

from dupr_tf.data.encoding import Unreadable, encoder_version, packed_image
from dupr_tf.data.pack_progress import PackFiles, PackJob
from dupr_tf.data.shard_files import ENTRY, FORMAT, FRAME, Shard
from dupr_tf.errors import RunFailed, UserError, is_disk_full
from dupr_tf.files import publish, sha256_of

log = logging.getLogger(__name__)
AHEAD = 4  # images a worker may be ahead of the writer: what bounds the memory
REPORT_SECONDS = 10


@dataclasses.dataclass(frozen=True)
class PackSettings:
    """What decides the bytes of the shards, besides the files.

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
        for name, low, high in (("long_side", 16, 65500), ("quality", 1, 100), ("images_per_shard", 1, 10**6)):
            value = getattr(self, name)
            if value is not None and not low <= value <= high:
                flag = f"--{name.replace('_', '-')}"
                raise UserError(
                    flag, f"Expected {low} to {high}, received {value}.", f"Pass {max(low, min(value, high))}."
                )


@dataclasses.dataclass(frozen=True)
class Packed:
    """What a pack left: the shards, and the files that are not in them, with the reason."""

    shards: tuple[Shard, ...]
    written: int  # shards written now; the others were there
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
    kind: str = "auto",
) -> Packed:
    """Writes shards of a folder of images, their indices, `shards.json` and `bad_images.tsv`.

    Args:
        root: folder of images, or a COCO or VOC root.
        output: folder of the shards.
        settings: None takes the defaults.
        workers: threads that read, check and encode; None takes one a CPU.
        max_bad_share: share of the files that may be unreadable.
        kind: layout of root, as `list_images` has it.

    Raises:
        UserError: no images, or an output of other files or settings.
        RunFailed: the disk is full, or too many images are unreadable.
    """
    settings, output = settings or PackSettings(), Path(output)
    workers = workers or os.cpu_count() or 1
    if not 0 <= max_bad_share <= 1:
        raise UserError("--max-bad-share", f"Expected 0 to 1, received {max_bad_share:g}.", "Pass 0.01.")
    if workers < 1:
        raise UserError("--workers", f"Expected at least 1, received {workers}.", "Pass 1.")
    files = PackFiles(root, kind, settings.seed if settings.shuffle else None)
    job = PackJob(output, {"format": FORMAT, "settings": _facts(settings), "source": files.facts}, max_bad_share)
    with job, _full_disk_told(job, files):
        todo = [number for number in range(job.shard_count) if number not in job.finished]
        if settings.long_side is None:
            _check_room(output, _bytes_of(todo, job, files))
        _write_shards(job, files, todo, settings, workers)
        return Packed(tuple(job.finish()), len(todo), tuple(job.bad()))


def _facts(settings: PackSettings) -> dict:
    encoder = {} if settings.long_side is None else {"encoder": encoder_version()}
    return {**dataclasses.asdict(settings), **encoder}


def _write_shards(job: PackJob, files: PackFiles, todo: list[int], settings: PackSettings, workers: int) -> None:
    def work(number):
        return files.name(number), packed_image(files.paths[number], settings.long_side, settings.quality)

    spans = [job.span(number) for number in todo]
    numbers = (int(i) for span in spans for i in files.numbers[span])
    with ThreadPoolExecutor(workers) as pool:
        results = _in_order(pool, work, numbers, workers * AHEAD)
        with contextlib.closing(results):  # what is under way when an error comes is not waited for
            reported = _reported(results, sum(span.stop - span.start for span in spans))
            for number, span in zip(todo, spans, strict=True):
                job.note(_write_shard(job, job.output, number, itertools.islice(reported, span.stop - span.start)))


def _in_order(pool, work, items: Iterator, ahead: int) -> Iterator:
    """Results of `work` in the order of the items, so many at a time."""
    running = collections.deque(pool.submit(work, item) for item in itertools.islice(items, ahead))
    try:
        while running:
            yield running.popleft().result()
            running.extend(pool.submit(work, item) for item in itertools.islice(items, 1))
    finally:
        for future in running:
            future.cancel()


def _reported(results: Iterator, total: int) -> Iterator:
    """The results; every few seconds the log says how far they are."""
    start = told = time.monotonic()
    bad = 0
    for done, result in enumerate(results, 1):
        bad += isinstance(result[1], Unreadable)
        now = time.monotonic()
        if now - told >= REPORT_SECONDS:
            told, rate = now, done / (now - start)
            left = timedelta(seconds=round((total - done) / rate))
            log.info("%s of %s images, %.0f img/s, ETA %s, %d unreadable", f"{done:,}", f"{total:,}", rate, left, bad)
        yield result


def _write_shard(job: PackJob, folder: Path, number: int, images: Iterator) -> Shard:
    """Writes a shard and its index under their names once both are on the disk."""
    shard = Shard(number, 0, 0, "", "")
    temporary, index_temporary = (folder / f"{name}.tmp" for name in (shard.file, shard.index))
    entries, bad, size = [], [], 0
    with tf.io.TFRecordWriter(str(temporary)) as writer:
        for name, image in images:
            if isinstance(image, Unreadable):
                log.warning("skipped, %s: %s", image, name)
                bad.append((name, str(image)))
                job.check_bad(bad)
                continue
            record = example(name, image)
            writer.write(record)
            entries.append((size, FRAME[0] + record.index(image), len(image), zlib.crc32(image)))
            size += FRAME[0] + len(record) + FRAME[1]
    _sync(temporary, size)
    with index_temporary.open("wb") as file:
        np.save(file, np.array(entries, ENTRY))
        file.flush()
        os.fsync(file.fileno())
    shard = Shard(number, len(entries), size, sha256_of(temporary), sha256_of(index_temporary), tuple(bad))
    publish(temporary, job.output / shard.file)
    publish(index_temporary, job.output / shard.index)
    return shard


def example(name: str, image: bytes) -> bytes:
    """The `tf.train.Example` of an image, the same bytes each time."""

    def feature(value):
        return tf.train.Feature(bytes_list=tf.train.BytesList(value=[value]))

    features = {"image/encoded": feature(image), "image/filename": feature(os.fsencode(name))}
    return tf.train.Example(features=tf.train.Features(feature=features)).SerializeToString(deterministic=True)


def _sync(path: Path, size: int) -> None:
    """Puts a file on the disk; one that is not as large as what was written to it counts as a full disk."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
    if path.stat().st_size != size:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))


def _bytes_of(shards: list[int], job: PackJob, files: PackFiles) -> int:
    """Bytes of the files that go into some shards."""
    return sum(int(files.sizes[files.numbers[job.span(number)]].sum()) for number in shards)


def _check_room(output: Path, wanted: int) -> None:
    if shutil.disk_usage(output).free < wanted:
        raise _no_room(output, wanted)


def _no_room(output: Path, wanted: int) -> RunFailed:
    free = shutil.disk_usage(output).free
    return RunFailed(
        f"The disk is full: {wanted:,} bytes do not fit in {output} ({free:,} bytes free). Finished shards are kept. "
        "Free some space and run the same command again."
    )


@contextlib.contextmanager
def _full_disk_told(job: PackJob, files: PackFiles):
    """Turns the error of a full disk into a `RunFailed` that says how much is missing."""
    try:
        yield
    except (OSError, tf.errors.OpError) as error:
        if not is_disk_full(error):
            raise
        left = [n for n in range(job.shard_count) if n not in job.finished]
        raise _no_room(job.output, _bytes_of(left, job, files)) from error
