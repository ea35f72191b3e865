"""Packs a folder of images into shards. After any interruption the same command resumes, with the same bytes.

A shard is a function of files and settings alone: shard i takes the i-th stretch of the order. A shard is finished once
its sidecar exists, so a resumed pack looks for sidecars and writes the missing shards.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import itertools
import json
import logging
import os
import shutil
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path

from dupr_tf.data.images.bad_images import FLAGS, LeftOut, advice
from dupr_tf.data.images.decode import MAX_PIXELS, Unusable
from dupr_tf.data.images.listing import list_images
from dupr_tf.data.images.source import map_in_order
from dupr_tf.data.shards.encode import encoder_version, packed_image
from dupr_tf.data.shards.index import FORMAT, MANIFEST, MAX_IMAGES, PROGRESS, Shard, read_manifest, read_sealed, seal
from dupr_tf.data.shards.read import import_array_record
from dupr_tf.errors import RunFailed, UserError, is_disk_full
from dupr_tf.files import local_path, publish, sha256_of, write_whole
from dupr_tf.locks import LOCK_FILE, locked
from dupr_tf.records import MISTAKES
from dupr_tf.resources import usable_cpus
from dupr_tf.text import escape, one_line
from dupr_tf.values import exceeds

log = logging.getLogger(__name__)
BAD_IMAGES = "bad_images.tsv"
Files = list[tuple[str, int]]  # name and bytes
Finished = dict[int, Shard]  # by number


@dataclasses.dataclass(frozen=True)
class PackSettings:
    """Holds the settings that decide the bytes of the shards.

    Args:
        long_side: px; larger images are shrunk to it and stored as JPEG. None keeps the bytes of every file.
        quality: quality of those JPEGs, 1..100.
        images_per_shard: files in a shard, at least 1.
        shuffle: whether the order of files is drawn from `seed`. Otherwise they are sorted by name.
        seed: seed of that order.
        max_pixels: an image with more pixels is left out.
        depth: `data.depth`, for deeper images that are shrunk.
    """

    long_side: int | None = None
    quality: int = 95
    images_per_shard: int = 2000
    shuffle: bool = True
    seed: int = 0
    max_pixels: int = MAX_PIXELS
    depth: str = "full"

    def __post_init__(self):
        for name, low, high in (
            ("long_side", 16, 65500),
            ("quality", 1, 100),
            ("images_per_shard", 1, MAX_IMAGES),
            ("max_pixels", 1, 1 << 32),
        ):
            value = getattr(self, name)
            if value is not None and not low <= value <= high:
                flag, fix = f"--{name.replace('_', '-')}", f"Pass {max(low, min(value, high))}."
                raise UserError(flag, f"Expected {low} to {high}, received {value}.", fix)


@dataclasses.dataclass(frozen=True)
class Packed:
    """Holds the result of a pack: the shards, and the number of files that are not in them.

    `bad` has (name, reason) of those files, at most `MOST_LISTED`.
    """

    shards: tuple[Shard, ...]
    written: int  # shards written by this call; the others existed
    left_out: int
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
        settings: settings of the shards. None takes the defaults.
        workers: threads that read, check and encode. Default: one for each usable CPU.
        max_bad_share: share of the files that may be unreadable.

    Raises:
        UserError: there are no images, or the output has other files or settings.
        RunFailed: the disk is full, or too many images are unreadable.
    """
    workers = workers or usable_cpus()
    _check_arguments(workers, max_bad_share)
    import_array_record()
    settings, output = settings or PackSettings(), local_path(output, "output")
    paths, root = list_images(root), os.path.join(os.path.abspath(local_path(root)), "")
    files = [(path[len(root) :], _size(path)) for path in paths]
    header, parts = _header(files, settings), _parts(files, settings)

    def encode(file: tuple[str, int]) -> tuple[str, bytes | Unusable]:
        return file[0], packed_image(
            root + file[0], settings.long_side, settings.quality, settings.max_pixels, settings.depth
        )

    with _locked(output, header):
        finished, left_out = _finished(output, len(parts), seal(header)[1])
        missing = [number for number in range(len(parts)) if number not in finished]
        if settings.long_side is None and shutil.disk_usage(output).free < _missing_bytes(parts, finished):
            raise _no_room(output, parts, finished)
        todo = (file for number in missing for file in parts[number])
        with _write_errors(output, parts, finished):
            with contextlib.closing(map_in_order(encode, todo, workers)) as images:
                for number in missing:
                    part = itertools.islice(images, len(parts[number]))
                    finished[number] = _write_shard(output, header, number, part, left_out, max_bad_share)
                    log.info("wrote %s: %d of %d shards", Shard(number).file, len(finished), len(parts))
            _finish(output, header, finished, left_out)
    shards = tuple(finished[number] for number in range(len(parts)))
    return Packed(shards, len(missing), left_out.count, tuple(left_out.listed))


def _check_arguments(workers: int, max_bad_share: float) -> None:
    if not 0 <= max_bad_share <= 1:
        raise UserError("--max-bad-share", f"Expected 0 to 1, received {max_bad_share:g}.", "Pass 0.01.")
    if workers < 1:
        raise UserError("--workers", f"Expected at least 1, received {workers}.", "Pass 1.")


def _parts(files: Files, settings: PackSettings) -> list[Files]:
    """Splits the files into those of each shard, in the order of the settings."""
    if settings.shuffle:  # a hash gives the same order in every version of every library
        prefix = f"{settings.seed}\0"
        files = sorted(files, key=lambda file: hashlib.blake2b(os.fsencode(prefix + file[0]), digest_size=8).digest())
    step = settings.images_per_shard
    return [files[first : first + step] for first in range(0, len(files), step)]


@contextlib.contextmanager
def _write_errors(output: Path, parts: list[Files], finished: Finished) -> Iterator[None]:
    """Turns a full disk and ArrayRecord's errors into RunFailed, with the bytes that are missing by then."""
    try:
        yield
    except (OSError, RuntimeError) as error:  # ArrayRecord raises a RuntimeError with the system's message
        if is_disk_full(error):
            raise _no_room(output, parts, finished) from error
        if isinstance(error, OSError):
            raise
        raise RunFailed(f"{output} could not be written ({one_line(error, 120)}). Check the folder.") from error


def _size(path: str) -> int:
    try:
        return os.stat(path).st_size
    except OSError:  # a broken link is reported when it is read
        return 0


def _header(files: Files, settings: PackSettings) -> dict:
    """Returns the facts about images and settings that a resumed pack must share."""
    digest = hashlib.sha256()
    for name, size in files:
        digest.update(os.fsencode(f"{name}\0{size}\0"))
    facts = dataclasses.asdict(settings) | ({"encoder": encoder_version()} if settings.long_side else {})
    source = {"files": len(files), "bytes": sum(size for _, size in files), "sha256": digest.hexdigest()}
    return {"format": FORMAT, "settings": facts, "source": source}


@contextlib.contextmanager
def _locked(output: Path, header: dict) -> Iterator[None]:
    """Locks the folder of the shards for this pack, and records there what is packed."""
    with locked(output):
        if not _check_output(output, header):
            write_whole(output / PROGRESS, seal(header)[0])
        try:
            yield
        finally:
            for temporary in output.glob("shard-*.tmp"):
                temporary.unlink()


def _check_output(output: Path, header: dict) -> bool:
    """Returns whether a folder records what is packed there. Raises UserError if it holds other files."""
    names, facts = [path.name for path in output.iterdir()], None
    if MANIFEST in names:
        facts = read_manifest(output)[0]
    elif any(not name.startswith(("shard-", BAD_IMAGES, PROGRESS, LOCK_FILE)) for name in names):
        raise UserError("--output", f"{output} has other files.", "Choose an empty folder.")
    with contextlib.suppress(FileNotFoundError, ValueError):  # a kill came before the record was written
        facts = facts or read_sealed(output / PROGRESS)[0]
    if facts and any(facts.get(name) != header[name] for name in header):
        problem = f"{output} was packed with other {_changes(facts['settings'], header['settings'])}."
        raise UserError("--output", problem, "Use the same again, or choose another folder.")
    return facts is not None


def _changes(old: dict, new: dict) -> str:
    changed = [name for name in {**old, **new} if old.get(name) != new.get(name)]
    pairs = " and ".join(f"{name} ({old.get(name)} -> {new.get(name)})" for name in changed)
    return pairs or "images (their number, names or sizes changed)"


def _finished(output: Path, count: int, pack_id: str) -> tuple[Finished, LeftOut]:
    """Returns the shards that an earlier call wrote, and their unusable files. A damaged shard is written again."""
    finished, left_out = {}, LeftOut()
    for number in range(count):
        with contextlib.suppress(OSError, *MISTAKES):
            facts, digest, _ = read_sealed(output / Shard(number).sidecar)
            shard = Shard(number, facts["images"], facts["bytes"], facts["sha256"], digest)
            whole = (output / shard.file).stat().st_size == shard.bytes
            if whole and (facts["pack"], facts["number"]) == (pack_id, number):
                for name, reason in [(str(name), str(reason)) for name, reason in facts["bad"]]:
                    left_out.add(name, reason, earlier=True)
                finished[number] = shard
    return finished, left_out


def _write_shard(
    output: Path, header: dict, number: int, images: Iterable, left_out: LeftOut, max_bad_share: float
) -> Shard:
    """Writes a shard, then its sidecar. Each gets its final name once it is on the disk.

    Args:
        images: (name, bytes or why it cannot be used) of each file of the shard.
        left_out: the files that other shards leave out. Those of this shard are added.
        max_bad_share: share of the files of all shards that may be left out.
    """
    path, lines, bad = output / Shard(number).file, [], []
    temporary = path.with_name(path.name + ".tmp")
    writer = import_array_record().ArrayRecordWriter(str(temporary), "group_size:1,uncompressed")
    with contextlib.closing(writer):
        for name, image in images:
            if not isinstance(image, Unusable):
                writer.write(image)
                lines.append(json.dumps([name, len(image), zlib.crc32(image)]) + "\n")
                continue
            bad.append((name, one_line(image, 200)))
            left_out.add(*bad[-1])
            if exceeds(left_out.count, max_bad_share, header["source"]["files"]):
                raise _too_many(output, left_out, header["source"]["files"])
    with temporary.open("rb") as file:
        os.fsync(file.fileno())
    facts = {"images": len(lines), "bytes": temporary.stat().st_size, "sha256": sha256_of(temporary)}
    sidecar = {"pack": seal(header)[1], "number": number, **facts, "bad": bad}
    sealed, digest = seal(sidecar, "".join(lines).encode())
    publish(temporary, path)
    write_whole(output / Shard(number).sidecar, sealed)
    return Shard(number, **facts, seal=digest)


def _too_many(output: Path, left_out: LeftOut, files: int) -> RunFailed:
    left_out.write(output / BAD_IMAGES)
    fix = advice((reason for _, reason in left_out.listed), files, FLAGS, count=left_out.count)
    return RunFailed(f"{left_out.count} of {files} images are unreadable, listed in {output / BAD_IMAGES}. {fix}")


def _finish(output: Path, header: dict, finished: Finished, left_out: LeftOut) -> None:
    """Writes the list of unreadable files and then the manifest, and removes the record of progress."""
    shards = [finished[number] for number in sorted(finished)]
    if left_out.count == header["source"]["files"]:
        name, reason = left_out.listed[0]
        first = f"{escape(name)} ({reason})"
        raise RunFailed(f"None of {left_out.count} files can be decoded, such as {first}. Pass a folder of photos.")
    left_out.write(output / BAD_IMAGES)
    facts = {"images": sum(shard.images for shard in shards), "shards": [shard.facts for shard in shards]}
    write_whole(output / MANIFEST, seal({**header, **facts})[0])
    (output / PROGRESS).unlink(missing_ok=True)


def _missing_bytes(parts: list[Files], finished: Finished) -> int:
    """Returns the bytes of the files in unfinished shards."""
    return sum(size for number, part in enumerate(parts) if number not in finished for _, size in part)


def _no_room(output: Path, parts: list[Files], finished: Finished) -> RunFailed:
    return RunFailed(
        f"The disk is full: {_missing_bytes(parts, finished):,} bytes do not fit in {output} "
        f"({shutil.disk_usage(output).free:,} bytes free). Finished shards are kept. "
        "Free some space and run the same command again."
    )
