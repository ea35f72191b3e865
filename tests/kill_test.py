"""Kills a pre-training run at random moments, many times, and checks that nothing is lost.

    python -m tests.kill_test --kills 50

A first run of `dupr-tf pretrain` is left undisturbed and keeps every checkpoint. Then the same command is started again
and again, each time with a random `train.checkpoint_every`. SIGKILL ends it in the middle of a save, at a random moment
of its steps, or while it is still starting. After each kill, the losses logged so far must equal those of the
undisturbed run (as float hex). Each checkpoint must hold the undisturbed run's state of that step (sha256 of every
variable). At the end, all losses and the last state must be equal.

Importing TensorFlow costs more than all the steps. Therefore this process imports it once, computes nothing, and forks
a child for each start. `--fresh` runs the real command line in a new process instead. With `--backbone tiny` the
network has five convolutions; any other name selects the real backbone.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import hashlib
import json
import logging
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ["OPENBLAS_NUM_THREADS"] = "1"  # NumPy would start a thread at import, and forks allow none

import tensorflow as tf

from dupr_tf.cli import main as cli_main
from dupr_tf.config import Config, dump_config, parse_config
from dupr_tf.data.sample import write_sample
from dupr_tf.training import pretrain as pretrain_module
from dupr_tf.training.checkpoints import find_damage, saved_checkpoints, step_of
from tests.models.test_golden import SIZE, STAGES, TinyBackbone
from tests.training.devices import use_logical_devices

HOW = ("save", "save", "steps", "steps", "steps", "start")
KILLED = "killed"  # folder of the undisturbed run
PATIENCE = 600  # seconds within which a start must reach the awaited moment


@dataclasses.dataclass(frozen=True)
class Trial:
    """Holds a folder with images and a config, and how its runs are started.

    `processes` input processes read the images of the killed runs. The undisturbed run reads them itself.
    """

    folder: Path
    config: Config
    replicas: int = 1
    fresh: bool = False
    processes: int = 0

    def arguments(self, run: Path) -> list[str]:
        """Returns the arguments of the command, without the fields that differ from start to start."""
        data = str(self.folder / "unlabeled")
        return ["pretrain", str(self.folder / "config.yaml"), "--output", str(run), "--data", data]

    def differing_ends(self, whole: Path, run: Path) -> list[str]:
        """Returns how a finished run differs from the undisturbed one, besides losses and checkpoints."""
        return []

    def start(self, run: Path, every: int, keep: int = 2) -> int:
        """Starts the command in a new process and returns its id."""
        arguments = self.arguments(run)
        arguments += [f"--train.checkpoint_every={every}", f"--train.keep_checkpoints={keep}"]
        arguments += [f"--data.processes={self.processes}"] if self.processes and run.name == KILLED else []
        log = (self.folder / "log.txt").open("ab")
        if self.fresh:
            command = [sys.executable, "-m", "dupr_tf.cli", *arguments]
            return subprocess.Popen(command, stdout=log, stderr=log).pid
        assert len(os.listdir("/proc/self/task")) == 1, "a process with threads must not be forked"
        child = os.fork()
        if child == 0:
            self._run_command(arguments, log.fileno())
        return child

    def _run_command(self, arguments, log):
        """Runs the command in the child process, which does nothing else."""
        code = 99
        try:
            os.dup2(log, 1)
            os.dup2(log, 2)
            logging.root.handlers.clear()
            if self.replicas > 1:
                use_logical_devices(self.replicas)
            if self.config.data.image_size == SIZE:
                channels = dict(zip(STAGES, (4, 4, 4, 8, 8), strict=True))
                pretrain_module.build_backbone = lambda name, width, dtype: TinyBackbone(channels)
            code = cli_main(arguments)
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stderr.flush()
            os._exit(code)


def trial(
    folder: Path, steps: int, replicas: int = 1, backbone: str = "tiny", fresh: bool = False, processes: int = 0
) -> Trial:
    """Writes images and the config of a run of `steps` steps below a folder."""
    write_sample(folder, train=1, val=1, unlabeled=24, seed=3)
    tiny = backbone == "tiny"
    config = parse_config({
        "data": {"image_size": SIZE if tiny else 32},
        "views": {"min_overlap": 8},
        "model": {"backbone": "resnet18" if tiny else backbone, "width": 0.125, "image_weights": [0, 0, 0, 1],
                  "patch_weights": [0, 0, 1, 0], "roi_sizes": [4, 2, 2, 1], "bank_size": 70, "momentum": 0.9,
                  "embedding_dim": 16},
        "optimizer": {"learning_rate": 0.05},
        "train": {"batch_size": 8, "micro_batches": 2, "epochs": steps, "max_steps": steps, "log_every": 1},
    })  # fmt: skip
    (folder / "config.yaml").write_text(dump_config(config), encoding="utf-8")
    return Trial(folder, config, replicas, fresh, processes)


def kill_over_and_over(setting: Trial, kills: int, steps: int, seed: int, say=print) -> list[str]:
    """Runs the trial.

    Args:
        setting: made by `trial`.
        kills: number of SIGKILLs.
        steps: steps of the run.
        seed: seed of the moments.
        say: gets a line for each kill.

    Returns:
        A line for each loss of data; empty if nothing was lost.
    """
    whole, run = setting.folder / "whole", setting.folder / KILLED
    code = wait(setting.start(whole, every=1, keep=steps + 1))
    if code or len(losses(whole)) != steps:
        return [f"the undisturbed run ended with {code} after {len(losses(whole))} steps, see {setting.folder}/log.txt"]
    states, expected = {step_of(path): state(path) for path in saved_checkpoints(whole / "checkpoints")}, losses(whole)
    draw, wrong, moments = random.Random(seed), [], Counter()
    for number in range(1, kills + 1):
        left = steps - len(losses(run))
        how = draw.choice(HOW) if number > 2 else "save"
        moment = kill_once(setting, run, how, draw, left // (kills - number + 2))
        if moment is None:
            return [*wrong, f"the run finished after {number - 1} kills. Fix: pass more --steps"]
        moments[moment] += 1
        wrong += [f"kill {number} ({moment}): {line}" for line in lost(run, states, expected)]
        say(f"kill {number}: {moment}, {len(losses(run))} steps done, {len(wrong)} mistakes so far")
    code = wait(setting.start(run, every=2))
    if code:
        wrong.append(f"the last start ended with {code}, see {setting.folder}/log.txt")
    wrong += [f"at the end: {line}" for line in lost(run, states, expected)]
    if losses(run) != expected:
        wrong.append(f"at the end: {len(losses(run))} losses are not the {len(expected)} expected")
    newest = saved_checkpoints(run / "checkpoints")[:1]
    if [step_of(path) for path in newest] != [steps]:
        wrong.append("at the end: no checkpoint of the last step")
    wrong += [f"at the end: {line}" for line in setting.differing_ends(whole, run)]
    text = ", ".join(f"{count} {moment}" for moment, count in sorted(moments.items()))
    say(f"{sum(moments.values())} kills ({text}); {steps} losses and the last state compared: {len(wrong)} mistakes")
    return wrong


def kill_once(setting: Trial, run: Path, how: str, draw: random.Random, progress: int) -> str | None:
    """Starts the run and kills it. Returns the moment of the kill, or None if the run had already finished.

    Args:
        setting, run: what is started.
        how: one of `HOW`.
        draw: random numbers for the moment.
        progress: number of further steps it should take, about.
    """
    before = len(losses(run))
    child = setting.start(run, every=1 if how == "save" else draw.randint(1, 3))
    if how == "start":
        time.sleep(draw.uniform(0, 4))
    else:
        wanted = before + draw.randint(1, max(1, 2 * progress - 1))
        deadline = time.monotonic() + PATIENCE
        while alive(child) and len(losses(run)) < wanted and time.monotonic() < deadline:
            time.sleep(0.002)
        if how == "save":
            while alive(child) and not in_a_save(run) and time.monotonic() < deadline:
                time.sleep(0.0005)
            time.sleep(draw.choice((0, draw.uniform(0, 0.02))))
        else:
            time.sleep(draw.uniform(0, 0.1))
    ended = not alive(child)
    if not ended:
        os.kill(child, signal.SIGKILL)
        wait(child)
    if ended:
        return None
    if in_a_save(run):
        return "during a save"
    return "between saves" if len(losses(run)) > before else "before its first step"


def lost(run: Path, states: dict[int, str], expected: list[str]) -> list[str]:
    """Returns where losses and checkpoints of a run differ from those of the undisturbed one."""
    found, wrong = losses(run), []
    if found != expected[: len(found)]:
        wrong.append("the losses are others")
    for path in saved_checkpoints(run / "checkpoints"):
        if not path.with_suffix(".sha256").exists():
            continue  # killed before the checkpoint was finished
        damage = find_damage(path)
        if damage or state(path) != states[step_of(path)]:
            wrong.append(f"{path.name} is {damage or 'another state'}")
    return wrong


def in_a_save(run: Path) -> bool:
    """Returns true while the files of an unfinished checkpoint exist."""
    folder = run / "checkpoints"
    unfinished = [path for path in saved_checkpoints(folder) if not path.with_suffix(".sha256").exists()]
    return bool(unfinished) or any(folder.glob("*temp*"))


def losses(run: Path) -> list[str]:
    """Returns `step loss-as-hex` for each complete line that a run has logged."""
    path, found = run / "metrics.jsonl", []
    for text in path.read_text(encoding="utf-8").splitlines(keepends=True) if path.exists() else []:
        if text.endswith("\n"):
            line = json.loads(text)
            found.append(f"{line['step']} {line['loss'].hex()}")
    return found


def state(path: Path) -> str:
    """Returns the sha256 of every variable of a checkpoint: names, dtypes, shapes and bits."""
    reader, digest = tf.train.load_checkpoint(str(path)), hashlib.sha256()
    for name in sorted(reader.get_variable_to_shape_map()):
        if name.startswith("variables/"):
            value = reader.get_tensor(name)
            digest.update(f"{name} {value.dtype} {value.shape}".encode() + value.tobytes())
    return digest.hexdigest()


def alive(child: int) -> bool:
    """Returns true while a child runs. A child that has ended is left for `wait`."""
    return os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None


def wait(child: int) -> int:
    """Returns a child's exit code, negative for a signal."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--steps", type=int, help="of the run; default: four times the kills")
    parser.add_argument("--replicas", type=int, default=1, help="logical devices")
    parser.add_argument("--backbone", default="tiny", help="tiny, or resnet18 …")
    parser.add_argument("--processes", type=int, default=0, help="that read the images of the killed run")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--fresh", action="store_true", help="a new Python for each start")
    options = parser.parse_args()
    if options.fresh and (options.replicas > 1 or options.backbone == "tiny"):
        parser.error("--fresh runs the plain command line: one device and a real backbone")
    steps = options.steps or 4 * options.kills
    with tempfile.TemporaryDirectory() as folder:
        setting = trial(Path(folder), steps, options.replicas, options.backbone, options.fresh, options.processes)
        wrong = kill_over_and_over(setting, options.kills, steps, options.seed, functools.partial(print, flush=True))
        if wrong:
            print("\n".join(wrong), (Path(folder) / "log.txt").read_text(errors="replace")[-3000:], sep="\n")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
