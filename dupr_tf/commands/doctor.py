"""The command that checks the machine, the images and the config before a run."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import tyro

from dupr_tf.commands.checks import config_or_problems, folder_problems, has_gpu, problems_of
from dupr_tf.commands.screen import print_line, print_table, print_warnings
from dupr_tf.config import Config
from dupr_tf.config.detectors import DETECTORS
from dupr_tf.data.images.listing import check_root
from dupr_tf.data.labels.split import MissingSplit
from dupr_tf.detection.task_labels import LABELS
from dupr_tf.errors import UserError, raise_all
from dupr_tf.forecast.label_checks import about_labels
from dupr_tf.resources import available_memory


@dataclasses.dataclass
class Doctor:
    """Check the machine, the images and the config before training.

    With a config of a detector, it checks the labels too: classes, boxes at the size of the network, duplicates.
    Writes nothing. Any field of the config is a flag too: --train.epochs 10. `dupr-tf fields` lists them.
    """

    EXAMPLE = "dupr-tf doctor configs/demo.yaml --data runs/sample/unlabeled"

    config: tyro.conf.Positional[Path | None] = None
    """Config of the planned run of pretrain or finetune. Default: only the machine and the images are checked."""
    data: Path | None = None
    """Folder of images, root of labelled data, shards, or tfds:NAME. Default: data.root of the config."""
    steps: bool = False
    """Measure the speed in a few real steps, as `pretrain --dry-run` does. Needs a config and images."""

    def run(self, overrides: dict[str, str]) -> None:
        config, root = self._check(overrides)
        if config is not None and config.detector is not None:
            return _check_detector(config, root)
        print_warnings([] if config is None else config.pretrain_warnings(has_gpu()))
        from dupr_tf.data.images.listing import open_source
        from dupr_tf.forecast.doctor import about_images, about_run, machine_rows

        source = None if root is None else open_source(root, config.data.kind if config else "auto")[1]
        print_table(("this machine", ""), machine_rows())
        examinations = [about_images(source, config)] if source is not None else []
        if config is not None:
            from dupr_tf.forecast.dry_run import dry_run

            free = None if has_gpu() else available_memory()  # before the dry run takes its share
            steps = dry_run(config, root) if self.steps else None
            examinations.append(about_run(config, None if source is None else len(source), steps, free))
        for examination in examinations:
            print()
            print_table((examination.title, ""), examination.rows)
            for sentence in examination.sentences:
                print_line(f"* {sentence}")

    def _check(self, overrides) -> tuple[Config | None, Path | str | None]:
        """Returns the config and the root before TensorFlow loads; raises all mistakes at once."""
        problems, config = [], None
        if self.config is not None:
            config, problems = config_or_problems(self.config, overrides, _cross_field)
        elif overrides:
            problem = "No config is given, so there is no field to change."
            problems.append(UserError(f"--{next(iter(overrides))}", problem, "Pass a config as the first argument."))
        root = self.data or (config.data.root if config else None)
        if config is not None and config.detector is not None:
            problems += _detector_problems(root, self.steps)
        elif root is not None:
            problems += problems_of(check_root, root, config.data.kind if config else "auto")
        if self.steps and (self.config is None or root is None):
            problem, fix = "Steps need a config and images.", "Run: dupr-tf doctor CONFIG --data DIR --steps."
            problems.append(UserError("--steps", problem, fix))
        raise_all(problems)
        return config, root


def _cross_field(config: Config) -> list[UserError]:
    return config.pretrain_problems() if config.detector is None else config.finetune_problems()


def _detector_problems(root: Path | str | None, steps: bool) -> list[UserError]:
    problems = []
    if steps:
        problem = "It measures steps of pre-training, and this config is for finetune."
        problems.append(UserError("--steps", problem, "Leave it out."))
    return problems + ([] if root is None else folder_problems(root, "Pass the root of a labelled data set."))


def _check_detector(config: Config, root: Path | str | None) -> None:
    """Prints statistics of the labels of a detector's data. Mistakes in them are raised before TensorFlow loads."""
    examined = None if root is None else _examine_labels(config, root)
    from dupr_tf.forecast.doctor import machine_rows

    print_table(("this machine", ""), machine_rows())
    rows, sentences = examined or ([], ["Pass --data ROOT to check the labels."])
    if rows:
        print()
        print_table(("the labels", ""), rows)
    for sentence in sentences:
        print_line(f"* {sentence}")


def _examine_labels(config: Config, root: Path | str) -> tuple[list[tuple[str, str]], list[str]]:
    labels = LABELS[DETECTORS[config.detector.kind].facts["task"]]
    train = labels.read(root, "train", config.data)
    try:
        val, missing = labels.read(root, "val", config.data, train.class_names), ""
    except MissingSplit as error:
        val, missing = None, error.found
    return about_labels(train, val, config, missing)
