"""The command that writes a backbone for other tools."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated, Literal

import tyro

from dupr_tf.commands.checks import problems_of
from dupr_tf.commands.screen import print_line
from dupr_tf.errors import raise_all
from dupr_tf.locks import locked
from dupr_tf.weights.formats import EXPORTS, FORMATS
from dupr_tf.weights.paths import export_output, weights_file


@dataclasses.dataclass
class Export:
    """Write a backbone for another library.

    The export is read back and its features are compared with those of the original. The exit code is 1, and --output
    is not written, if they differ by more than 1e-4, a tensor has no counterpart, or the disk is full.
    """

    EXAMPLE = "dupr-tf export runs/demo --to torchvision --output runs/torchvision"

    run_or_file: Annotated[Path, tyro.conf.arg(name="run", metavar="RUN"), tyro.conf.Positional]
    """A pre-training run, or a backbone file (.keras, .safetensors)."""
    to: Literal[FORMATS]
    """Target. keras and kerascv write .keras, torchvision and timm safetensors, detectron2 a pickle, kerashub a preset.
    saved_model and onnx take images and return P2..P5."""
    output: Path
    """Folder to write."""
    overwrite: bool = False
    """Replace an earlier export in the same folder."""
    license: str | None = None
    """Licence of the weights for the model card. Default: "not stated"."""
    allow_nonfinite: bool = False
    """Accept weights that are NaN or infinite."""

    def run(self, overrides: dict[str, str]) -> None:
        problems = problems_of(EXPORTS.check, self.to) + problems_of(weights_file, self.run_or_file)
        raise_all(problems + problems_of(export_output, self.output, self.overwrite))
        with locked(self.output, beside=True):
            from dupr_tf.weights.export import export
            from dupr_tf.weights.loading import load_backbone
            from dupr_tf.weights.model_card import run_facts

            backbone = load_backbone(self.run_or_file, allow_nonfinite=self.allow_nonfinite)
            options = self.overwrite, run_facts(self.run_or_file), self.allow_nonfinite, self.license
            print_export(export(backbone, self.to, self.output, *options))


def print_export(written: Path) -> None:
    """Prints the files of an export and, from its manifest, the comparisons made and the largest differences."""
    from dupr_tf.weights.manifest import read_manifest

    print_line(f"wrote {written}")
    for path in sorted(p for p in written.rglob("*") if p.is_file()):
        print_line(f"  {path.relative_to(written)}  {path.stat().st_size:,} bytes")
    manifest = read_manifest(written)
    largest: dict[tuple[str, str], float] = {}
    for check in manifest["checks"]:
        key = check["against"], check["level"]
        largest[key] = max(largest.get(key, 0.0), check["difference"])
    for against in dict.fromkeys(against for against, _ in largest):
        levels = ", ".join(f"{level} {largest[a, level]:.1e}" for a, level in largest if a == against)
        print_line(f"compared with {against}: {levels}")
    for reason in manifest["not_compared"]:
        print_line(f"not compared with {reason}")
    relative = manifest["relative_difference"]
    print_line(f"largest difference {manifest['difference']:.1e} ({relative:.1e} of the largest feature)")
