"""`dupr-tf <command>`: parse, check, call. TensorFlow is imported only once the configuration is known to be right."""

from __future__ import annotations

import dataclasses
import logging
import os
import signal
import sys
from pathlib import Path
from typing import Annotated, Literal

import tyro

from dupr_tf.config import Config, ConfigError, DataConfig, field_rows, load_config, parse_config
from dupr_tf.data.shard_files import PackError
from dupr_tf.data.sources import check_root, list_images
from dupr_tf.training.failures import RunFailed
from dupr_tf.weights.formats import ExportError, check_format

REFUSED = 1
USER_ERROR = 2
BY_SIGNAL = 128  # plus the number of the signal, as shells have it
DESCRIPTION = "Pre-train object-detection backbones on unlabelled images (DUPR), fine-tune detectors, export weights."


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
    """Go on with a run begun with another config or other images; the differences are printed."""
    dry_run: bool = False
    """Take a few steps, write nothing, and print shapes, memory, images/s and how long the whole run would take."""

    def run(self, overrides: dict[str, str]) -> None:
        config, problems = _config_or_problems(self.config, overrides, Config.pretrain_problems)
        for warning in config.pretrain_warnings(has_gpu()) if config else ():
            print(f"dupr-tf: warning: {warning}", file=sys.stderr)
        root = self.data or (config.data.root if config else None)
        if root is not None:
            problems += _problem_of(check_root, root, config.data.kind if config else "auto")
        elif config:
            problems.append("data.root: expected a folder of images, received none. Fix: --data DIR")
        if self.output is None and not self.dry_run:
            problems.append("--output: expected a folder for the run, received none. Fix: --output runs/mine")
        _refuse(problems)
        if self.dry_run:
            from dupr_tf.training.dry_run import dry_run, print_dry_run

            return print_dry_run(dry_run(config, self.data))
        from dupr_tf.training.pretrain import pretrain

        result = pretrain(config, self.output, self.data, self.weights, self.allow_change)
        if result.bad_images:
            from dupr_tf.data.bad_images import count_reasons

            reasons = count_reasons(result.bad_images.values())
            print(f"{len(result.bad_images)} images were skipped ({reasons}): see {self.output / 'bad_images.tsv'}")
        print(f"step {result.step}: {result.backbone}")


@dataclasses.dataclass
class Finetune:
    """Fine-tune a detector from a backbone on a COCO or VOC data set, and evaluate it.

    Writes metrics.json (AP), detector.keras, saved_model/ and detections.png below --output.
    Any field of the config can be set here as well: --train.epochs 10 (see `dupr-tf fields`).
    """

    config: tyro.conf.Positional[Path]
    """Experiment file, e.g. configs/retinanet_r18_small.yaml."""
    weights: str
    """A run, an export, .keras, another tool's checkpoint (as `import` reads), or the word random."""
    data: Path
    """Root with annotations/instances_{train,val}.json, or a VOC root."""
    output: Path
    """Folder for the results."""

    def run(self, overrides: dict[str, str]) -> None:
        config, problems = _config_or_problems(self.config, overrides, Config.finetune_problems)
        if not self.data.is_dir():
            problems.append(f"--data: expected a folder, received {self.data}. Fix: the root of a COCO or VOC set")
        if self.weights != "random" and not Path(self.weights).exists():
            problems.append(f"--weights: expected a file, a run or the word random, received {self.weights} (no such)")
        _refuse(problems)
        from dupr_tf.detection.finetune import finetune

        print_scores(finetune(config, self.weights, self.data, self.output), self.output)


@dataclasses.dataclass
class Evaluate:
    """Evaluate a saved detector on the validation split of a COCO or VOC data set."""

    detector: tyro.conf.Positional[Path]
    """detector.keras, or the folder fine-tuning wrote."""
    data: Path
    """Root with annotations/instances_val.json, or a VOC root."""
    output: Path | None = None
    """Folder for metrics.json and detections.png; none: print only."""

    def run(self, overrides: dict[str, str]) -> None:
        from dupr_tf.detection.finetune import evaluate

        print_scores(evaluate(self.detector, self.data, self.output), self.output)


@dataclasses.dataclass
class Export:
    """Write a backbone for other tools, read it back, and compare its features with the original's.

    Exit code 1, and nothing under --output, if they differ by more than 1e-4, a tensor has no counterpart, or the disk
    is full.
    """

    run_or_file: Annotated[Path, tyro.conf.arg(name="run", metavar="RUN"), tyro.conf.Positional]
    """A pre-training run, or a backbone file (.keras, .safetensors)."""
    to: Literal["keras", "saved_model", "onnx", "torchvision", "timm", "detectron2", "kerashub", "kerascv"]
    """keras, kerascv: .keras. saved_model, onnx: images in, P2..P5 out. torchvision, timm: safetensors. detectron2: a
    pickle it loads. kerashub: a preset."""
    output: Path
    """Directory to make."""
    overwrite: bool = False
    """Replace an earlier export."""
    license: str | None = None
    """Licence of the weights, for the model card; without it the card says "not stated"."""
    allow_nonfinite: bool = False
    """Write weights that are NaN or infinite all the same."""

    def run(self, overrides: dict[str, str]) -> None:
        check_format(self.to)
        from dupr_tf.weights.export import export
        from dupr_tf.weights.loading import load_backbone
        from dupr_tf.weights.model_card import run_facts

        backbone = load_backbone(self.run_or_file, allow_nonfinite=self.allow_nonfinite)
        card = run_facts(self.run_or_file)
        print_export(export(backbone, self.to, self.output, self.overwrite, card, self.allow_nonfinite, self.license))


@dataclasses.dataclass
class Import:
    """Turn another tool's ResNet checkpoint into a Keras backbone: torchvision, timm, MoCo, SwAV, DenseCL, BYOL, …

    What stands before a ResNet's names is found, heads and queues are left behind and listed; an array of the backbone
    that is missing is an error. `pretrain --weights` and `finetune --weights` take the same files directly.
    """

    file: tyro.conf.Positional[Path]
    """.safetensors or .npz; .pth, .pt, .tar, .ckpt where PyTorch is installed."""
    output: Path
    """The backbone's file, ending in .keras."""
    prefix: str | None = None
    """What the names of the wanted ResNet begin with, where a file holds several."""
    overwrite: bool = False
    """Replace an earlier file."""
    allow_nonfinite: bool = False
    """Take weights that are NaN or infinite; otherwise they are named and refused."""

    def run(self, overrides: dict[str, str]) -> None:
        from dupr_tf.weights.loading import import_backbone

        found = import_backbone(self.file, self.output, self.prefix, self.overwrite, self.allow_nonfinite)
        names = f"named {found.prefix}…" if found.prefix else "named plainly"
        print(f"{found.architecture}, width {found.width:g}: {found.matched} arrays matched ({names}), none missing")
        for name in found.dropped:
            print(f"  left behind: {name}")
        print(f"wrote {self.output}")


@dataclasses.dataclass
class Pack:
    """Write a folder of images as TFRecord shards, for `pretrain --data SHARDS`; run again, it goes on.

    Unreadable files are left out, named, and listed in bad_images.tsv. Each shard is a random sample of the images, so
    that a part of the shards stands for all, and readers that shuffle only what they hold see a shuffled whole.
    """

    directory: tyro.conf.Positional[Path]
    """Folder of images, or a COCO or VOC root; with --verify, the shards."""
    output: Path | None = None
    """Folder of the shards; needed unless --verify."""
    long_side: int | None = None
    """Shrink larger images to this, px, turned upright, as JPEG; none: the files' own bytes."""
    quality: int = 95
    """Of those JPEGs."""
    images_per_shard: int = 2000
    """Files a shard takes: 200 MB of ImageNet's."""
    shuffle: bool = True
    """Pack in an order drawn from --seed, or in that of the names."""
    seed: int = 0
    workers: int | None = None
    """Threads that read, check and encode; none: one a CPU."""
    max_bad_share: float = 0.01
    """Share of the files that may be unreadable."""
    verify: bool = False
    """Compare shards with their checksums, write nothing."""

    def run(self, overrides: dict[str, str]) -> None:
        if self.verify:
            return print_verified(self.directory)
        if self.output is None:
            raise ConfigError(["--output: expected a folder for the shards, received none. Fix: --output SHARDS"])
        check_root(self.directory, "folder")
        from dupr_tf.data.pack import PackSettings, pack

        settings = PackSettings(self.long_side, self.quality, self.images_per_shard, self.shuffle, self.seed)
        packed = pack(self.directory, self.output, settings, self.workers, self.max_bad_share)
        size = sum(shard.bytes for shard in packed.shards)
        print(f"{packed.images:,} images in {len(packed.shards)} shards ({packed.written} written now), {size:,} bytes")
        if packed.bad:
            print(f"{len(packed.bad)} unreadable files were left out: {self.output / 'bad_images.tsv'}")
        print(f"wrote {self.output}")


@dataclasses.dataclass
class Sample:
    """Draw the embedded sample: synthetic scenes of textured shapes, with and without boxes."""

    directory: tyro.conf.Positional[Path]
    """Folder to write: unlabeled/, and a COCO data set (images/, annotations/)."""
    train: int = 400
    """Labelled scenes to train on."""
    val: int = 100
    """Labelled scenes to evaluate on."""
    unlabeled: int = 1200
    """Scenes without labels, to pre-train on."""
    seed: int = 0

    def run(self, overrides: dict[str, str]) -> None:
        from dupr_tf.data.sample import write_sample

        write_sample(self.directory, train=self.train, val=self.val, unlabeled=self.unlabeled, seed=self.seed)
        print(f"synthetic sample: {self.directory}")


@dataclasses.dataclass
class Scan:
    """Say what pre-training will make of every file of a folder: used, and how, or skipped, and why.

    Exit code 1 if more would be skipped than --max-bad-share allows, as then the run would stop too.
    """

    directory: tyro.conf.Positional[Path]
    """Folder of images (nested or flat), or a COCO or VOC root, as for `pretrain --data`."""
    output: Path | None = None
    """File for a line for each image, tab-separated. Run again, it goes on there; changed files are looked at again."""
    workers: int = os.cpu_count() or 1
    """Images decoded at a time."""
    max_bad_share: float = DataConfig().max_bad_share
    """data.max_bad_share of the run to come."""
    max_pixels: int = DataConfig().max_pixels
    """data.max_pixels of the run to come."""

    def run(self, overrides: dict[str, str]) -> int:
        limits = {"max_bad_share": self.max_bad_share, "max_pixels": self.max_pixels}
        parse_config({"data": limits})
        if self.workers < 1:
            raise ConfigError([f"--workers: expected 1 or more, received {self.workers}"])
        paths = list_images(self.directory)
        from dupr_tf.data.scan import SKIPPED, count_groups, scan_images

        looks = list(_with_progress(scan_images(paths, self.max_pixels, self.workers, self.output), len(paths)))
        skipped = sum(look.outcome == SKIPPED for look in looks)
        print_table(("outcome", "reason", "files", "such as"), count_groups(looks))
        print(f"{skipped} of {len(looks)} images would be skipped ({skipped / len(looks):.2%})")
        return REFUSED if skipped > self.max_bad_share * len(looks) else 0


@dataclasses.dataclass
class Fields:
    """List every field of a config with its default: what --section.field can set."""

    def run(self, overrides: dict[str, str]) -> None:
        print_table(("field", "default", "meaning"), field_rows())


COMMANDS = {
    "pretrain": Pretrain, "finetune": Finetune, "evaluate": Evaluate,
    "export": Export, "import": Import, "pack": Pack, "sample": Sample, "scan": Scan, "fields": Fields,
}  # fmt: skip
CONFIGURED = ("pretrain", "finetune")


def main(arguments: list[str] | None = None) -> int:
    """Runs one command. Returns 0; 2 where the user's input is wrong, 1 where a run fails or its result is refused.

    A run that SIGTERM or SIGINT ended returns 143 or 130.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    logging.getLogger("absl").setLevel(logging.WARNING)
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # TensorFlow's C++ chatter; what matters is raised
    try:
        arguments, overrides = split_overrides(arguments)
        if overrides and arguments[:1] not in [[name] for name in CONFIGURED]:
            raise ConfigError([f"{next(iter(overrides))}: only {' and '.join(CONFIGURED)} take fields of a config"])
        command = tyro.extras.subcommand_cli_from_dict(
            COMMANDS,
            args=arguments, prog="dupr-tf", description=DESCRIPTION, console_outputs=True,
        )  # fmt: skip
        return command.run(overrides) or 0
    except KeyboardInterrupt as error:  # of a run, which has saved its state, or of anything else
        print(f"dupr-tf: {error or 'interrupted'}", file=sys.stderr)
        return BY_SIGNAL + getattr(error, "number", signal.SIGINT)
    except (ExportError, PackError, RunFailed) as error:
        print(f"dupr-tf: error: {error}", file=sys.stderr)
        return REFUSED
    except ValueError as error:
        if not isinstance(error, ConfigError) and not str(error).startswith("Expected"):
            raise  # a defect of ours, not of the input
        for line in str(error).splitlines():
            print(f"dupr-tf: error: {line}", file=sys.stderr)
        return USER_ERROR


def split_overrides(arguments: list[str]) -> tuple[list[str], dict[str, str]]:
    """Takes `--section.field value` and `--section.field=value` out of a command line.

    Returns:
        The other arguments, and {dotted field: text of its value}.
    """
    rest, overrides, i = [], {}, 0
    while i < len(arguments):
        word = arguments[i]
        i += 1
        name, equals, value = word.removeprefix("--").partition("=")
        if not word.startswith("--") or "." not in name or "/" in name:
            rest.append(word)
            continue
        if not equals:
            if i == len(arguments):
                raise ConfigError([f"{name}: expected a value after it, received none"])
            value = arguments[i]
            i += 1
        overrides[name] = value
    return rest, overrides


def print_table(head: tuple[str, ...], rows: list[tuple]) -> None:
    """Prints rows under bold headings; on a terminal, cut to its width."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(*head, box=None, header_style="bold")
    for row in rows:
        table.add_row(*(Text(str(cell)) for cell in row))  # plain text: a name may hold [brackets]
    Console().print(table)


def print_scores(scores: dict, output: Path | None) -> None:
    """Prints AP, the best and worst classes, and where the rest is."""
    print("  ".join(f"{name} {scores[name]:.3f}" for name in ("AP", "AP50", "AP75")))
    for name, value in sorted(scores["per_class"].items(), key=lambda item: 1 if item[1] is None else -item[1]):
        print(f"  {name:16s} AP " + ("of nothing to find" if value is None else f"{value:.3f}"))
    if output is not None:
        print(f"wrote {output}")


def print_export(written: Path) -> None:
    """Prints the files of an export and, from its manifest, what it was compared with and the largest differences."""
    from dupr_tf.weights.manifest import read_manifest

    print(f"wrote {written}")
    for path in sorted(p for p in written.rglob("*") if p.is_file()):
        print(f"  {path.relative_to(written)}  {path.stat().st_size:,} bytes")
    manifest = read_manifest(written)
    largest: dict[tuple[str, str], float] = {}
    for check in manifest["checks"]:
        key = check["against"], check["level"]
        largest[key] = max(largest.get(key, 0.0), check["difference"])
    for against in dict.fromkeys(against for against, _ in largest):
        levels = ", ".join(f"{level} {largest[a, level]:.1e}" for a, level in largest if a == against)
        print(f"compared with {against}: {levels}")
    for reason in manifest["not_compared"]:
        print(f"not compared with {reason}")
    relative = manifest["relative_difference"]
    print(f"largest difference {manifest['difference']:.1e} ({relative:.1e} of the largest feature)")


def print_verified(root: Path) -> None:
    """Compares shards with their checksums. Raises ValueError with a line for each that is damaged."""
    from dupr_tf.data.shard_files import damaged_files

    found = [wrong for _, wrong in damaged_files(root)]
    if any(found):
        raise ValueError("\n".join(filter(None, found)))
    print(f"{len(found)} shards are what was packed: {root}")


def has_gpu() -> bool:
    """Whether the system shows a GPU (NVIDIA's or AMD's driver); asked before TensorFlow is loaded."""
    return any(Path(device).exists() for device in ("/dev/nvidia0", "/dev/dxg", "/dev/kfd"))


def _with_progress(items, total: int):
    """Passes items on; on a terminal, a bar counts them."""
    from rich.console import Console
    from rich.progress import track

    console = Console(stderr=True)
    yield from track(items, "scanning", total, console=console, disable=not console.is_terminal)


def _config_or_problems(path: Path, overrides: dict[str, str], cross_field) -> tuple[Config | None, list[str]]:
    """The config with its cross-field mistakes, or none with the mistakes in its fields."""
    try:
        config = load_config(path, overrides)
    except ConfigError as error:
        return None, error.problems
    return config, cross_field(config)


def _problem_of(check, *arguments) -> list[str]:
    try:
        check(*arguments)
    except ValueError as error:
        return [str(error)]
    return []


def _refuse(problems: list[str]) -> None:
    if problems:
        raise ConfigError(problems)


if __name__ == "__main__":
    sys.exit(main())
