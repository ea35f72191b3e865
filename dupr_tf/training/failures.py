"""How a run ends early for a reason that lies in its data, its settings or its disk."""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Iterator
from pathlib import Path

NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class RunFailed(Exception):
    """A run that cannot go on. Its newest checkpoint is whole, and the same command goes on from there."""


@contextlib.contextmanager
def full_disk_told(run: Path) -> Iterator[None]:
    """Turns an `OSError` for want of room on the disk into a RunFailed that says so."""
    try:
        yield
    except OSError as error:
        if error.errno not in NO_ROOM:
            raise
        raise RunFailed(
            f"Expected room on the disk for {error.filename or run}, received: {error.strerror}. "
            "Fix: free some and run the same command again"
        ) from error
