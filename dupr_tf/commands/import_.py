"""The command that reads another tool's checkpoint."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import tyro

from dupr_tf.commands.checks import problems_of
from dupr_tf.errors import raise_all
from dupr_tf.weights.paths import backbone_output, checkpoint_file


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
        problems = problems_of(checkpoint_file, self.file)
        raise_all(problems + problems_of(backbone_output, self.output, self.overwrite))
        from dupr_tf.weights.loading import import_backbone

        result = import_backbone(self.file, self.output, self.prefix, self.overwrite, self.allow_nonfinite)
        names = f"named {result.prefix}…" if result.prefix else "named plainly"
        print(f"{result.architecture}, width {result.width:g}: {result.matched} arrays matched ({names}), none missing")
        for name in result.dropped:
            print(f"  left behind: {name}")
        print(f"wrote {self.output}")
