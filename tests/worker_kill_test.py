"""Kills a random worker of a multi-worker run, many times, and checks that all workers end and nothing is lost.

    python -m tests.worker_kill_test --kills 10

The comparison is that of `tests.kill_test`: after each kill, losses and checkpoints must equal those of an undisturbed
run with the same number of workers. In addition, all other workers must end soon. Their exit code must be that of a
lost worker, and a line must name the killed one. Workers meet on loopback, at the same ports at every start.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import os
import random
import re
import signal
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from dupr_tf.errors import WorkerLost
from dupr_tf.training.checkpoints import saved_checkpoints, step_of
from tests.kill_test import PATIENCE, Trial, alive, in_a_save, losses, lost, state, trial, wait
from tests.training.cluster import free_ports, tf_config

HOW = ("start", "steps", "steps", "steps", "save")
START_SECONDS = 600  # train.start_timeout
SOON = 15.0  # seconds within which the others must have ended
GUARD = -signal.SIGKILL  # exit code after a worker was killed while TensorFlow's servers connected


@dataclasses.dataclass(frozen=True)
class Workers(Trial):
    """A trial whose command runs once on each of several workers."""

    ports: tuple[int, ...] = ()

    def start_all(self, run: Path, every: int, keep: int = 2) -> list[int]:
        """Starts the same command on every worker and returns the process ids."""
        children = []
        for index in range(len(self.ports)):
            sys.stdout.flush()
            child = os.fork()
            if child == 0:
                os.environ["TF_CONFIG"] = tf_config(list(self.ports), index)
                arguments = ["pretrain", str(self.folder / "config.yaml"), "--output", str(run)]
                arguments += ["--data", str(self.folder / "unlabeled"), f"--train.checkpoint_every={every}"]
                arguments += [f"--train.keep_checkpoints={keep}", f"--train.start_timeout={START_SECONDS}"]
                log = self.log(index).open("wb")  # a separate variable keeps it open
                self._run_command(arguments, log.fileno())
            children.append(child)
        return children

    def log(self, index: int) -> Path:
        return self.folder / f"worker{index}.log"


def kill_over_and_over(setting: Workers, kills: int, steps: int, seed: int, say=print) -> list[str]:
    """Runs the trial; returns a line for each fault. Arguments are as in `tests.kill_test.kill_over_and_over`."""
    whole, run = setting.folder / "whole", setting.folder / "killed"
    codes = [wait(child) for child in setting.start_all(whole, every=1, keep=steps + 1)]
    if any(codes) or len(losses(whole)) != steps:
        return [f"the undisturbed run ended with {codes} after {len(losses(whole))} steps"]
    states, expected = {step_of(path): state(path) for path in saved_checkpoints(whole / "checkpoints")}, losses(whole)
    say(f"the undisturbed run took {steps} steps")
    draw, wrong, kinds, longest = random.Random(seed), [], Counter(), 0.0
    for number in range(1, kills + 1):
        how, victim = draw.choice(HOW), draw.randrange(len(setting.ports))
        moment, seconds, mistakes = kill_one(
            setting, run, how, victim, draw, (steps - len(losses(run))) // (kills - number + 2)
        )
        if moment is None:
            return [*wrong, *mistakes, f"the run finished after {number - 1} kills. Fix: pass more --steps"]
        longest = max(longest, seconds if moment != "before they met" else 0.0)
        kinds[f"{'chief' if victim == 0 else 'other'} {moment}"] += 1
        wrong += [f"kill {number}: {line}" for line in [*mistakes, *lost(run, states, expected)]]
        say(
            f"kill {number}: worker {victim} {moment}, {len(losses(run))} steps done, the others gone after "
            f"{seconds:.1f} s, {len(wrong)} mistakes so far"
        )
    codes = [wait(child) for child in setting.start_all(run, every=2)]
    if any(codes):
        wrong.append(f"the last start ended with {codes}")
    wrong += [f"at the end: {line}" for line in lost(run, states, expected)]
    if losses(run) != expected or [step_of(path) for path in saved_checkpoints(run / "checkpoints")[:1]] != [steps]:
        wrong.append(f"at the end: {len(losses(run))} losses are not the {len(expected)} expected, or no last state")
    text = ", ".join(f"{count} {kind}" for kind, count in sorted(kinds.items()))
    say(
        f"{sum(kinds.values())} kills ({text}); the others gone within {longest:.1f} s; {steps} losses and the last "
        f"state compared: {len(wrong)} mistakes"
    )
    return wrong


def kill_one(setting: Workers, run: Path, how: str, victim: int, draw: random.Random, progress: int):
    """Starts the run, kills a worker, and waits for the others.

    Returns:
        The moment of the kill (None: the run had finished), the seconds until the others had ended, and the faults.
    """
    before = len(losses(run))
    children = setting.start_all(run, every=1 if how == "save" else draw.randint(1, 3))
    if how == "start":
        time.sleep(draw.uniform(0, 12))
    else:
        wanted, deadline = before + draw.randint(1, max(1, 2 * progress - 1)), time.monotonic() + PATIENCE
        while all(map(alive, children)) and len(losses(run)) < wanted and time.monotonic() < deadline:
            time.sleep(0.002)
        while how == "save" and alive(children[0]) and not in_a_save(run) and time.monotonic() < deadline:
            time.sleep(0.0005)
        time.sleep(draw.uniform(0, 0.05))
    if not all(map(alive, children)):
        codes = [wait(child) for child in children]
        return None, 0.0, [f"the workers had ended with {codes}"]
    os.kill(children[victim], signal.SIGKILL)
    begun = time.monotonic()
    wait(children[victim])
    others = {index: wait(child) for index, child in enumerate(children) if index != victim}
    seconds = time.monotonic() - begun
    met = all("this is worker" in setting.log(index).read_text(errors="replace") for index in others)
    moment = "while it trained" if len(losses(run)) > before else "while it started" if met else "before they met"
    return moment, seconds, list(_mistakes(setting, victim, others, seconds, met))


def _mistakes(setting, victim, others, seconds, met):
    """Returns what was wrong in how the others ended."""
    if met and seconds > SOON:
        yield f"the others took {seconds:.1f} s"
    for index, code in others.items():
        text = setting.log(index).read_text(errors="replace")
        if code not in ((WorkerLost.code,) if met else (WorkerLost.code, GUARD)):
            yield f"worker {index} ended with {code}: {text[-300:]}"
        elif not re.search(rf"dupr-tf: error: .*worker {victim} \(127", text):
            yield f"worker {index} did not name worker {victim}: {text[-300:]}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--steps", type=int, help="of the run; default: four times the kills")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    steps = options.steps or 4 * options.kills
    with tempfile.TemporaryDirectory() as folder:
        plain = trial(Path(folder), steps)
        setting = Workers(plain.folder, plain.config, ports=tuple(free_ports(options.workers)))
        wrong = kill_over_and_over(setting, options.kills, steps, options.seed, functools.partial(print, flush=True))
        if wrong:
            logs = [setting.log(index).read_text(errors="replace")[-2000:] for index in range(options.workers)]
            print("\n".join(wrong), *logs, sep="\n")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
