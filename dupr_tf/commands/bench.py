"""The command that times dupr_tf beside its peers."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from pathlib import Path
from typing import Literal

import tyro

from dupr_tf.errors import UserError

CHECKOUT = Path(__file__).resolve().parents[2]


@dataclasses.dataclass
class Bench:
    """Time what is claimed about speed and memory beside its peers, and print medians and ratios.

    The machine should do nothing else meanwhile. Peers that are not installed are named and left out.
    """

    names: tyro.conf.Positional[
        tuple[Literal["step", "loss", "roi_align", "input", "photometric", "pack", "detector", "scaling"], ...]
    ] = ()
    """Which; none: all."""
    data: Path | None = None
    """Folder of photos for those that read images; none: drawn scenes."""
    output: Path = Path("runs/benchmarks")
    """Folder for NAME.json."""
    rounds: int = 3
    """Repeats of each contestant."""

    def run(self, overrides: dict[str, str]) -> int:
        if not (CHECKOUT / "benchmarks" / "__main__.py").exists():
            problem = f"{CHECKOUT} has no folder benchmarks/."
            raise UserError(None, problem, "Clone the repository and install it with pip install -e .")
        if self.rounds < 1:
            raise UserError("--rounds", f"Expected 1 or more, received {self.rounds}.")
        arguments = [*self.names, "--output", str(self.output.resolve()), "--rounds", str(self.rounds)]
        if self.data is not None:
            arguments += ["--data", str(self.data.resolve())]
        return subprocess.run([sys.executable, "-m", "benchmarks", *arguments], cwd=CHECKOUT).returncode
