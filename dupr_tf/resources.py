"""Tells how many processors and how much memory this process may use."""

import math
import os
import re
from pathlib import Path

CGROUP = Path("/sys/fs/cgroup")  # limits of a container


def available_memory() -> int | None:
    """Return the bytes this process may still allocate: free memory, or a container's limit. None if unknown."""
    sizes = []
    try:
        lines = Path("/proc/meminfo").read_text(encoding="utf-8").splitlines()
        sizes += [1024 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable:")]
        limit, used, parts = (
            (CGROUP / f"memory.{name}").read_text(encoding="utf-8") for name in ("max", "current", "stat")
        )
        cached = re.findall(r"^(?:in)?active_file (\d+)$", parts, re.MULTILINE)  # which the kernel frees on demand
        sizes.append(int(limit) - int(used) + sum(map(int, cached)))
    except (OSError, ValueError):  # not Linux, no such container, or its limit is the word max
        pass
    return min(sizes, default=None)


def usable_cpus() -> int:
    """Return the number of processors that this process may use, by its affinity and a container's quota."""
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = (CGROUP / "cpu.max").read_text(encoding="utf-8").split()
        return max(1, min(count, math.ceil(int(quota) / int(period))))
    except (OSError, ValueError, ZeroDivisionError):  # no such container, or its quota is the word max
        return count
