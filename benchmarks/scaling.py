"""Curves of time and memory against the numbers of replicas, keys in a bank, indexed images, and shards.

This is not a contest: each part is a curve. Each point is written after its measurement, so that a second start
measures only the missing ones. Remove scaling.json to measure all points again.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

from benchmarks.contest import ROOT
from dupr_tf.files import write_whole

# Values that one process measures one after the other; `replicas` needs a process for each value.
ORDERS = (
    *(("replicas", (count,)) for count in (1, 2, 4, 8)),
    ("bank keys", (1024, 4096, 16384, 65536, 262144)),
    ("indexed images", (10**4, 10**5, 10**6, 10**7)),
    ("names", (10**4, 10**5, 10**6)),
    ("shards", (10, 100, 1000, 10000)),
)
POINTS = ("-m", "benchmarks.scaling_points")
KINDS = (("seconds", "ms of a core", 1e3, 1e-3), ("mib", "MiB", 1, 0.1))  # curves: label, factor, smallest value
PICTURE = {"figsize": (8, 3), "dpi": 80, "layout": "constrained"}


def measure(output: Path, machine: str, commit: str | None, say=print) -> None:
    """Measures the missing points, prints them, and writes `scaling.json` and a picture of each part.

    Args:
        output: folder for them.
        machine, commit: noted with each point.
        say: gets lines for people.

    Raises:
        RuntimeError: a part failed; the message contains the end of its standard error.
    """
    path = output / "scaling.json"
    points = json.loads(path.read_text(encoding="utf-8")) if path.exists() else []
    for part, values in ORDERS:
        there = {point["value"] for point in points if point["part"] == part}
        for point in measured(part, [value for value in values if value not in there]):
            points.append({**point, "machine": machine, "commit": commit})
            write_whole(path, json.dumps(points, indent=1) + "\n")
            say(line_of(point))
    for part in dict(ORDERS):
        own = [point for point in points if point["part"] == part]
        say(f"{part}: {', '.join(f'{what} {slope}' for what, slope in slopes(own).items())}")
        draw(part, own, output / f"scaling_{part.replace(' ', '_')}.png")


def line_of(point: dict) -> str:
    """Returns a point as a line for people."""
    seconds = ", ".join(f"{what} {1e3 * value:.4g} ms" for what, value in point["seconds"].items())
    mib = ", ".join(f"{what} {value:,.1f} MiB" for what, value in point["mib"].items())
    return f"{point['part']} {point['value']:,}: {seconds}; memory {mib}"


def slopes(points: list[dict]) -> dict[str, str]:
    """Returns {quantity: its growth per unit of the part}, the slope of the least-squares line.

    Args:
        points: points of one part.
    """
    values = [point["value"] for point in points]
    found = {}
    for kind, unit, factor in (("seconds", "µs", 1e6), ("mib", "bytes", 2**20)):
        for what in points[0][kind] if len(points) > 1 else ():
            slope = np.polyfit(values, [point[kind][what] for point in points], 1)[0]
            found[f"{kind} of {what}" if kind == "seconds" else f"memory {what}"] = f"{factor * slope:.3g} {unit}"
    return found


def draw(part: str, points: list[dict], path: Path) -> None:
    """Draws a picture of a part: milliseconds on the left axis, MiB on the right."""
    from matplotlib.figure import Figure

    figure = Figure(**PICTURE)
    values = [point["value"] for point in points]
    for axes, (kind, unit, factor, least) in zip(figure.subplots(1, 2), KINDS, strict=True):
        for what in points[0][kind]:
            axes.plot(values, [max(least, factor * point[kind][what]) for point in points], "o-", label=what)
        axes.set(xscale="log", yscale="log", xlabel=part, ylabel=unit)
        axes.set_xticks(values, [f"{value:,}" for value in values])
        axes.minorticks_off()
        axes.set_ylim(axes.get_ylim()[0] / 2, 4 * axes.get_ylim()[1])  # room for the legend
        axes.grid(alpha=0.3)
        axes.legend(fontsize="x-small", ncols=2, loc="upper left")
    figure.savefig(path)


def measured(part, values):
    """Yields the points of a part as its process prints them."""
    if not values:
        return
    command = [sys.executable, *POINTS, part, *map(str, values)]
    with tempfile.TemporaryFile("w+") as errors:
        with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=errors, text=True) as process:
            for line in process.stdout:
                if line.startswith("{"):
                    yield json.loads(line)
        if process.returncode:
            errors.seek(0)
            raise RuntimeError(f"{part} ended: {errors.read().strip()[-2000:]}")
