"""The command that compares the speed of dupr_tf and other libraries."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from pathlib import Path
from typing import Literal

import tyro

from dupr_tf.commands.checks import output_problems
from dupr_tf.errors import UserError, raise_all
from dupr_tf.locks import locked

CHECKOUT = Path(__file__).resolve().parents[2]


@dataclasses.dataclass
class Bench:
    """Compare speed and memory with other libraries.

    Prints medians and ratios. The machine should be idle. Libraries that are not installed are named and left out.
    """

    EXAMPLE = "dupr-tf bench loss --rounds 1"

    names: tyro.conf.Positional[
        tuple[Literal["step", "loss", "roi_align", "input", "photometric", "pack", "detector", "scaling"], ...]
    ] = ()
    """Comparisons to run. Default: all."""
    data: Path | None = None
    """Folder of photos for the comparisons that read images. Default: drawn scenes."""
    output: Path = Path("runs/benchmarks")
    """Folder for the results, NAME.json."""
    rounds: int = 3
    """Repetitions of each measurement."""

    def run(self, overrides: dict[str, str]) -> int:
        if not (CHECKOUT / "benchmarks" / "__main__.py").exists():
            problem = f"{CHECKOUT} has no folder benchmarks/."
            raise UserError(None, problem, "Clone the repository and install it with pip install -e .")
        if self.rounds < 1:
            raise UserError("--rounds", f"Expected 1 or more, received {self.rounds}.")
        raise_all(output_problems(self.output, self.data))
        arguments = [*self.names, "--output", str(self.output.resolve()), "--rounds", str(self.rounds)]
        if self.data is not None:
            arguments += ["--data", str(self.data.resolve())]
        with locked(self.output):
            return subprocess.run([sys.executable, "-m", "benchmarks", *arguments], cwd=CHECKOUT).returncode
