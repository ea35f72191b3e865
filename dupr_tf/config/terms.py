"""Defines the terms of the loss in a config: a schema for each kind, and the registry of kinds.

`model.terms` lists them in full. DUPR's own short form (`image_weights`, `patch_weights`, …) expands to the same list.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field

from dupr_tf.errors import UserError
from dupr_tf.registry import Entry, Registry

LEVELS = ("P2", "P3", "P4", "P5")  # conv2_x .. conv5_x
STRIDES = (4, 8, 16, 32)
STRIDE_OF = dict(zip(LEVELS, STRIDES, strict=True))


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class TermConfig(Section):
    """The fields of every term. A subclass has the fields of its term's constructor, except `kind`."""

    name: str | None = Field(None, pattern=r"^[A-Za-z][A-Za-z0-9_]*$", description="unique; default: by kind and level")
    level: Literal[LEVELS] = Field("P5", description="features it reads")
    weight: float = Field(1.0, gt=0, description="factor in the loss (eq. 2)")

    PREFIX: ClassVar[str] = ""  # of the default name

    @property
    def full_name(self) -> str:
        """Returns the name of the term in logs, checkpoints and random draws."""
        return self.name or f"{self.PREFIX}_{self.level}"

    def keys_per_step(self, batch_size: int) -> int:
        """Returns the keys that a step puts into the term's memory bank; 0 without one."""
        return 0


class ContrastConfig(TermConfig):
    embedding_dim: int = Field(128, ge=2, description="width of an embedding")
    head: Literal["mlp", "linear"] = Field(
        "mlp", description="projection head: mlp (MoCo v2, DUPR) or linear (MoCo v1)"
    )
    temperature: float = Field(0.2, gt=0, description="tau")
    bank_size: int = Field(65536, ge=1, description="keys in the memory bank")

    @property
    def summands(self) -> int:
        """Returns the number of comparisons of a pair that the term adds up; 1 for a mean."""
        return 1


class ImageContrastConfig(ContrastConfig):
    kind: Literal["image_contrast"] = "image_contrast"
    PREFIX: ClassVar[str] = "image"

    def keys_per_step(self, batch_size):
        return batch_size


class PatchContrastConfig(ContrastConfig):
    kind: Literal["patch_contrast"] = "patch_contrast"
    size: int = Field(7, ge=1, description="S: the overlap is cut into S x S patches")
    sampling_ratio: int = Field(1, ge=1, le=4, description="RoIAlign samples per side of each patch")
    keys_per_image: int = Field(4, ge=1, description="patch keys that an image adds to the bank in each step")
    reduction: Literal["mean", "sum"] = Field("mean", description="over the cells of eq. 5, whose printed form has sum")
    PREFIX: ClassVar[str] = "patch"

    @property
    def summands(self):
        return self.size**2 if self.reduction == "sum" else 1

    def keys_per_step(self, batch_size):
        return batch_size * self.keys_per_image


TERMS = Registry(
    "term",
    "model.terms",
    {
        "image_contrast": Entry(
            "dupr_tf.models.terms.contrast:ImageContrast",
            "InfoNCE of whole images at one level against a memory bank (eq. 6)",
            facts={"schema": ImageContrastConfig},
        ),
        "patch_contrast": Entry(
            "dupr_tf.models.terms.contrast:PatchContrast",
            "InfoNCE of the patches of the overlap at one level against a memory bank (eq. 5)",
            facts={"schema": PatchContrastConfig},
        ),
    },
)
SCHEMAS = [entry.facts["schema"] for entry in TERMS.values()]
AnyTerm = Annotated[functools.reduce(operator.or_, SCHEMAS), Field(discriminator="kind")]


def expand_short_form(
    image_weights: Sequence[float] = (0.1, 0.4, 0.7, 1.0),
    patch_weights: Sequence[float] = (0.0, 0.0, 1.0, 1.0),
    roi_sizes: Sequence[int] = (56, 28, 14, 7),
    embedding_dim: int = 128,
    head: str = "mlp",
    temperature: float = 0.2,
    bank_size: int = 65536,
    patch_keys_per_image: int = 4,
    patch_reduction: str = "mean",
    sampling_ratio: int = 1,
) -> list[dict[str, Any]]:
    """Lists the terms of DUPR's loss (eq. 2). A level whose weight is 0 has none.

    Args:
        image_weights: alpha of P2..P5.
        patch_weights: beta of P2..P5.
        roi_sizes: S of P2..P5; the overlap is cut into S x S patches.
        embedding_dim: C, width of every embedding.
        head: "mlp" (MoCo v2, DUPR) or "linear" (MoCo v1).
        temperature: tau of every term.
        bank_size: K, keys in each memory bank.
        patch_keys_per_image: patch keys that each image adds to a bank per step.
        patch_reduction: "mean" over the cells of eq. 5, or "sum" as in the printed equation.
        sampling_ratio: samples per side that RoIAlign averages in each patch.

    Returns:
        The arguments of each term with its `kind`: images of P2..P5, then patches of P2..P5.

    Raises:
        UserError: weights or sizes do not have one value for each level, or no weight is above 0.
    """
    per_level = {"image_weights": image_weights, "patch_weights": patch_weights, "roi_sizes": roi_sizes}
    for name, values in per_level.items():
        if len(values) != len(LEVELS):
            raise UserError(name, f"Expected one number for each of {', '.join(LEVELS)}, received {list(values)}.")
    shared = {"embedding_dim": embedding_dim, "head": head, "temperature": temperature, "bank_size": bank_size}
    patch = {"sampling_ratio": sampling_ratio, "keys_per_image": patch_keys_per_image, "reduction": patch_reduction}
    terms = [
        {"kind": "image_contrast", "level": level, "weight": float(weight), **shared}
        for level, weight in zip(LEVELS, image_weights, strict=True)
        if weight
    ] + [
        {"kind": "patch_contrast", "level": level, "weight": float(weight), **shared, "size": size, **patch}
        for level, weight, size in zip(LEVELS, patch_weights, roi_sizes, strict=True)
        if weight
    ]
    if not terms:
        raise UserError("image_weights", "No weight is above 0.", "The paper uses image_weights (0.1, 0.4, 0.7, 1.0).")
    return terms


def check_unique_names(names: Sequence[str]) -> None:
    """Raises UserError if two terms have the same name."""
    twice = sorted({name for name in names if list(names).count(name) > 1})
    if twice:
        raise UserError("terms", f"Two terms are called {', '.join(twice)}.", "Give one of them another `name`.")


def term_arguments(term: TermConfig) -> Mapping[str, Any]:
    """Returns the fields of a term for `dupr_tf.models.terms.build_terms`, with its full name."""
    return {**term.model_dump(), "name": term.full_name}
