"""Runs cells of a comparison in a separate process, which ends with the process of `compare`.

It is one fine-tuning, or a probe of the same weights with all shares and seeds.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

from dupr_tf.comparing.grid import Cell, probe_tasks
from dupr_tf.comparing.labels import check_same_labels
from dupr_tf.comparing.record import Comparison, read_comparison
from dupr_tf.comparing.results import DIVERGED, METRICS_FILE
from dupr_tf.config import Config
from dupr_tf.config.detectors import DETECTORS
from dupr_tf.data.file_results import FileResults
from dupr_tf.errors import Diverged, RunFailed, RunInterrupted, UserError, raise_all
from dupr_tf.files import write_whole
from dupr_tf.light import save_memory
from dupr_tf.text import one_line
from dupr_tf.weights.paths import RANDOM

HELD_OUT = 0.2  # share of the training images that choose a learning rate
MOST_EPOCHS = 10**9  # so that the number of steps ends a cell
PARENT_CHECK = 1.0  # seconds
CHECK = "--check"  # first argument of the process that only loads backbones, and start of the lines it prints


def cell_config(comparison: Comparison, cell: Cell, rate: float) -> Config:
    """Returns the config of a cell. All cells of a share and a seed draw the same images, order and augmentation."""
    config = comparison.config
    data = {"share": cell.share, "share_seed": cell.seed, "held_out": None if cell.rate is None else HELD_OUT}
    train = {"seed": cell.seed, "epochs": MOST_EPOCHS, "max_steps": comparison.steps_of(cell.share)}
    milestones = _milestones(config, comparison.steps_of(cell.share))
    return config.model_copy(
        update={
            "data": config.data.model_copy(update=data),
            "train": config.train.model_copy(update=train),
            "optimizer": config.optimizer.model_copy(update={"learning_rate": rate, **milestones}),
        }
    )


def _milestones(config: Config, steps: int) -> dict[str, tuple[int, ...]]:
    """Returns the milestones in steps: an epoch of the config becomes its part of `train.epochs` times the steps."""
    optimizer = config.optimizer
    if optimizer.schedule != "milestones" or not optimizer.milestones:
        return {}
    at = sorted({round(epoch / config.train.epochs * steps) for epoch in optimizer.milestones})
    return {"milestones": (), "milestone_steps": tuple(step for step in at if 1 <= step < steps)}


def run_cell(folder: Path, cell: Cell, rate: float | None) -> None:
    """Fine-tunes and evaluates the detector of a cell, in its folder below that of the comparison.

    For a probe, it scores all cells with the weights of this cell.
    """
    comparison = read_comparison(folder)
    weights = comparison.backbone(cell.backbone).weights_of(cell.seed)
    _check_unchanged(comparison, weights)
    if comparison.probe is not None:
        from dupr_tf.comparing.probes import run_probe

        tasks = probe_tasks(comparison.backbones, comparison.scored_cells())
        return run_probe(folder, comparison, next(task.cells for task in tasks if cell in task.cells))
    from dupr_tf.detection.finetune import CHECKED_FILE, finetune

    check_same_labels(comparison, FileResults(folder / cell.folder / CHECKED_FILE))
    config = cell_config(comparison, cell, rate)
    try:
        finetune(config, weights, comparison.data, folder / cell.folder)
    except Diverged as error:
        if cell.rate is None:
            raise
        metric = "mIoU" if DETECTORS[config.detector.kind].facts["task"] == "segments" else "AP"
        write_whole(folder / cell.folder / METRICS_FILE, json.dumps({metric: 0.0, DIVERGED: str(error)}) + "\n")
        logging.warning("%s This rate is not chosen.", error)
    return None


def _check_unchanged(comparison: Comparison, weights: str) -> None:
    """Raises UserError if weights are others than at the start of `compare`, such as those of a run that trains on."""
    if weights == RANDOM:
        return
    from dupr_tf.weights.loading import load_weights_for, weights_digest

    model = comparison.config.model
    loaded = load_weights_for(model.backbone, model.width, weights, include_normalization=True)
    if weights_digest(loaded) != comparison.digests[weights]:
        raise UserError("--backbones", *_changed(weights))


def _changed(weights: str) -> tuple[str, str]:
    """Returns the problem and the fix of weights that changed after a comparison began."""
    fix = "Restore them, or pass the new ones under another path and label."
    return f"{weights} holds other weights than when this comparison began.", fix


def check_backbones(comparison: Comparison) -> dict[str, str]:
    """Loads each backbone in another process, so that TensorFlow takes no memory of this one or of a GPU.

    Returns:
        {path: sha256 of the weights} of all backbones but random ones.

    Raises:
        UserError: some cannot be loaded, do not fit the detector, or have changed since an earlier call.
    """
    every = {weights: one.label for one in comparison.backbones for weights in one.weights if weights != RANDOM}
    model, problems, digests = comparison.config.model, [], {}
    command = [sys.executable, "-m", "dupr_tf.comparing.cell", CHECK, model.backbone, repr(model.width), *every]
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "-1"}
    done = subprocess.run(
        command, stdin=subprocess.DEVNULL, capture_output=True, text=True, env=environment, check=False
    )
    for line in done.stdout.splitlines():
        if line.startswith(CHECK):
            number, digest, problem, fix = json.loads(line.removeprefix(CHECK))
            path, label = list(every.items())[number]
            digests[path] = digest
            if digest is not None and comparison.digests.get(path, digest) != digest:
                problem, fix = _changed(path)
            if problem:
                problems.append(UserError("--backbones", f"{label}: {problem}", fix))
    raise_all(problems)
    if done.returncode:
        raise RunFailed(f"The backbones could not be checked: {one_line(done.stderr, 300)}")
    return digests


def _load_each(backbone: str, width: str, *paths: str) -> int:
    """Prints a line of JSON for each path: its position, its digest or None, and the problem and fix of bad weights."""
    from dupr_tf.weights.loading import load_weights_for, weights_digest

    for number, path in enumerate(paths):
        try:
            loaded = load_weights_for(backbone, float(width), path, include_normalization=True)
            entry = weights_digest(loaded), "", ""
        except UserError as error:
            entry = None, error.problem, error.fix
        print(CHECK + json.dumps([number, *entry]))
    return 0


def main(arguments: list[str]) -> int:
    """Runs the cell of a command line, as `runner` writes it, and returns an exit code as `dupr-tf` does."""
    save_memory()
    if arguments[0] == CHECK:
        return _load_each(*arguments[1:])
    parent, folder, backbone, share, seed, rate, chooses = arguments
    cell = Cell(backbone, float(share), int(seed), float(rate) if chooses == "choose" else None)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    threading.Thread(target=_watch_parent, args=(int(parent),), daemon=True).start()
    try:
        run_cell(Path(folder), cell, float(rate) if rate else None)
    except (UserError, RunFailed, RunInterrupted) as error:
        print(f"error: {error}", file=sys.stderr)
        return error.code
    return 0


def _watch_parent(parent: int) -> None:
    """Stops this process, after its state is saved, when its parent has ended, even if that was before this call."""
    while os.getppid() == parent:
        time.sleep(PARENT_CHECK)
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
