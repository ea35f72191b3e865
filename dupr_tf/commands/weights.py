"""Commands that write and read weights."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated, Literal

import tyro

from dupr_tf.commands.report import print_export, problems_of
from dupr_tf.errors import raise_all
from dupr_tf.weights.formats import EXPORTS, FORMATS
from dupr_tf.weights.paths import backbone_output, checkpoint_file, export_output, weights_file


@dataclasses.dataclass
class Export:
    """Write a backbone for other tools, read it back, and compare its features with the original's.

    Exit code 1, and nothing under --output, if they differ by more than 1e-4, a tensor has no counterpart, or the disk
    is full.
    """

    run_or_file: Annotated[Path, tyro.conf.arg(name="run", metavar="RUN"), tyro.conf.Positional]
    """A pre-training run, or a backbone file (.keras, .safetensors)."""
    to: Literal[FORMATS]
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
        problems = problems_of(EXPORTS.check, self.to) + problems_of(weights_file, self.run_or_file)
        raise_all(problems + problems_of(export_output, self.output, self.overwrite))
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
        problems = problems_of(checkpoint_file, self.file)
        raise_all(problems + problems_of(backbone_output, self.output, self.overwrite))
        from dupr_tf.weights.loading import import_backbone

        found = import_backbone(self.file, self.output, self.prefix, self.overwrite, self.allow_nonfinite)
        names = f"named {found.prefix}…" if found.prefix else "named plainly"
        print(f"{found.architecture}, width {found.width:g}: {found.matched} arrays matched ({names}), none missing")
        for name in found.dropped:
            print(f"  left behind: {name}")
        print(f"wrote {self.output}")
