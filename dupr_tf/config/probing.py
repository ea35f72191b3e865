"""Settings of probes: the times at which a pre-training run is probed, and the training of a linear classifier."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, field_validator

from dupr_tf.config.probes import PROBES
from dupr_tf.config.sections import LocalPath, Section
from dupr_tf.errors import UserError

PROBED_LEVELS = ("conv1", "P2", "P3", "P4", "P5")
IN_TRAINING = tuple(name for name, entry in PROBES.items() if entry.facts)


class ProbingConfig(Section):
    every_epochs: int = Field(0, ge=0, description="epochs between probes of the backbone; 0 disables them")
    data: LocalPath | None = Field(
        None, description="held-out folder, for knn with train/CLASS/ and val/CLASS/. Required by probes"
    )
    probes: tuple[Literal[IN_TRAINING], ...] = Field(
        ("matching",), description="names of the probes, see `dupr-tf list probes`"
    )
    images: int = Field(64, ge=2, description="number of images, evenly spread over the folder (not for knn)")
    image_size: int = Field(224, ge=32, le=2048, description="side of the images of the probes, px")

    def problems(self) -> list[UserError]:
        """Lists the cross-field mistakes that make probing in training impossible."""
        if self.every_epochs and self.data is None:
            return [UserError("probing.data", "Probing needs a folder of held-out images.", "Pass --probing.data DIR.")]
        return []


class LinearConfig(Section):
    level: Literal[PROBED_LEVELS] = Field("P5", description="level of the features")
    cells: int = Field(
        1, ge=1, le=14, description="cells per side that features are pooled to; 1 is the global average"
    )
    image_size: int = Field(224, ge=32, le=2048, description="side of an image, px")
    augment: bool = Field(
        False, description="take a random crop and flip each epoch; otherwise features are computed once"
    )
    crop_area: tuple[float, float] = Field((0.08, 1.0), description="share of the image a random crop covers")
    standardize: bool = Field(
        True, description="scale cached features to mean 0 and deviation 1 over the training images"
    )
    epochs: int = Field(100, ge=1, description="passes over the images")
    batch_size: int = Field(256, ge=1, description="images per step")
    learning_rate: float = Field(0.1, gt=0, description="peak rate")
    momentum: float = Field(0.9, ge=0, lt=1, description="momentum of SGD")
    weight_decay: float = Field(1e-3, ge=0, description="coupled weight decay of the weights")
    milestones: tuple[int, ...] = Field(
        (), description="epochs at which the rate falls tenfold. Without any, it falls as a cosine to 0"
    )

    @field_validator("crop_area")
    @classmethod
    def _rising(cls, value):
        if not 0 < value[0] <= value[1] <= 1:
            raise UserError(None, f"Expected 0 < min <= max <= 1, received {list(value)}.", "Use [0.08, 1].")
        return value

    def warnings(self) -> list[str]:
        """Lists milestones that the training never reaches, in one line."""
        late = [str(at) for at in self.milestones if at >= self.epochs]
        if not late:
            return []
        return [
            f"linear.milestones: the training ends at epoch {self.epochs}, before the milestones at {', '.join(late)}. "
            "The learning rate does not fall there. Better: earlier milestones, or more --linear.epochs."
        ]

    def problems(self) -> list[UserError]:
        """Lists the cross-field mistakes."""
        if self.augment and self.standardize:
            problem = "Augmented features are never all in memory, so they cannot be standardised."
            return [UserError("linear.standardize", problem, "Pass --linear.standardize false.")]
        return []
