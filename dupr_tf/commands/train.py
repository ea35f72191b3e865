"""Commands that train and evaluate."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path

import tyro

from dupr_tf.commands.report import output_problems, print_scores, problems_of
from dupr_tf.config import Config, load_config
from dupr_tf.data.images.listing import check_root
from dupr_tf.errors import UserError, raise_all
from dupr_tf.probing.labelled import check_class_folders
from dupr_tf.training.cluster import cluster_of, refuse_cluster
from dupr_tf.training.run import CONFIG_FILE, check, check_weights, images_entry, open_images
from dupr_tf.weights.paths import RANDOM, weights_file


@dataclasses.dataclass
class Pretrain:
    """Pre-train a backbone on a folder of unlabelled images; run again, it resumes.

    Writes config.yaml, metrics.jsonl, tensorboard/, checkpoints/ and backbone.keras below --output.
    Any field of the config can be set here as well: --train.epochs 10 (see `dupr-tf fields`).
    """

    config: tyro.conf.Positional[Path]
    """Experiment file, e.g. configs/dupr_r18_small.yaml."""
    output: Path | None = None
    """Folder of the run; needed unless --dry-run."""
    data: Path | None = None
    """Folder of images, COCO or VOC root (labels are not read), shards of `pack`, or tfds:NAME[/CONFIG][:SPLIT]."""
    weights: Path | None = None
    """Weights to start from instead of random ones: a run, an export, .keras, or another tool's checkpoint."""
    allow_change: bool = False
    """Resume a run with another config or other images than it was started with; the differences are printed."""
    dry_run: bool = False
    """Take a few steps, write nothing, and print shapes, memory, images/s and how long the whole run would take."""

    def run(self, overrides: dict[str, str]) -> None:
        config, problems = _config_or_problems(self.config, overrides, Config.pretrain_problems)
        for warning in config.pretrain_warnings(has_gpu()) if config else ():
            print(f"dupr-tf: warning: {warning}", file=sys.stderr)
        root = self.data or (config.data.root if config else None)
        if root is not None:
            problems += problems_of(check_root, root, config.data.kind if config else "auto")
        elif config:
            problems.append(UserError("data.root", "No folder of images is given.", "Pass --data DIR."))
        problems += _probing_problems(config) if config else []
        problems += problems_of(cluster_of, config) if config and not self.dry_run else []
        if self.output is None and not self.dry_run:
            problems.append(UserError("--output", "No folder for the run is given.", "Pass --output runs/mine."))
        raise_all(problems + output_problems(self.output))
        raise_all(self._run_problems(config))
        if self.dry_run:
            from dupr_tf.training.dry_run import dry_run, print_dry_run

            return print_dry_run(dry_run(config, self.data))
        from dupr_tf.training.pretrain import pretrain

        probe = None
        if config.probing.every_epochs:
            from dupr_tf.probing.in_training import build_probe

            probe = build_probe(config.probing, config.train.seed)
        result = pretrain(config, self.output, self.data, self.weights, self.allow_change, probe)
        if result.bad_images:
            from dupr_tf.data.images.bad_images import count_reasons

            reasons = count_reasons(result.bad_images.values())
            print(f"{len(result.bad_images)} images were skipped ({reasons}): see {self.output / 'bad_images.tsv'}")
        print(f"step {result.step}: {result.backbone}")

    def _run_problems(self, config: Config) -> list[UserError]:
        """Checks this start against the run in the output folder and the weights, before TensorFlow loads."""
        if self.dry_run or cluster_of(config) is not None:  # with several workers the chief checks for all
            return []
        problems = problems_of(check_weights, self.output, self.weights, field="--weights")
        if (self.output / CONFIG_FILE).exists() and not self.allow_change:
            config, source = open_images(config, self.data)
            problems += problems_of(check, self.output, config, images_entry(config.data.root, source))
        return problems


@dataclasses.dataclass
class Finetune:
    """Fine-tune a detector from a backbone on labelled images, and evaluate it; run again, it resumes.

    detector.kind says which detector it is.
    Writes metrics.json (AP or mIoU), detector.keras, saved_model/ and pictures below --output.
    Any field of the config can be set here as well: --train.epochs 10 (see `dupr-tf fields`).
    """

    config: tyro.conf.Positional[Path]
    """Experiment file, e.g. configs/retinanet_r18_small.yaml."""
    weights: str
    """A run, an export, .keras, another tool's checkpoint (as `import` reads), or the word random."""
    data: Path
    """Root of a COCO, VOC or Cityscapes set, or of folders of images and masks (see docs/detection.md)."""
    output: Path
    """Folder of the run."""
    allow_change: bool = False
    """Resume a run with another config or other data than it was started with; the differences are printed."""

    def run(self, overrides: dict[str, str]) -> None:
        config, problems = _config_or_problems(self.config, overrides, Config.finetune_problems)
        problems += problems_of(refuse_cluster)
        if not self.data.is_dir():
            problems.append(UserError("--data", f"{self.data} is not a folder.", "Pass the root of a data set."))
        if self.weights != RANDOM:
            problems += problems_of(weights_file, self.weights, field="--weights")
        raise_all([*problems, *output_problems(self.output)])
        from dupr_tf.detection.finetune import finetune

        scores = finetune(config, self.weights, self.data, self.output, allow_change=self.allow_change)
        print_scores(scores, self.output)


@dataclasses.dataclass
class Evaluate:
    """Evaluate a saved detector on the validation split of labelled images with its classes.

    Fields of the config's data section can be set here as well: --data.max_pixels 200000000.
    """

    detector: tyro.conf.Positional[Path]
    """detector.keras, or the folder fine-tuning wrote."""
    data: Path
    """Root of a COCO, VOC or Cityscapes set, or of folders of images and masks."""
    output: Path | None = None
    """Folder for metrics.json and pictures; none: print only."""
    split: str = "val"
    """Which split."""

    def run(self, overrides: dict[str, str]) -> None:
        refuse_cluster()
        others = [name for name in overrides if not name.startswith("data.")]
        if others:
            raise UserError(f"--{others[0]}", "A detector keeps its config.", "Change only fields of data.")
        from dupr_tf.detection.finetune import evaluate

        scores = evaluate(self.detector, self.data, self.output, self.split, overrides=overrides)
        print_scores(scores, self.output)


def has_gpu() -> bool:
    """Returns True if the system shows a GPU (NVIDIA's or AMD's driver), without loading TensorFlow."""
    return any(Path(device).exists() for device in ("/dev/nvidia0", "/dev/dxg", "/dev/kfd"))


def _config_or_problems(path: Path, overrides: dict[str, str], cross_field) -> tuple[Config | None, list[UserError]]:
    """Returns the config with its cross-field mistakes, or None with the mistakes in its fields."""
    try:
        config = load_config(path, overrides)
    except UserError as error:
        return None, list(error.errors)
    return config, cross_field(config)


def _probing_problems(config: Config) -> list[UserError]:
    """Returns errors in the folder of images that a run is probed with."""
    if not config.probing.every_epochs or config.probing.data is None:
        return []  # a missing folder is among `Config.pretrain_problems`
    look = check_class_folders if "knn" in config.probing.probes else check_root
    return problems_of(look, config.probing.data, field="probing.data")
