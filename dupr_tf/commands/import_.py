"""The command that reads another tool's checkpoint."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import tyro

from dupr_tf.commands.checks import problems_of
from dupr_tf.commands.screen import print_line
from dupr_tf.errors import raise_all
from dupr_tf.locks import locked
from dupr_tf.weights.paths import backbone_output, checkpoint_file


@dataclasses.dataclass
class Import:
    """Convert a ResNet checkpoint of another tool to a Keras backbone.

    Reads checkpoints of torchvision, timm, MoCo, SwAV, DenseCL, BYOL and others. The key prefix is detected
    automatically. Heads and queues are dropped and listed. A missing array of the backbone is an error.
    `pretrain --weights` and `finetune --weights` take the same files directly.
    """

    EXAMPLE = "dupr-tf import resnet50.safetensors --output runs/resnet50.keras"

    file: tyro.conf.Positional[Path]
    """Checkpoint: .safetensors or .npz, and with PyTorch installed .pth, .pt, .tar or .ckpt."""
    output: Path
    """Backbone file to write, ending in .keras."""
    prefix: str | None = None
    """Key prefix of the wanted ResNet. Default: detected; required if a file holds several ResNets."""
    overwrite: bool = False
    """Replace an existing file."""
    allow_nonfinite: bool = False
    """Accept weights that are NaN or infinite."""

    def run(self, overrides: dict[str, str]) -> None:
        problems = problems_of(checkpoint_file, self.file)
        raise_all(problems + problems_of(backbone_output, self.output, self.overwrite))
        with locked(self.output, beside=True):
            from dupr_tf.weights.loading import import_backbone

            result = import_backbone(self.file, self.output, self.prefix, self.overwrite, self.allow_nonfinite)
        names = f"named {result.prefix}…" if result.prefix else "named plainly"
        print_line(
            f"{result.architecture}, width {result.width:g}: {result.matched} arrays matched ({names}), none missing"
        )
        for name in result.dropped:
            print_line(f"  dropped: {name}")
        print_line(f"wrote {self.output}")
