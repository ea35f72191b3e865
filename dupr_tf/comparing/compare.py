"""Runs a comparison: plans it or continues that of its folder, runs the cells, and writes the results."""

from __future__ import annotations

import dataclasses
import itertools
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from dupr_tf.comparing import plan
from dupr_tf.comparing.cell import check_backbones
from dupr_tf.comparing.grid import Cell, Task, probe_tasks
from dupr_tf.comparing.labels import contents_digest
from dupr_tf.comparing.outputs import write_outputs
from dupr_tf.comparing.overlaps import with_overlaps
from dupr_tf.comparing.probe_plan import ProbedImages, check_trainable, make_probe_comparison
from dupr_tf.comparing.progress import CellProgress
from dupr_tf.comparing.record import RECORD_FILE, Comparison, extend, read_comparison, write_comparison
from dupr_tf.comparing.results import Rates, Result, choose_rates, is_finished, read_result
from dupr_tf.comparing.runner import run_cells
from dupr_tf.config import Config
from dupr_tf.data.file_results import FileResults
from dupr_tf.data.labels.split import Split
from dupr_tf.detection.finetune import CHECKED_FILE
from dupr_tf.errors import RunFailed, raise_all
from dupr_tf.files import local_path
from dupr_tf.locks import locked
from dupr_tf.records import refuse_other_outputs
from dupr_tf.weights.catalogue import is_public
from dupr_tf.weights.paths import weights_file

Show = Callable[[Comparison, Result, dict[str, Rates]], None]


class Planned(NamedTuple):
    """Holds a comparison, the images of train and val, and the results of their checks."""

    comparison: Comparison
    train: Split | ProbedImages
    val: Split | ProbedImages
    results: FileResults


def plan_comparison(
    config: Config, data: str | Path, output: Path, settings: plan.Settings, probe: str | None = None
) -> Planned:
    """Checks the flags, reads the labels, and adds to the comparison in the folder if there is one.

    Args:
        config: config of the fine-tuning.
        data: root of the labelled data.
        output: folder of the comparison.
        settings: flags. Those that are not given are taken from the comparison in the folder.
        probe: name of the probe to compare by. None compares by fine-tuning.

    Raises:
        UserError: flags, data or the comparison in the folder do not fit together.
    """
    saved = read_comparison(output) if (output / RECORD_FILE).exists() else None
    if saved is None:
        refuse_other_outputs(output, "a comparison")
    settings = plan.filled_in(settings, saved)
    problems = [] if probe else plan.set_by_cells(config)
    raise_all([*problems, *plan.plan_problems(config, settings), *plan.count_problems(settings.backbones, saved)])
    settings = settings._replace(backbones=plan.named_backbones(config, settings.backbones))
    data = str(local_path(data).absolute())
    results = FileResults(output / CHECKED_FILE)
    if probe is None:
        comparison, train, val = plan.make_comparison(config, data, settings, results)
    else:
        comparison, train, val = make_probe_comparison(config, data, settings, probe)
    contents = {
        split: contents_digest(images, results, config.data.threads)
        for split, images in (("train", train), ("val", val))
    }
    comparison = dataclasses.replace(comparison, contents=contents)
    if saved is not None:
        comparison = extend(saved, comparison)
    raise_all(list(plan.grid_problems(comparison)))
    if probe is None:
        plan.check_learnable(comparison, train, results)
    elif probe == "svm":
        check_trainable(comparison, train, val)
    return Planned(comparison, train, val, results)


def compare(planned: Planned, output: Path, jobs: int, gpu: bool, show: Show) -> tuple[Comparison, Result]:
    """Runs the cells of a comparison that are not finished, those that choose learning rates first.

    Args:
        planned: result of `plan_comparison`.
        output: folder of the comparison.
        jobs: cells at a time.
        gpu: True if this machine has a GPU.
        show: called to print the table, after the last backbone of a share and seed, and at the end.

    Raises:
        UserError: a backbone cannot be loaded, or does not fit the detector. Nothing was trained.
        RunFailed: a cell failed, or public weights could not be downloaded.
        RunInterrupted: a signal stopped the cells after their state was saved.
    """
    comparison = planned.comparison
    with locked(output):
        for weights in filter(is_public, itertools.chain(*(one.weights for one in comparison.backbones))):
            weights_file(weights)  # downloads it, unless it is in the cache
        comparison = dataclasses.replace(comparison, digests=check_backbones(comparison))
        comparison = with_overlaps(comparison, planned.val.paths, output)
        write_comparison(output, comparison)
        planned.results.save()

        def report():
            result, rates = read_result(output, comparison), choose_rates(output, comparison)
            write_outputs(output, comparison, result, rates)
            show(comparison, result, rates)
            return result

        gpus = count_gpus() if gpu else 0
        with CellProgress(output, comparison, report) as progress:
            choices = [Task((cell,), cell.rate) for cell in comparison.rate_cells()]
            run_cells(output, choices, jobs, gpus, progress.update)
            run_cells(output, _scored_tasks(output, comparison), jobs, gpus, progress.update)
        return comparison, report()


def _scored_tasks(output: Path, comparison: Comparison) -> list[Task]:
    cells = comparison.scored_cells()
    if comparison.probe is not None:
        return probe_tasks(comparison.backbones, cells)
    rates = choose_rates(output, comparison)
    for label, tried in rates.items():
        if tried.chosen is None:
            problem = f"The loss of {label} is not finite with any of the --learning-rates."
            raise RunFailed(f"{problem} Start a comparison with lower ones, or a longer optimizer.warmup_steps.")
    return [Task((cell,), rates[cell.backbone].chosen) for cell in cells]


def cells_left(comparison: Comparison, output: Path) -> list[Cell]:
    """Returns the cells that are not finished, those that choose learning rates first."""
    every = [*comparison.rate_cells(), *comparison.scored_cells()]
    return [cell for cell in every if not is_finished(output / cell.folder)]


def count_gpus() -> int:
    """Counts the GPUs in another process, since TensorFlow would reserve their memory in this one."""
    code = "import tensorflow as tf; print(len(tf.config.list_physical_devices('GPU')))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    return int(done.stdout) if done.returncode == 0 else 0
