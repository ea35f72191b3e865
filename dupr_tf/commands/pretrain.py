"""The command that pre-trains a backbone."""

from __future__ import annotations

import contextlib
import dataclasses
from pathlib import Path
from typing import Literal

import tyro

from dupr_tf.commands.checks import config_or_problems, has_gpu, output_problems, problems_of, public_problems
from dupr_tf.commands.screen import print_line, print_table, print_warnings
from dupr_tf.config import Config, DataConfig
from dupr_tf.data.images.bad_images import check_photos, kinds_text
from dupr_tf.errors import UserError, raise_all
from dupr_tf.locks import locked
from dupr_tf.probing.labelled import check_probed
from dupr_tf.streams import lasting_streams
from dupr_tf.training.cluster import cluster_of
from dupr_tf.training.pool import Pool, check_exclude, exclusion_changes, open_pool
from dupr_tf.training.run import CONFIG_FILE, check, check_weights
from dupr_tf.training.run_images import images_entry


@dataclasses.dataclass
class Pretrain:
    """Pre-train a backbone on unlabelled images.

    Run the same command again to resume.
    Writes config.yaml, metrics.jsonl, tensorboard/, checkpoints/ and backbone.keras to --output.
    Any field of the config is a flag too: --train.epochs 10. `dupr-tf fields` lists them.
    """

    EXAMPLE = "dupr-tf pretrain configs/demo.yaml --data runs/sample/unlabeled --output runs/try/photos"

    config: tyro.conf.Positional[Path]
    """Config of the experiment."""
    output: Path | None = None
    """Folder of the run, outside of the data. Required without --dry-run."""
    data: Path | None = None
    """Folder of images, COCO or VOC root (labels are not read), shards of `pack`, or tfds:NAME[/CONFIG][:SPLIT].
    Default: data.root of the config."""
    exclude: tuple[Path, ...] = ()
    """Test images: folders of photos, or labelled data sets, whose split val is taken. Photos of --data with the same
    bytes or nearly the same picture are left out. Default: none, or in a resumed run those of its start."""
    weights: str | None = None
    """Weights to start from: a run, an export, a .keras file, or a checkpoint that `import` reads. Public ones are
    downloaded: imagenet, another name of `dupr-tf list weights`, hf:OWNER/NAME or https://ADDRESS. Default: random."""
    allow_change: bool = False
    """Resume although the config or the images differ from those of the start. The differences are printed."""
    after_change: Literal["planned", "decay", "warmup"] | None = None
    """Learning rate after an allowed change: that of the new schedule (planned), the present rate that decays over the
    steps left, or a new warm-up. Default: planned, or warmup if the rate would jump."""
    dry_run: bool = False
    """Take a few steps and print shapes, memory, images/s and the duration of the whole run. Writes nothing."""

    def run(self, overrides: dict[str, str]) -> None:
        config, problems = config_or_problems(self.config, overrides, Config.pretrain_problems)
        print_warnings(config.pretrain_warnings(has_gpu()) if config else ())
        root = self.data or (config.data.root if config else None)
        if root is not None:
            section = config.data if config else DataConfig()
            problems += problems_of(check_photos, root, section.kind, section.max_pixels, section.depth)
        elif config:
            problems.append(UserError("data.root", "No folder of images is given.", "Pass --data DIR."))
        problems += problems_of(check_exclude, self.exclude, root)
        problems += _probing_problems(config) if config else []
        problems += public_problems(self.weights, config)
        problems += problems_of(cluster_of, config) if config and not self.dry_run else []
        if self.output is None and not self.dry_run:
            problems.append(UserError("--output", "No folder for the run is given.", "Pass --output runs/mine."))
        raise_all(problems + output_problems(self.output, root))
        if self.dry_run:
            pool = self._open_pool(config)
            from dupr_tf.forecast.dry_run import dry_run

            return print_table(("dry run", ""), dry_run(config, pool=pool).rows())
        # The chief of several workers locks the folder when all have come, since they may end this process any time.
        with lasting_streams(), locked(self.output) if cluster_of(config) is None else contextlib.nullcontext():
            self._train(config, self._checked_pool(config))
        return None

    def _train(self, config: Config, pool: Pool | None) -> None:
        from dupr_tf.training.pretrain import pretrain

        probe = None
        if config.probing.every_epochs:
            from dupr_tf.probing.in_training import build_probe

            probe = build_probe(config.probing, config.train.seed, config.data)
        choices = self.weights, self.allow_change, probe, self.after_change, self.exclude, pool
        result = pretrain(config, self.output, self.data, *choices)
        if result.skipped:
            count, kinds = sum(result.skipped.values()), kinds_text(result.skipped)
            print_line(f"{count:,} images were skipped ({kinds}): see {self.output / 'bad_images.tsv'}")
        print_line(f"step {result.step}: {result.backbone}")

    def _checked_pool(self, config: Config) -> Pool | None:
        """Opens the images, and checks this start against the run in the output folder, without TensorFlow.

        Returns:
            The images. None for one of several workers, which check the start together.

        Raises:
            UserError: the run has other images, another config or other weights.
        """
        if cluster_of(config) is not None:
            return None
        pool = self._open_pool(config)
        problems = problems_of(check_weights, self.output, config, self.weights, field="--weights")
        if (self.output / CONFIG_FILE).exists() and not self.allow_change:
            images = images_entry(pool.config.data.root, pool.source)
            others = exclusion_changes(self.output, pool.exclusion)
            problems += problems_of(check, self.output, pool.config, images, False, others)
        raise_all(problems)
        return pool

    def _open_pool(self, config: Config) -> Pool:
        """Opens the images, and warns if they do not suit the config."""
        from dupr_tf.forecast.advice import grave_warnings

        pool = open_pool(config, self.data, self.exclude, self.output, saves=not self.dry_run)
        print_warnings(grave_warnings(pool.config, len(pool.source)))
        return pool


def _probing_problems(config: Config) -> list[UserError]:
    """Returns errors in the folder of images that a run is probed with."""
    if not config.probing.every_epochs or config.probing.data is None:
        return []  # a missing folder is among `Config.pretrain_problems`
    looks = (
        problems_of(check_probed, name, config.probing.data, field="probing.data") for name in config.probing.probes
    )
    return next(filter(None, looks), [])
