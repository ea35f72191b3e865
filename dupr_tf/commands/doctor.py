"""The command that checks the machine, the images and the config before a run."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import tyro

from dupr_tf.commands.checks import has_gpu, problems_of
from dupr_tf.commands.screen import print_line, print_table, print_warnings
from dupr_tf.config import Config, load_config
from dupr_tf.data.images.listing import check_root
from dupr_tf.errors import UserError, raise_all


@dataclasses.dataclass
class Doctor:
    """Check the machine, the images and the config before training.

    Writes nothing. Any field of the config is a flag too: --train.epochs 10. `dupr-tf fields` lists them.
    """

    EXAMPLE = "dupr-tf doctor configs/demo.yaml --data runs/sample/unlabeled"

    config: tyro.conf.Positional[Path | None] = None
    """Config of the planned pre-training run. Default: only the machine and the images are checked."""
    data: Path | None = None
    """Folder of images, COCO or VOC root, shards, or tfds:NAME. Default: data.root of the config."""
    steps: bool = False
    """Measure the speed in a few real steps, as `pretrain --dry-run` does. Needs a config and images."""

    def run(self, overrides: dict[str, str]) -> None:
        config, root = self._check(overrides)
        print_warnings([] if config is None else config.pretrain_warnings(has_gpu()))
        from dupr_tf.data.images.listing import open_source
        from dupr_tf.forecast.doctor import about_images, about_run, machine_rows

        source = None if root is None else open_source(root, config.data.kind if config else "auto")[1]
        print_table(("this machine", ""), machine_rows())
        examinations = [about_images(source, config)] if source is not None else []
        if config is not None:
            from dupr_tf.forecast.dry_run import dry_run

            steps = dry_run(config, root) if self.steps else None
            examinations.append(about_run(config, None if source is None else len(source), steps))
        for examination in examinations:
            print()
            print_table((examination.title, ""), examination.rows)
            for sentence in examination.sentences:
                print_line(f"* {sentence}")

    def _check(self, overrides) -> tuple[Config | None, Path | str | None]:
        """Returns the config and the root before TensorFlow loads; raises all mistakes at once."""
        problems, config = [], None
        if self.config is not None:
            try:
                config = load_config(self.config, overrides)
                problems += config.pretrain_problems()
            except UserError as error:
                problems += error.errors
        elif overrides:
            problem = "There is no config whose field it could change."
            problems.append(UserError(f"--{next(iter(overrides))}", problem, "Pass a config as the first argument."))
        root = self.data or (config.data.root if config else None)
        if root is not None:
            problems += problems_of(check_root, root, config.data.kind if config else "auto")
        if self.steps and (self.config is None or root is None):
            problem, fix = "Steps need a config and images.", "Run: dupr-tf doctor CONFIG --data DIR --steps."
            problems.append(UserError("--steps", problem, fix))
        raise_all(problems)
        return config, root
