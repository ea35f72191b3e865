"""Defines the sections of an experiment that pre-training reads: fields, ranges, descriptions."""

from __future__ import annotations

import inspect
import math
import re
from typing import Annotated, Literal

from pydantic import AfterValidator, BeforeValidator, Field, TypeAdapter, field_validator, model_validator

from dupr_tf.config.backbones import BACKBONES
from dupr_tf.config.terms import LEVELS, AnyTerm, Section, TermConfig, check_unique_names, expand_short_form
from dupr_tf.errors import UserError
from dupr_tf.files import local_path
from dupr_tf.values import read_name

INTERVAL = re.compile(r"([1-9]\d*) ?(s|min|h)")  # of checkpoints, as a time

SHORT_FORM = tuple(inspect.signature(expand_short_form).parameters)


def _local(path: str) -> str:
    expanded = local_path(path)
    return str(expanded) if path.startswith("~") else path


LocalPath = Annotated[str, AfterValidator(_local)]


def _checked_name(value) -> str:
    try:
        return read_name(value)
    except ValueError as error:
        problem, fix = str(error), "Write it in quotes, as text."
        raise UserError(None, f"{problem[0].upper()}{problem[1:]}.", fix) from None


Name = Annotated[str, BeforeValidator(_checked_name)]
Weight = Annotated[float, Field(ge=0.0)]
PerLevel = Annotated[tuple[Weight, ...], Field(min_length=len(LEVELS), max_length=len(LEVELS))]


class DataConfig(Section):
    root: LocalPath | None = Field(
        None, description="folder of images, COCO / VOC root, shards, tfds:NAME; --data sets it"
    )
    kind: Literal[
        "auto", "folder", "coco", "roboflow", "fiftyone", "lvis", "yolo", "cvat", "labelme", "label_studio",
        "openimages", "voc", "cityscapes", "masks", "shards", "tfds",
    ] = Field("auto", description="layout of root; auto detects it")  # fmt: skip
    class_names: tuple[Name, ...] | None = Field(
        None,
        min_length=1,
        description="names of the values 0, 1, … of masks. Default: those in classes.txt, or numbers",
    )
    ignore_value: int | None = Field(
        None, ge=0, le=255, description="value of masks that has no class. Default: every value has one"
    )
    image_size: int = Field(224, ge=32, le=4096, description="side of a view (pre-training) or input (detector), px")
    max_bad_share: float = Field(
        0.01, ge=0, le=1, description="share of unreadable images, and of wrong labels, a run may skip"
    )
    share: float = Field(
        1.0, gt=0, le=1, description="share of the labelled training images to use, drawn with share_seed"
    )
    share_seed: int = Field(0, ge=0, lt=2**31, description="seed of that share")
    val_share: float | None = Field(
        None,
        gt=0,
        lt=1,
        description="share of train to use as val, if the root has no val. Default: the root has a val",
    )
    val_seed: int | None = Field(None, ge=0, lt=2**31, description="seed of that draw. Default: share_seed")
    held_out: float | None = Field(
        None,
        gt=0,
        lt=1,
        description="share of train to evaluate on in place of val, drawn with share_seed. Default: evaluate on val",
    )
    background: bool = Field(False, description="train detectors on images without boxes too, as negatives")
    max_pixels: int = Field(100_000_000, ge=1, description="images with more pixels, by their header, are skipped")
    depth: Literal["full", "auto"] = Field(
        "full",
        description="16-bit images: full keeps the upper 8 bits, auto scales each file by its minimum and maximum",
    )
    threads: int | None = Field(None, ge=1, description="threads that read images. Default: one for each usable CPU")
    processes: int = Field(0, ge=0, description="processes that read images; 0: the training process reads them itself")

    @field_validator("kind", mode="before")
    @classmethod
    def _kind(cls, value):
        if value == "tfrecord":
            raise UserError(
                None, "Packed images are no longer TFRecord.", "Pack them again, and pass --data.kind shards."
            )
        return value

    @field_validator("held_out", mode="before")
    @classmethod
    def _held_out(cls, value):
        return None if value is False else value  # as older versions wrote it


class ViewsConfig(Section):
    crop_area: tuple[float, float] = Field((0.2, 1.0), description="share of the image a crop covers (min, max)")
    crop_aspect: tuple[float, float] = Field((3 / 4, 4 / 3), description="width / height of a crop (min, max)")
    photometric: Literal["moco_v2", "moco_v1", "none"] = Field("moco_v2", description="colour and blur preset")
    min_overlap: float = Field(32.0, ge=1, description="least side of the overlap, px in each view")
    draws: int = Field(4, ge=1, le=32, description="most draws of a pair until it overlaps")

    @model_validator(mode="after")
    def _ranges(self):
        for name, low, high in (("crop_area", 0.0, 1.0), ("crop_aspect", 0.05, 20.0)):
            a, b = getattr(self, name)
            if not low < a <= b <= high:
                raise UserError(name, f"Expected {low:g} < min <= max <= {high:g}, received [{a:g}, {b:g}].")
        return self


class ModelConfig(Section):
    backbone: Literal[tuple(BACKBONES)] = Field(
        "resnet50", description="name of a backbone, see `dupr-tf list backbones`"
    )
    width: float = Field(1.0, gt=0, le=4, description="factor on every channel count of the backbone")
    terms: tuple[AnyTerm, ...] | None = Field(
        None, min_length=1, description="terms of the loss in full. Default: those of DUPR, set by the ten fields below"
    )
    image_weights: PerLevel = Field((0.1, 0.4, 0.7, 1.0), description="alpha of P2..P5 (eq. 2)")
    patch_weights: PerLevel = Field((0.0, 0.0, 1.0, 1.0), description="beta of P2..P5 (eq. 2)")
    roi_sizes: Annotated[tuple[Annotated[int, Field(ge=1)], ...], Field(min_length=4, max_length=4)] = Field(
        (56, 28, 14, 7), description="S of P2..P5: the overlap is cut into S x S patches"
    )
    sampling_ratio: int = Field(1, ge=1, le=4, description="RoIAlign samples per side of each patch")
    embedding_dim: int = Field(128, ge=2, description="width of every embedding")
    head: Literal["mlp", "linear"] = Field(
        "mlp", description="projection head: mlp (MoCo v2, DUPR) or linear (MoCo v1)"
    )
    temperature: float = Field(0.2, gt=0, description="tau of every term")
    bank_size: int = Field(65536, ge=1, description="keys in each memory bank")
    patch_keys_per_image: int = Field(4, ge=1, description="patch keys that an image adds to a bank in each step")
    patch_reduction: Literal["mean", "sum"] = Field(
        "mean", description="reduction over the cells of eq. 5; the printed equation has sum"
    )
    momentum: float = Field(0.999, ge=0, lt=1, description="EMA momentum of the key encoder")
    momentum_schedule: Literal["constant", "cosine"] = Field(
        "constant", description="constant momentum, or cosine from momentum to 1"
    )

    @model_validator(mode="after")
    def _one_form(self):
        both = [name for name in SHORT_FORM if name in self.model_fields_set]
        if self.terms is not None and both:
            raise UserError("terms", f"terms and {', '.join(both)} are both given.", "Give one of the two.")
        check_unique_names([term.full_name for term in self.terms or ()])
        return self

    @property
    def term_list(self) -> tuple[TermConfig, ...]:
        """Returns the terms in full, whether written in short or in full; none if all weights are 0."""
        if self.terms is not None:
            return self.terms
        if not any(self.image_weights) and not any(self.patch_weights):
            return ()
        short = expand_short_form(**{name: getattr(self, name) for name in SHORT_FORM})
        return tuple(TypeAdapter(AnyTerm).validate_python(term) for term in short)

    @property
    def patch_sizes(self) -> dict[str, int]:
        """Returns {level: largest S} of the terms that cut the overlap into patches."""
        sizes: dict[str, int] = {}
        for term in self.term_list:
            if hasattr(term, "size"):
                sizes[term.level] = max(sizes.get(term.level, 0), term.size)
        return sizes

    def keys_per_step(self, batch_size: int) -> int:
        """Returns the most keys that a step puts into any memory bank."""
        return max((term.keys_per_step(batch_size) for term in self.term_list), default=0)

    @property
    def largest_bank(self) -> int:
        """Returns K of the largest memory bank, or 0 without one."""
        return max(self.bank_sizes.values(), default=0)

    @property
    def bank_sizes(self) -> dict[str, int]:
        """Returns {term: K} of the terms with a memory bank."""
        return {term.full_name: term.bank_size for term in self.term_list if hasattr(term, "bank_size")}

    @property
    def guessing_loss(self) -> float | None:
        """Returns the loss of a model that guesses, the weighted sum of ln(K + 1); None if a term has no bank."""
        if not self.term_list or not all(hasattr(term, "bank_size") for term in self.term_list):
            return None
        return sum(term.weight * term.summands * math.log(term.bank_size + 1) for term in self.term_list)

    @property
    def main_terms(self) -> list[str]:
        """Returns the names of the heaviest term of each kind, the deepest of equal ones."""
        terms = sorted(self.term_list, key=lambda term: (term.weight, term.level))
        heaviest = {term.kind: term.full_name for term in terms}
        return [term.full_name for term in self.term_list if heaviest[term.kind] == term.full_name]

    def named_terms(self) -> dict[str, dict]:
        """Returns {name: fields} of the terms in full; equal for two equivalent configs."""
        return {term.full_name: term.model_dump(mode="json", exclude={"name"}) for term in self.term_list}


class OptimizerConfig(Section):
    learning_rate: float | None = Field(None, gt=0, description="peak rate. Default: 0.06 x batch_size / 256")
    momentum: float = Field(0.9, ge=0, lt=1, description="momentum of SGD")
    weight_decay: float = Field(1e-4, ge=0, description="coupled weight decay of every parameter")
    schedule: Literal["cosine", "epoch", "milestones"] = Field(
        "cosine", description="cosine to 0 by step, epoch (cosine by epoch), or milestones (x 0.1 at each)"
    )
    milestones: tuple[float, ...] = Field((), description="epochs at which the rate falls tenfold")
    milestone_steps: tuple[Annotated[int, Field(ge=1)], ...] = Field(
        (), description="steps at which the rate falls tenfold, instead of milestones"
    )
    warmup_steps: int = Field(0, ge=0, description="steps of a linear rise to the rate; the first has rate / steps")

    @model_validator(mode="after")
    def _milestones(self):
        if self.milestones and self.milestone_steps:
            raise UserError(
                "milestones",
                "Both optimizer.milestones and optimizer.milestone_steps are given.",
                "Keep one of them.",
            )
        if list(self.milestone_steps) != sorted(set(self.milestone_steps)):
            raise UserError("milestone_steps", f"Expected rising steps, received {list(self.milestone_steps)}.")
        return self


class TrainConfig(Section):
    batch_size: int = Field(256, ge=1, description="images per step over all devices")
    epochs: int = Field(200, ge=1, description="passes over the images")
    max_steps: int | None = Field(
        None, ge=1, description="last step, if the epochs do not end earlier. Default: all epochs"
    )
    micro_batches: int = Field(8, ge=1, description="batch-norm groups per step over all devices (paper: 8 of 32)")
    precision: Literal["float32", "bfloat16", "float16"] = Field("float32", description="number format of the step")
    jit: Literal["auto", "on", "off"] = Field("auto", description="compile the step with XLA; auto: on one GPU")
    seed: int = Field(0, ge=0, lt=2**31, description="seed of weights, order and views")
    checkpoint_every: int | str = Field(1000, description="steps (1000) or time (30s, 10min, 2h) between checkpoints")
    keep_checkpoints: int = Field(2, ge=1, description="newest checkpoints to keep")
    log_every: int = Field(20, ge=1, description="steps between lines of the log")
    strategy: Literal["auto", "one", "mirrored", "multi_worker"] = Field(
        "auto", description="devices: one, all of the machine, or all of TF_CONFIG's workers; auto detects them"
    )
    worker_timeout: float = Field(60, ge=1, description="seconds that an ordinary step of several workers may take")
    start_timeout: float = Field(
        600, ge=1, description="seconds allowed for the start of all workers, the first step, a checkpoint or a probe"
    )

    @field_validator("checkpoint_every", mode="before")
    @classmethod
    def _steps_or_time(cls, value):
        good = INTERVAL.fullmatch(value) if isinstance(value, str) else type(value) is int and value >= 1
        if not good:
            raise UserError(None, f"Expected steps (1000) or a time (30s, 10min, 2h) above 0, received {value!r:.80}.")
        return value

    @property
    def policy(self) -> str:
        """Returns the name of Keras' policy for `precision`; variables are float32 in every one."""
        return self.precision if self.precision == "float32" else f"mixed_{self.precision}"

    @property
    def checkpoint_interval(self) -> int | float:
        """Returns the steps (int) or seconds (float) between two checkpoints."""
        if isinstance(self.checkpoint_every, int):
            return self.checkpoint_every
        number, unit = INTERVAL.fullmatch(self.checkpoint_every).groups()
        return float(number) * {"s": 1, "min": 60, "h": 3600}[unit]
