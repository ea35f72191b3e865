"""Downloads public weights into a cache, once, and checks their hashes.

A file lies in the folder `weights` of the cache, by default the user's cache folder of the system; the environment
variable `DUPR_CACHE` names another. Beside it:

| file | contents |
|---|---|
| NAME.json | address, sha256, size and date of the first download, which later downloads are compared with |
| NAME.part, NAME.part.tag | an unfinished download, and the server's tag of it; the next attempt resumes it |
| NAME.lock | held by the process that downloads; others wait for it |

pooch transfers the bytes. Nothing is contacted if the file is in the cache.
"""

from __future__ import annotations

import datetime
import functools
import hashlib
import json
import logging
import os
from pathlib import Path

from dupr_tf.errors import RunFailed, reporting_failed_writes
from dupr_tf.files import local_path, open_file, publish, sha256_of, write_whole
from dupr_tf.locks import waiting_lock
from dupr_tf.records import digest, read_record, text, whole
from dupr_tf.weights.catalogue import Remote
from dupr_tf.weights.transfer import discard, tag_file, transfer

log = logging.getLogger(__name__)
CACHE_VARIABLE = "DUPR_CACHE"


def cache_folder() -> Path:
    """Returns the folder of downloaded weights, which may not exist yet."""
    chosen = os.environ.get(CACHE_VARIABLE)
    if chosen:
        return local_path(chosen, CACHE_VARIABLE) / "weights"
    import pooch

    return Path(pooch.os_cache("dupr_tf")) / "weights"


def cached_file(remote: Remote) -> Path:
    """Returns the place of a file in the cache; the name starts with a hash of its address."""
    return cache_folder() / f"{hashlib.sha256(remote.url.encode()).hexdigest()[:12]}-{remote.file}"


def fetch(remote: Remote) -> Path:
    """Returns the file in the cache, and downloads it first if it is not there.

    Args:
        remote: the file, from `find_public`.

    Raises:
        UserError: there is no public file at the address.
        RunFailed: the server cannot be reached, the hash is wrong (the download is then removed), a cached file was
            changed, or the disk is full.
    """
    file = cached_file(remote)
    with reporting_failed_writes(file):
        if not file.is_file():
            file.parent.mkdir(parents=True, exist_ok=True)
            with waiting_lock(file.with_name(f"{file.name}.lock"), f"downloads {remote.name}"):
                if not file.is_file():
                    _download(remote, file)
        _check_cached(remote, file)
    return file


def origin_of(remote: Remote) -> dict[str, str]:
    """Returns `{"url": …, "file_sha256": …}` of a fetched file, for the record of a run."""
    return {"url": remote.url, "file_sha256": _read_record(_record_of(cached_file(remote)))["sha256"]}


def _download(remote: Remote, file: Path) -> None:
    part, record = file.with_name(f"{file.name}.part"), _record_of(file)
    log.info("downloading %s from %s", remote.name, remote.contacted)
    announced = transfer(remote, part)
    expected = [("published", remote.published), ("announced by the hub", announced and f"sha256:{announced}")]
    for origin, wanted in expected:
        if wanted is not None and not _has_hash(part, wanted):
            discard(part)
            raise RunFailed(
                f"The file at {remote.url} was removed: its hash is not the one {origin} ({wanted}). Try again; if it "
                "stays so, the file has changed or something on the way changes it."
            )
    sha256 = sha256_of(part)
    if os.path.lexists(record):
        _compare_with_first(remote, part, record, sha256)
    else:
        _write_record(remote, record, part, sha256)
    publish(part, file)
    tag_file(part).unlink(missing_ok=True)
    if remote.published is None and announced is None:
        log.info("no hash of %s is published; its sha256 is %s, and later downloads must have it", remote.name, sha256)


def _compare_with_first(remote: Remote, part: Path, record: Path, sha256: str) -> None:
    """Raises RunFailed if a download differs from the first one of the same address."""
    first = _read_record(record)
    if first["sha256"] != sha256:
        discard(part)
        raise RunFailed(
            f"The file at {remote.url} was removed: it is not the one of {first['downloaded'][:10]} (sha256 "
            f"{first['sha256']}, now {sha256}). If the change is right, remove {record}."
        )


def _check_cached(remote: Remote, file: Path) -> None:
    """Compares a file in the cache with its record. A file without one, copied by hand, gets one."""
    record, sha256 = _record_of(file), _digest(file, *_stamp(file))
    if not os.path.lexists(record):
        if remote.published is not None and not _has_hash(file, remote.published):
            raise RunFailed(f"{file} has not the published hash ({remote.published}). Remove it to download it again.")
        _write_record(remote, record, file, sha256)
    elif _read_record(record)["sha256"] != sha256:
        raise RunFailed(f"{file} is damaged or was changed since its download. Remove it to download it again.")


def _has_hash(path: Path, wanted: str) -> bool:
    """Returns True if a file has a hash of which the first digits are known: "sha256:0676ba61"."""
    algorithm, _, digits = wanted.partition(":")
    with open_file(path) as file:
        return hashlib.file_digest(file, algorithm).hexdigest().startswith(digits)


def _stamp(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_size, status.st_mtime_ns


@functools.lru_cache(maxsize=64)
def _digest(path: Path, size: int, changed: int) -> str:
    """Returns the sha256 of a file; the other arguments tell a changed file apart."""
    return sha256_of(path)


def _record_of(file: Path) -> Path:
    return file.with_name(f"{file.name}.json")


def _read_record(path: Path) -> dict:
    def schema(value):
        whole(value["bytes"])
        return {"sha256": digest(value["sha256"]), "downloaded": text(value["downloaded"], 40)}

    return read_record(path, schema, "Remove it; the next download writes it again.")


def _write_record(remote: Remote, record: Path, file: Path, sha256: str) -> None:
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    content = {"url": remote.url, "sha256": sha256, "bytes": file.stat().st_size, "downloaded": now}
    write_whole(record, json.dumps(content, indent=2) + "\n")
