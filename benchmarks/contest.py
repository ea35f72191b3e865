"""Runs contestants side by side: starts them one by one, then times them in turn."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parent.parent


@dataclasses.dataclass(frozen=True)
class Contestant:
    """Describes one way to do the work of a case.

    Args:
        name: name in the printed table.
        build: "module:function"; the function takes `options` and returns `work() -> units done`.
        options: keyword arguments of the function, plain data.
        needs: packages that must be installed; the contestant is left out without them.
        heat: contestants of one heat are variants of one peer. Each is tried once, and only the fastest is measured.
    """

    name: str
    build: str
    options: dict = dataclasses.field(default_factory=dict)
    needs: tuple[str, ...] = ()
    heat: str | None = None


@dataclasses.dataclass(frozen=True)
class Case:
    """Describes one comparison; the first contestant is ours.

    Args:
        name: name in the printed table.
        unit: unit of the rates.
        contestants: ours, then the peers.
        cores: how many cores each may use; None is all.
    """

    name: str
    unit: str
    contestants: tuple[Contestant, ...]
    cores: int | None = None


@dataclasses.dataclass
class Result:
    """Measurements of one contestant."""

    name: str
    rates: list[float] = dataclasses.field(default_factory=list)
    peak_mib: float = 0.0
    built_mib: float = 0.0  # held after building, before the first repeat
    facts: dict = dataclasses.field(default_factory=dict)
    note: str = ""  # why it was left out or not measured further

    @property
    def rate(self) -> float | None:
        return statistics.median(self.rates) if self.rates else None


class Process:
    """Holds a contestant's process, ready for repeats. Between repeats it is stopped, so that nothing runs ahead."""

    def __init__(self, contestant: Contestant, cores: int | None):
        self.result = Result(contestant.name)
        order = {"build": contestant.build, "options": contestant.options, "cores": _first_cores(cores)}
        self._errors = tempfile.TemporaryFile("w+")  # noqa: SIM115  (lives as long as the process)
        self._process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.worker", json.dumps(order)],
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
        )
        self.result.facts = self._answer()
        del self.result.facts["ready"]
        self._signal("SIGSTOP")

    def repeat(self) -> float:
        self._signal("SIGCONT")
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        answer = self._answer()
        self._signal("SIGSTOP")
        self.result.rates.append(answer["rate"])
        self.result.peak_mib, self.result.built_mib = answer["peak_mib"], answer["built_mib"]
        return answer["rate"]

    def close(self) -> None:
        """Closes the input of the process, which ends it."""
        self._signal("SIGCONT")
        self._process.communicate()
        self._errors.close()

    def _signal(self, name: str) -> None:
        if hasattr(signal, name):  # not on Windows
            self._process.send_signal(getattr(signal, name))

    def _answer(self) -> dict:
        line = self._process.stdout.readline()
        if not line:
            self._process.wait()
            self._errors.seek(0)
            raise RuntimeError(f"{self.result.name} ended: {self._errors.read().strip()[-2000:]}")
        return json.loads(line)


def run_case(case: Case, rounds: int, say=print) -> list[Result]:
    """Measures all contestants of a case that can run here, ours first.

    Args:
        case: what to compare.
        rounds: repeats of each.
        say: gets lines of progress.

    Raises:
        RuntimeError: a contestant ended early; the message contains the end of its standard error.
    """
    left_out: list[Result] = []
    running: list[tuple[Contestant, Process]] = []
    try:
        for contestant in case.contestants:
            _start(contestant, case, running, left_out, say)
        for number in range(rounds):
            for _, process in running:
                rate = process.repeat()
                say(f"{case.name}: round {number + 1} of {rounds}, {process.result.name}: {rate:.4g} {case.unit}")
    finally:
        for _, process in running:
            process.close()
    return [process.result for _, process in running] + left_out


def _start(contestant, case, running, left_out, say) -> None:
    """Starts a contestant, unless it cannot run here. In a heat, the slower of two contestants is dropped."""
    missing = [name for name in contestant.needs if importlib.util.find_spec(name) is None]
    if missing:
        note = f"{', '.join(missing)} not installed. Fix: pip install -e '.[peers]'"
        left_out.append(Result(contestant.name, note=note))
        return
    say(f"{case.name}: starting {contestant.name}")
    running.append((contestant, Process(contestant, case.cores)))
    loser = _slower_in_heat(running)
    if loser is not None:
        running.remove(loser)
        loser[1].close()
        loser[1].result.note = "slower variant, one repeat"
        left_out.append(loser[1].result)


def _slower_in_heat(running):
    """Returns the slower of the contestant started last and its rival in the same heat, if there is one."""
    last = running[-1]
    rivals = [entry for entry in running[:-1] if last[0].heat and entry[0].heat == last[0].heat]
    if not rivals:
        return None
    for _, process in (rivals[0], last):
        if not process.result.rates:
            process.repeat()
    return min(rivals[0], last, key=lambda entry: entry[1].result.rates[0])


def _first_cores(count: int | None) -> list[int] | None:
    if count is None or not hasattr(os, "sched_getaffinity"):
        return None
    return sorted(os.sched_getaffinity(0))[:count]
