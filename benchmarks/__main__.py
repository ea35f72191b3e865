"""`python -m benchmarks NAME …`: measures, prints a table of medians and ratios, writes JSON."""

from __future__ import annotations

import argparse
import datetime
import importlib
import json
import os
import sys
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from benchmarks.contest import Case, Result, run_case
from dupr_tf.environment import commit, hardware

NAMES = ("step", "loss", "roi_align", "input", "photometric", "pack", "detector", "scaling")
ROUNDS = 3
WIDTH = 120  # columns of tables that are written to a file


def main(names: list[str], data: str | None, output: Path, rounds: int) -> None:
    """Runs benchmarks one after the other.

    Args:
        names: some of `NAMES`.
        data: folder of photos for those that read images; None draws scenes.
        output: folder for NAME.json.
        rounds: repeats of each contestant.
    """
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = WIDTH
    machine = machine_line()
    console.print(machine)
    output.mkdir(parents=True, exist_ok=True)
    for name in names:
        module = importlib.import_module(f"benchmarks.{name}")
        if hasattr(module, "measure"):  # this benchmark gives curves, not a contest
            module.measure(output, machine, commit(), console.print)
            continue
        measured = []
        for case in module.cases(data):
            results = run_case(case, rounds, say=lambda line: print(line, file=sys.stderr))
            console.print(table_of(case, results))
            console.print(*floor_lines(results[0]), sep="\n")
            measured.append(as_json(case, results))
        entry = {
            "machine": machine,
            "commit": commit(),
            "date": datetime.date.today().isoformat(),
            "images": data or "drawn scenes",
            "cases": measured,
        }
        (output / f"{name}.json").write_text(json.dumps(entry, indent=2) + "\n", encoding="utf-8")
    console.print(f"wrote {output}")


def table_of(case: Case, results: list[Result]) -> Table:
    """Returns a table with a row for each contestant: median, range, speed of dupr_tf relative to it, and memory."""
    ours, cores = results[0], f", {case.cores} core" if case.cores else ""
    table = Table(title=f"{case.name}{cores}", title_justify="left", box=None)
    for heading, side in (("", "left"), (case.unit, "right"), ("range", "right"), ("ours is", "right"),
                          ("peak MiB", "right"), ("of it in the repeats", "right")):  # fmt: skip
        table.add_column(heading, justify=side)
    for result in results:
        if result.rate is None:
            table.add_row(escape(f"{result.name}: {result.note}"))
            continue
        spread = f"{min(result.rates):.3g} to {max(result.rates):.3g}"
        faster = "" if result is ours else f"{ours.rate / result.rate:.2f} ×"
        extra = result.peak_mib - result.built_mib
        table.add_row(
            escape(f"{result.name} ({result.note})" if result.note else result.name),
            f"{result.rate:.3g}", spread, faster, f"{result.peak_mib:,.0f}", f"{extra:,.0f}",
        )  # fmt: skip
    return table


def floor_lines(ours: Result) -> list[str]:
    """Returns a step's counted operations, and the time they would take at the speed of a large product."""
    parts = ours.facts.get("gflop_an_image")
    if not parts:
        return []
    total, speed = sum(parts.values()), ours.facts["gflops_of_a_product"]
    counted = ", ".join(f"{part} {count:.2f}" for part, count in parts.items())
    floor = speed / total
    return [
        f"GFLOP an image: {counted}",
        f"floor at the {speed:.0f} GFLOP/s of a large product: {floor:.3g} images/s; ours is {ours.rate / floor:.0%}",
    ]


def as_json(case: Case, results: list[Result]) -> dict:
    """Returns all measurements as plain data."""
    contestants = [
        {
            "name": result.name,
            "median": result.rate,
            "rates": result.rates,
            "ratio": results[0].rate / result.rate if result.rate else None,
            "peak_mib": result.peak_mib,
            "built_mib": result.built_mib,
            "note": result.note,
            **result.facts,
        }
        for result in results
    ]
    return {"case": case.name, "unit": case.unit, "cores": case.cores, "contestants": contestants}


def machine_line() -> str:
    """Returns processor, cores and memory of the machine, and its load."""
    load = f", load {os.getloadavg()[0]:.1f} before" if hasattr(os, "getloadavg") else ""
    return f"{hardware()}{load}"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"{', '.join(NAMES)}. Default: all.")
    parser.add_argument("--data", help="folder of photos for the input benchmarks; none: drawn scenes")
    parser.add_argument("--output", type=Path, default=Path("runs/benchmarks"), help="folder for NAME.json")
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="repeats of each contestant")
    arguments = parser.parse_args()
    unknown = [name for name in arguments.names if name not in NAMES]
    if unknown:
        parser.error(f"expected some of {', '.join(NAMES)}, received {', '.join(unknown)}")
    main(arguments.names or list(NAMES), arguments.data, arguments.output, arguments.rounds)
