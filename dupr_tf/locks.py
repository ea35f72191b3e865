"""Locks the output of a command for one process, and reports failed writes in one line.

The system frees the lock of a process that dies. The lock file remains, and the next process takes it over.
"""

from __future__ import annotations

import contextlib
import contextvars
import datetime
import json
import logging
import os
import socket
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout

from dupr_tf.errors import UserError, reporting_failed_writes
from dupr_tf.files import read_bounded

log = logging.getLogger(__name__)
LOCK_FILE = ".dupr_tf.lock"  # name in the folder
PATIENCE = 0.3  # seconds between two attempts, in which a holder that is about to end removes the file
_held: contextvars.ContextVar[frozenset[Path]] = contextvars.ContextVar("held", default=frozenset())


@contextlib.contextmanager
def locked(output: Path, beside: bool = False) -> Iterator[None]:
    """Locks the output of a command for this process. Creates its folder, and removes it at the end if it is empty.

    A thread that already holds the lock may enter again.

    Args:
        output: a folder.
        beside: True for a file, or a folder that is renamed into place. The lock file is then in the parent folder.

    Raises:
        UserError: another process holds the lock.
        RunFailed: a file could not be written.
    """
    folder, name = (output.absolute().parent, f".{output.name}.lock") if beside else (output, LOCK_FILE)
    with reporting_failed_writes(output):
        made = _make(folder)
        try:
            with _held_by_us(folder / name, output):
                yield
        finally:
            for path in made:
                with contextlib.suppress(OSError):  # it is no longer empty
                    path.rmdir()


@contextlib.contextmanager
def waiting_lock(path: Path, doing: str) -> Iterator[None]:
    """Holds a lock file, after waiting for another process that holds it. The file remains.

    Args:
        path: the lock file; its folder exists.
        doing: what the other process does, for the message: "downloads imagenet".
    """
    lock = FileLock(path)
    try:
        lock.acquire(timeout=PATIENCE)
    except Timeout:
        log.info("waiting for another process that %s", doing)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


@contextlib.contextmanager
def _held_by_us(path: Path, output: Path) -> Iterator[None]:
    key = path.parent.resolve() / path.name
    if key in _held.get():
        yield
        return
    lock = FileLock(path)
    try:
        lock.acquire(timeout=PATIENCE)
    except Timeout:
        raise UserError("--output", f"{output} is in use by {_holder(path)}.", _FIX) from None
    token = _held.set(_held.get() | {key})
    try:
        path.write_text(json.dumps(_description()), encoding="utf-8")
        yield
    finally:
        _held.reset(token)
        with contextlib.suppress(OSError):  # the folder may be gone
            path.unlink(missing_ok=True)  # while locked, so that a process that waits for it tries again
        lock.release()


_FIX = "Wait until that process ends, or choose another --output."


def _description() -> dict:
    started = datetime.datetime.now().astimezone().isoformat(" ", "seconds")
    return {"process": os.getpid(), "host": socket.gethostname(), "started": started}


def _holder(path: Path) -> str:
    """Describes the process that holds a lock."""
    try:
        content = json.loads(read_bounded(path, 1000))
        return f"process {int(content['process'])} on {content['host']!s:.100}, started {content['started']!s:.40}"
    except (OSError, ValueError, LookupError, TypeError):
        return "another process"


def _make(folder: Path) -> list[Path]:
    """Creates a folder and returns the folders that were missing, the innermost first."""
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    return missing
