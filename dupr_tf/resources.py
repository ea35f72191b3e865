"""Tells how many processors and how much memory this process may use."""

import math
import os
import re
from collections.abc import Iterator
from pathlib import Path

CGROUP, OWN_GROUPS = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")  # limits of a container, a service or a job


def available_memory() -> int | None:
    """Return the bytes this process may still allocate: free memory, or what a limit leaves. None if unknown."""
    sizes = []
    try:
        lines = Path("/proc/meminfo").read_text(encoding="utf-8").splitlines()
        sizes += [1024 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable:")]
    except (OSError, ValueError):  # not Linux
        pass
    for group in _groups("memory"):
        for names in (("memory.max", "memory.current"), ("memory.limit_in_bytes", "memory.usage_in_bytes")):
            try:
                limit, used, parts = ((group / name).read_text(encoding="utf-8") for name in (*names, "memory.stat"))
                # The cache, which the kernel frees on demand. In version 1, `total_` includes the groups inside.
                cached, inside = (
                    re.findall(rf"^{word}(?:in)?active_file (\d+)$", parts, re.MULTILINE) for word in ("", "total_")
                )
                sizes.append(int(limit) - int(used) + sum(map(int, inside or cached)))
            except (OSError, ValueError):  # no such limit, or it is the word max
                continue
    return min(sizes, default=None)


def usable_cpus() -> int:
    """Return the number of processors that this process may use, by its affinity and its quotas."""
    counts = [len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1]
    for group in _groups("cpu"):
        for names in (("cpu.max",), ("cpu.cfs_quota_us", "cpu.cfs_period_us")):
            try:
                quota, period = " ".join((group / name).read_text(encoding="utf-8") for name in names).split()
                share = math.ceil(int(quota) / int(period))
            except (OSError, ValueError, ZeroDivisionError):  # no such limit, or it is the word max
                continue
            counts += [max(1, share)] if share > 0 else []  # -1 is no limit
    return min(counts)


def _groups(controller: str) -> Iterator[Path]:
    """Yields the folders of the control groups of this process, of versions 2 and 1, up to their roots."""
    yield CGROUP  # where a container sees its own group
    try:
        lines = OWN_GROUPS.read_text(encoding="utf-8", errors="surrogateescape").split("\n")
    except OSError:  # not Linux
        return
    for line in filter(None, lines):
        _, controllers, path = line.split(":", 2)
        if controllers and controller not in controllers.split(","):
            continue
        root = CGROUP / controller if controllers else CGROUP
        group = root / path.strip("/")
        yield from (folder for folder in (group, *group.parents) if folder.is_relative_to(root))
