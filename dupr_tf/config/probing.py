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
    every_epochs: int = Field(0, ge=0, description="probe the backbone every so many epochs and at the end; 0: never")
    data: LocalPath | None = Field(None, description="held-out folder; for knn train/CLASS/ and val/CLASS/")
    probes: tuple[Literal[IN_TRAINING], ...] = Field(
        ("matching",), description="which of them, see `dupr-tf list probes`"
    )
    images: int = Field(64, ge=2, description="images looked at, evenly spread over the folder (not by knn)")
    image_size: int = Field(224, ge=32, le=2048, description="side of what the backbone is shown, px")

    def problems(self) -> list[UserError]:
        """Lists the cross-field mistakes that make probing in training impossible."""
        if self.every_epochs and self.data is None:
            return [UserError("probing.data", "Probing needs a folder of held-out images.", "Pass --probing.data DIR.")]
        return []


class LinearConfig(Section):
    level: Literal[PROBED_LEVELS] = Field("P5", description="features of")
    cells: int = Field(1, ge=1, le=14, description="pooled to so many cells a side; 1: global average")
    image_size: int = Field(224, ge=32, le=2048, description="px")
    augment: bool = Field(False, description="a random crop and flip each epoch, through the backbone; no: cached")
    crop_area: tuple[float, float] = Field((0.08, 1.0), description="share of the image a random crop covers")
    standardize: bool = Field(True, description="features to mean 0, deviation 1 over the training images; cached only")
    epochs: int = Field(100, ge=1)
    batch_size: int = Field(256, ge=1)
    learning_rate: float = Field(0.1, gt=0)
    momentum: float = Field(0.9, ge=0, lt=1)
    weight_decay: float = Field(1e-3, ge=0, description="coupled, on the weights")
    milestones: tuple[int, ...] = Field((), description="epochs at which the rate falls tenfold; none: cosine to 0")

    @field_validator("crop_area")
    @classmethod
    def _rising(cls, value):
        if not 0 < value[0] <= value[1] <= 1:
            raise UserError(None, f"Expected 0 < min <= max <= 1, received {list(value)}.", "Use [0.08, 1].")
        return value

    def problems(self) -> list[UserError]:
        """Lists the cross-field mistakes."""
        if self.augment and self.standardize:
            problem = "Augmented features are never all in memory, so they cannot be standardised."
            return [UserError("linear.standardize", problem, "Pass --linear.standardize false.")]
        return []
