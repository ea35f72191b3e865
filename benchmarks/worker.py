"""Runs one contestant: `python -m benchmarks.worker '{"build": "module:function", "options": {…}, "cores": [0]}'`.

The process writes one JSON line when it is ready and one for each line it reads. It ends when its input ends.
"""

from __future__ import annotations

import importlib
import json
import os
import resource
import sys
import time
from pathlib import Path

from dupr_tf.light import save_memory

MIB = 1 << 20
STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def main(order: dict) -> None:
    answers, sys.stdout = sys.stdout, sys.stderr  # what libraries print must not be taken for an answer
    if order.get("cores"):
        os.sched_setaffinity(0, order["cores"])  # before any library counts the cores
    module, _, function = order["build"].partition(":")
    if module.endswith("_ours"):
        save_memory()  # as in the commands
    build = getattr(importlib.import_module(module), function)
    work = build(**order["options"])
    before = forget_peak()

    prepare = getattr(work, "prepare", lambda: None)

    def repeat():
        prepare()
        start = time.perf_counter()
        done = work()
        return {"rate": done / (time.perf_counter() - start), "peak_mib": peak_mib(), "built_mib": before}

    repeat()  # traces, compiles, fills caches
    print(json.dumps({"ready": True, **getattr(work, "facts", {})}), file=answers, flush=True)
    for _ in sys.stdin:
        print(json.dumps(repeat()), file=answers, flush=True)


def peak_mib() -> float:
    """Returns the peak memory since `forget_peak`, or since the start where the system cannot reset it."""
    if STATUS.exists():
        return _status_mib("VmHWM")
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / MIB


def forget_peak() -> float:
    """Resets the peak to the memory held now, and returns that."""
    if not STATUS.exists():
        return peak_mib()
    CLEAR.write_text("5")
    return _status_mib("VmRSS")


def _status_mib(field: str) -> float:
    (line,) = (line for line in STATUS.read_text().splitlines() if line.startswith(field + ":"))
    return int(line.split()[1]) / 1024


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
