"""The command that reads another tool's checkpoint."""

from __future__ import annotations

import dataclasses
from pathlib import Path, PurePosixPath

import tyro

from dupr_tf.commands.checks import problems_of
from dupr_tf.commands.screen import print_line
from dupr_tf.environment import check_clock
from dupr_tf.errors import raise_all
from dupr_tf.locks import locked
from dupr_tf.weights.catalogue import ENDINGS, is_public, short_name
from dupr_tf.weights.paths import backbone_output, check_ending, checkpoint_file


@dataclasses.dataclass
class Import:
    """Convert a ResNet checkpoint of another tool to a Keras backbone.

    Reads checkpoints of torchvision, timm, MoCo, SwAV, DenseCL, BYOL and others. The key prefix is detected
    automatically. Heads and queues are dropped and listed. A missing array of the backbone is an error.
    Public checkpoints are downloaded by name, such as moco_v2_800ep; `dupr-tf list weights` has the names.
    `pretrain --weights` and `finetune --weights` take the same files and names directly.
    """

    EXAMPLE = "dupr-tf import resnet50.safetensors --output runs/resnet50.keras"

    file: tyro.conf.Positional[str]
    """Checkpoint: .safetensors or .npz, and with PyTorch installed .pth, .pt, .tar, .ckpt or .torch. Or the name of a
    public one, hf:OWNER/NAME or https://ADDRESS."""
    output: Path | None = None
    """Backbone file to write, ending in .keras. Default: named after the checkpoint, in this folder."""
    prefix: str | None = None
    """Key prefix of the wanted ResNet. Default: detected; required if a file holds several ResNets."""
    overwrite: bool = False
    """Replace an existing file."""
    allow_nonfinite: bool = False
    """Accept weights that are NaN or infinite."""

    def run(self, overrides: dict[str, str]) -> None:
        output = self.output or default_output(self.file)
        problems = problems_of(check_ending if is_public(self.file) else checkpoint_file, self.file)
        raise_all(problems + problems_of(check_clock) + problems_of(backbone_output, output, self.overwrite))
        with locked(output, beside=True):
            file = checkpoint_file(self.file)  # downloads it before TensorFlow loads
            from dupr_tf.weights.loading import import_backbone

            result = import_backbone(file, output, self.prefix, self.overwrite, self.allow_nonfinite)
        names = f"named {result.prefix}…" if result.prefix else "named plainly"
        print_line(
            f"{result.architecture}, width {result.width:g}: {result.matched} arrays matched ({names}), none missing"
        )
        for name in result.dropped:
            print_line(f"  dropped: {name}")
        print_line(f"wrote {output}")


def default_output(file: str) -> Path:
    """Returns the backbone file of a checkpoint: named as this, without its endings, in the current folder."""
    name = short_name(file) if is_public(file) else PurePosixPath(file).name
    while PurePosixPath(name).suffix in ENDINGS:
        name = PurePosixPath(name).stem
    return Path(f"{name or 'backbone'}.keras")
