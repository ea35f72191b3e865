"""How a run ends early for a reason that lies in its data, its settings or its disk."""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Iterator
from pathlib import Path

NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


LOST = 75  # exit code of a run that lost a worker; sysexits.h has it as "try again"


class RunFailed(Exception):
    """A run that cannot go on. Its newest checkpoint is whole, and the same command goes on from there.

    Attributes:
        code: exit code of the command.
    """

    code = 1


class WorkerLost(RunFailed):
    """A run of several workers that one of them has left."""

    code = LOST


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
