"""The command that writes a backbone or a detector for other tools."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated, Literal

import tyro

from dupr_tf.commands.checks import problems_of
from dupr_tf.commands.screen import print_line
from dupr_tf.data.images.decode import read_photo
from dupr_tf.detection.formats import DETECTOR_EXPORTS
from dupr_tf.environment import check_clock
from dupr_tf.errors import UserError, raise_all
from dupr_tf.locks import locked
from dupr_tf.weights.catalogue import find_public, is_public
from dupr_tf.weights.formats import EXPORTS, FORMATS
from dupr_tf.weights.paths import check_weights_file, export_output, weights_file
from dupr_tf.weights.saved_detectors import find_detector


@dataclasses.dataclass
class Export:
    """Write a backbone or a detector for another library.

    The export is read back and its features or detections are compared with those of the original. The exit code is 1,
    and --output is not written, if they differ by more than 1e-4, a tensor has no counterpart, or the disk is full.
    """

    EXAMPLE = "dupr-tf export runs/try/photos --to torchvision --output runs/torchvision"

    run_or_file: Annotated[str, tyro.conf.arg(name="run", metavar="RUN"), tyro.conf.Positional]
    """A pre-training run, a backbone file (.keras, .safetensors) or a public checkpoint (`dupr-tf list weights`); or a
    `finetune` run or its detector.keras."""
    to: Literal[tuple(dict.fromkeys((*FORMATS, *DETECTOR_EXPORTS)))]
    """Target. keras and kerascv write .keras, torchvision and timm safetensors, detectron2 a pickle, kerashub a preset.
    saved_model and onnx take images and return P2..P5. Detectors: saved_model, onnx and litert, with detections."""
    output: Path
    """Folder to write."""
    image: Path | None = None
    """Detectors: photo on which the detections are compared. Default: two random images."""
    overwrite: bool = False
    """Replace an earlier export in the same folder."""
    license: str | None = None
    """Licence of the weights for the model card. Default: "not stated"."""
    allow_nonfinite: bool = False
    """Backbones: accept weights that are NaN or infinite."""

    def run(self, overrides: dict[str, str]) -> None:
        detector = None if is_public(self.run_or_file) else find_detector(self.run_or_file)
        problems = self._detector_problems() if detector else self._backbone_problems()
        raise_all(problems + problems_of(check_clock) + problems_of(export_output, self.output, self.overwrite))
        with locked(export_output(self.output, self.overwrite), beside=True):
            if detector:
                from dupr_tf.detection.export import export_file

                written = export_file(detector[0], self.to, self.output, self.image, self.overwrite, self.license)
            else:
                written = self._export_backbone()
            print_export(written)

    def _detector_problems(self) -> list[UserError]:
        if self.to not in DETECTOR_EXPORTS:
            problem = f"{self.run_or_file} is a detector, and {self.to} holds backbones only."
            return [UserError("--to", problem, f"Choose from {', '.join(DETECTOR_EXPORTS)}.")]
        problems = problems_of(DETECTOR_EXPORTS.check, self.to)
        if self.allow_nonfinite:
            problems.append(UserError("--allow-nonfinite", "It is for backbones only.", "Leave it out."))
        return problems if self.image is None else problems + problems_of(read_photo, self.image, field="--image")

    def _backbone_problems(self) -> list[UserError]:
        problems = problems_of(check_weights_file, self.run_or_file)
        if self.to not in EXPORTS:
            problem = f"{self.to} holds detectors only."
            return [*problems, UserError("--to", problem, "Pass a detector.keras, or choose another target.")]
        if self.image is not None:
            problems.append(UserError("--image", "It is for detectors only.", "Leave it out."))
        return problems_of(EXPORTS.check, self.to) + problems

    def _export_backbone(self) -> Path:
        license = self.license
        if is_public(self.run_or_file):
            license = license or find_public(self.run_or_file).terms
            weights_file(self.run_or_file)  # downloads it before TensorFlow loads
        from dupr_tf.weights.export import export
        from dupr_tf.weights.loading import load_backbone
        from dupr_tf.weights.model_card import run_facts

        backbone = load_backbone(self.run_or_file, allow_nonfinite=self.allow_nonfinite)
        card = run_facts(self.run_or_file)
        return export(backbone, self.to, self.output, self.overwrite, card, self.allow_nonfinite, license)


def print_export(written: Path) -> None:
    """Prints the files of an export and, from its manifest, the comparisons made and the largest differences.

    A relative difference is a share of the largest feature; for boxes of the image's side, for scores and masks of 1.
    """
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
    relative = manifest["relative_difference"]
    value = "value" if {"boxes", "segments"} & {level for _, level in largest} else "feature"
    print_line(f"largest difference {manifest['difference']:.1e} ({relative:.1e} of the largest {value})")
    for reason in manifest["not_compared"]:
        print_line(f"not compared with {reason}")
