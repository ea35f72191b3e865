"""The schema of an experiment: sections, fields, ranges, cross-field rules, derived values.

Nothing here imports TensorFlow: a config is checked, with every mistake named, before the slow imports begin.
Defaults are the paper's (METHOD: batch 256, 200 epochs, alpha (0.1, 0.4, 0.7, 1), beta (0, 0, 1, 1), S = 14 and 7).
"""

from __future__ import annotations

import difflib
import re
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from dupr_tf.safe_yaml import one_line, safe_value

LEVELS = ("P2", "P3", "P4", "P5")  # conv2_x .. conv5_x
STRIDES = (4, 8, 16, 32)
BACKBONES = ("resnet18", "resnet34", "resnet50", "resnet101", "resnet152")
INTERVAL = re.compile(r"([1-9]\d*) ?(s|min|h)")  # of checkpoints, in time

Weight = Annotated[float, Field(ge=0.0)]
PerLevel = Annotated[tuple[Weight, ...], Field(min_length=4, max_length=4)]


class ConfigError(ValueError):
    """One or more mistakes in a config; `problems` holds one line for each."""

    def __init__(self, problems: list[str]):
        super().__init__("\n".join(problems))
        self.problems = problems


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class DataConfig(Section):
    root: str | None = Field(None, description="folder of images, COCO / VOC root, shards, tfds:NAME; --data sets it")
    kind: Literal["auto", "folder", "coco", "voc", "tfrecord", "tfds"] = Field(
        "auto", description="layout of root; auto looks"
    )
    image_size: int = Field(224, ge=32, le=4096, description="side of a view (pre-training) or input (detector), px")
    max_bad_share: float = Field(0.01, ge=0, le=1, description="share of unreadable images a run may skip")
    max_pixels: int = Field(100_000_000, ge=1, description="an image of more pixels is skipped, from its header")


class ViewsConfig(Section):
    crop_area: tuple[float, float] = Field((0.2, 1.0), description="share of the image a crop covers (min, max)")
    crop_aspect: tuple[float, float] = Field((3 / 4, 4 / 3), description="width / height of a crop (min, max)")
    photometric: Literal["moco_v2", "moco_v1", "none"] = Field("moco_v2", description="colour and blur preset")
    min_overlap: float = Field(32.0, ge=1, description="least side of the overlap, px in each view")
    draws: int = Field(4, ge=1, le=32, description="times a pair is drawn until it overlaps")

    @model_validator(mode="after")
    def _ranges(self):
        for name, low, high in (("crop_area", 0.0, 1.0), ("crop_aspect", 0.05, 20.0)):
            a, b = getattr(self, name)
            if not low < a <= b <= high:
                raise ValueError(f"{name}: expected {low} < min <= max <= {high}, received [{a}, {b}]")
        return self


class ModelConfig(Section):
    backbone: Literal[BACKBONES] = Field("resnet50", description="torch-layout ResNet")
    width: float = Field(1.0, gt=0, le=4, description="factor on every channel count of the backbone")
    image_weights: PerLevel = Field((0.1, 0.4, 0.7, 1.0), description="alpha of P2..P5 (eq. 2)")
    patch_weights: PerLevel = Field((0.0, 0.0, 1.0, 1.0), description="beta of P2..P5 (eq. 2)")
    roi_sizes: Annotated[tuple[Annotated[int, Field(ge=1)], ...], Field(min_length=4, max_length=4)] = Field(
        (56, 28, 14, 7), description="S of P2..P5: the overlap is cut into S x S patches"
    )
    sampling_ratio: int = Field(1, ge=1, le=4, description="RoIAlign samples a side in each patch")
    embedding_dim: int = Field(128, ge=2, description="width of every embedding")
    head: Literal["mlp", "linear"] = Field("mlp", description="mlp: MoCo v2 and DUPR; linear: MoCo v1")
    temperature: float = Field(0.2, gt=0, description="tau of every loss")
    momentum: float = Field(0.999, ge=0, lt=1, description="EMA momentum of the key encoder")
    bank_size: int = Field(65536, ge=1, description="keys in each memory bank")
    patch_keys_per_image: int = Field(4, ge=1, description="patch keys an image puts into a bank each step")
    patch_reduction: Literal["mean", "sum"] = Field("mean", description="over the cells of eq. 5; sum is literal")


class OptimizerConfig(Section):
    learning_rate: float | None = Field(None, gt=0, description="peak rate; none: 0.06 x batch_size / 256")
    momentum: float = Field(0.9, ge=0, lt=1)
    weight_decay: float = Field(1e-4, ge=0, description="coupled, on every parameter")
    schedule: Literal["cosine", "epoch", "milestones"] = Field(
        "cosine", description="cosine to 0 by step; epoch: the same by epoch; milestones: x 0.1 at each"
    )
    milestones: tuple[float, ...] = Field((), description="epochs at which the rate falls tenfold")
    warmup_steps: int = Field(0, ge=0, description="linear from 0 to the rate")


class TrainConfig(Section):
    batch_size: int = Field(256, ge=2, description="images a step, over all devices")
    epochs: int = Field(200, ge=1)
    max_steps: int | None = Field(None, ge=1, description="stop here if the epochs are not over")
    micro_batches: int = Field(8, ge=1, description="BN groups of a step, over all devices (paper: 8 of 32)")
    precision: Literal["float32", "bfloat16", "float16"] = Field("float32")
    jit: Literal["auto", "on", "off"] = Field("auto", description="compile the step with XLA; auto: on one GPU")
    seed: int = Field(0, ge=0, lt=2**31)
    checkpoint_every: int | str = Field(1000, description="steps (1000) or time (30s, 10min, 2h)")
    keep_checkpoints: int = Field(2, ge=1)
    log_every: int = Field(20, ge=1, description="steps")

    @field_validator("checkpoint_every", mode="before")
    @classmethod
    def _steps_or_time(cls, value):
        good = INTERVAL.fullmatch(value) if isinstance(value, str) else type(value) is int and value >= 1
        if not good:
            raise ValueError(f"expected steps (1000) or a time (30s, 10min, 2h) above 0, received {value!r:.80}")
        return value

    @property
    def checkpoint_interval(self) -> int | float:
        """Steps (int) or seconds (float) between two checkpoints."""
        if isinstance(self.checkpoint_every, int):
            return self.checkpoint_every
        number, unit = INTERVAL.fullmatch(self.checkpoint_every).groups()
        return float(number) * {"s": 1, "min": 60, "h": 3600}[unit]


class DetectorConfig(Section):
    kind: Literal["retinanet"] = Field("retinanet", description="KerasCV RetinaNet")
    fpn_channels: int = Field(256, ge=8, description="width of the feature pyramid")
    head_channels: int = Field(256, ge=8, description="width of the class and box heads")
    head_convs: int = Field(4, ge=1, le=8, description="3x3 convolutions in each head")
    norm: Literal["train", "frozen"] = Field("train", description="BN of the backbone: batch statistics or frozen")
    fpn_norm: bool = Field(True, description="BN in the feature pyramid (paper, appendix 6.3)")
    anchor_scale: float = Field(
        4.0, ge=1, le=16, description="least anchor of a level, in strides; 3 suits small images"
    )
    scale_jitter: tuple[float, float] = Field((0.8, 1.25), description="image scale factor in training (min, max)")
    score_threshold: float = Field(0.05, ge=0, lt=1)
    nms_iou: float = Field(0.5, gt=0, lt=1)
    max_detections: int = Field(100, ge=1)
    optimizer: Literal["sgd", "adamw"] = Field("sgd", description="adamw gets further in a few hundred steps")
    backbone_rate: float = Field(1.0, gt=0, le=1, description="learning rate of the backbone, as a share of the rest's")
    gradient_clip: float | None = Field(10.0, gt=0, description="global norm")

    @model_validator(mode="after")
    def _scales(self):
        low, high = self.scale_jitter
        if not 0.1 <= low <= high <= 10:
            raise ValueError(f"scale_jitter: expected 0.1 <= min <= max <= 10, received [{low}, {high}]")
        return self


class Config(Section):
    """An experiment. `detector` is read by `finetune` alone."""

    data: DataConfig = DataConfig()
    views: ViewsConfig = ViewsConfig()
    model: ModelConfig = ModelConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    train: TrainConfig = TrainConfig()
    detector: DetectorConfig | None = None

    @property
    def learning_rate(self) -> float:
        """Peak learning rate; scaled linearly with the batch where no number is given (METHOD section 7)."""
        rate = self.optimizer.learning_rate
        return 0.06 * self.train.batch_size / 256 if rate is None else rate

    def level_sizes(self) -> tuple[int, ...]:
        """Side of the feature map of P2..P5, in cells."""
        return tuple(-(-self.data.image_size // stride) for stride in STRIDES)

    def steps_per_epoch(self, images: int) -> int:
        """Full batches in one pass over `images` images; at least one."""
        return max(1, images // self.train.batch_size)

    def total_steps(self, images: int) -> int:
        """Optimiser steps of the whole run."""
        steps = self.train.epochs * self.steps_per_epoch(images)
        return steps if self.train.max_steps is None else min(steps, self.train.max_steps)

    def patch_level_indices(self) -> tuple[int, ...]:
        return tuple(i for i, weight in enumerate(self.model.patch_weights) if weight > 0)

    def pretrain_problems(self, replicas: int = 1) -> list[str]:
        """The cross-field mistakes that would make pre-training impossible or meaningless, a line each."""
        problems = [*self._batch_problems(replicas), *self._model_problems()]
        if self.train.jit == "on" and replicas > 1:
            problems.append(
                f"train.jit: expected auto or off on {replicas} devices, whose exchange of keys XLA does not compile, "
                "received on. Fix: --train.jit auto"
            )
        return problems

    def pretrain_warnings(self, gpu: bool) -> list[str]:
        """What is allowed but hardly meant, a line each.

        Args:
            gpu: whether this machine has one.
        """
        if self.train.precision == "float16" and not gpu:
            return [
                "train.precision: float16 on a machine without a GPU is slower than float32 and less exact. "
                "Better: --train.precision float32"
            ]
        return []

    def finetune_problems(self) -> list[str]:
        """The cross-field mistakes that would make fine-tuning a detector impossible or meaningless, a line each."""
        if self.detector is None:
            return ["detector: expected a section, received none. Fix: start from configs/retinanet_r18_small.yaml"]
        problems, size = [], self.data.image_size
        if self.optimizer.learning_rate is None:
            problems.append(
                "optimizer.learning_rate: expected a number (its default is for pre-training), received none. "
                "Fix: --optimizer.learning_rate 0.01"
            )
        if size % 32:
            problems.append(
                f"data.image_size: expected a multiple of 32, received {size}. "
                f"Fix: --data.image_size {max(32, round(size / 32) * 32)}"
            )
        if self.train.precision != "float32":
            problems.append(
                f"train.precision: expected float32 for a detector, received {self.train.precision}. "
                "Fix: --train.precision float32"
            )
        if self.data.kind in ("folder", "tfrecord", "tfds"):
            problems.append(
                f"data.kind: expected coco, voc or auto for a detector, received {self.data.kind}. "
                "Fix: --data.kind auto"
            )
        return problems

    def _batch_problems(self, replicas: int) -> list[str]:
        batch, groups = self.train.batch_size, self.train.micro_batches
        problems = []
        if groups % replicas:
            problems.append(
                f"train.micro_batches: expected a multiple of the {replicas} devices, received {groups}. "
                f"Fix: --train.micro_batches {replicas * max(1, groups // replicas)}"
            )
        if batch % groups:
            problems.append(
                f"train.batch_size: expected a multiple of train.micro_batches ({groups}), received {batch}. "
                f"Fix: --train.batch_size {max(1, batch // groups) * groups}"
            )
        elif batch // groups < 2:
            problems.append(
                f"train.micro_batches: expected groups of at least 2 images (batch norm needs them), received "
                f"{batch} images in {groups} groups. Fix: --train.micro_batches {max(1, batch // 2)}"
            )
        return problems

    def _model_problems(self) -> list[str]:
        model, problems = self.model, []
        if not any(model.image_weights) and not any(model.patch_weights):
            problems.append(
                "model.image_weights: expected a weight above 0 here or in model.patch_weights, received none. "
                "Fix: --model.image_weights '[0.1,0.4,0.7,1]'"
            )
        enqueued = self.train.batch_size * (model.patch_keys_per_image if any(model.patch_weights) else 1)
        if model.bank_size < enqueued:
            problems.append(
                f"model.bank_size: expected at least the {enqueued} keys a step puts in, received {model.bank_size}. "
                f"Fix: --model.bank_size {enqueued}"
            )
        for i in self.patch_level_indices():
            size, cells = model.roi_sizes[i], self.level_sizes()[i]
            if size > cells:
                problems.append(
                    f"model.roi_sizes: expected at most {cells} at {LEVELS[i]} (its side at data.image_size "
                    f"{self.data.image_size}), received {size}. Fix: a smaller RoI or larger views"
                )
        if any(model.patch_weights) and self.views.min_overlap > self.data.image_size:
            problems.append(
                f"views.min_overlap: expected at most data.image_size ({self.data.image_size}), received "
                f"{self.views.min_overlap:g}. Fix: --views.min_overlap 32"
            )
        return problems


def load_config(path: str | Path, overrides: dict[str, str] | None = None) -> Config:
    """Reads a YAML file over the defaults, then sets the overrides.

    Args:
        path: a YAML file of sections (`configs/*.yaml`).
        overrides: dotted field name -> YAML text of its value, as given on the command line.

    Raises:
        ConfigError: every mistake in file and overrides, one line each.
    """
    values, problems = _read_yaml(Path(path)), []
    for name, text in (overrides or {}).items():
        section, _, field = name.partition(".")
        try:
            value = safe_value(text)
        except ValueError as error:
            problems.append(f"{name}: expected a YAML value, received {text!r:.80}: {error}")
            continue
        target = values.setdefault(section, {})
        if not isinstance(target, dict):
            target = values[section] = {}
        target[field] = value
    try:
        config = parse_config(values)
    except ConfigError as error:
        problems += error.problems
    if problems:
        raise ConfigError(problems)
    return config


def parse_config(values: dict[str, Any]) -> Config:
    """Checks a mapping of sections. Raises ConfigError with every mistake, one line each."""
    try:
        return Config.model_validate(values)
    except ValidationError as error:
        raise ConfigError([_problem_line(e) for e in error.errors()]) from None


def dump_config(config: Config) -> str:
    """YAML text that `load_config` reads back to the same config."""
    return yaml.safe_dump(config.model_dump(mode="json", exclude_none=True), sort_keys=False, default_flow_style=None)


def field_rows() -> list[tuple[str, str, str]]:
    """(dotted name, default, description) of every field, for `--help` and the README."""
    rows = []
    for section, info in Config.model_fields.items():
        schema = DetectorConfig if section == "detector" else type(info.default)
        rows += [
            (f"{section}.{name}", str(field.default), field.description or "")
            for name, field in schema.model_fields.items()
        ]
    return rows


MAX_CONFIG_BYTES = 1 << 20


def _read_yaml(path: Path) -> dict[str, Any]:
    if not path.is_file():
        near = difflib.get_close_matches(path.name, [p.name for p in path.parent.glob("*.yaml")], 1)
        hint = f"did you mean {path.parent / near[0]}?" if near else "give the path of a YAML file, see configs/"
        raise ConfigError([f"config: expected a file, received {path} (does not exist). Fix: {hint}"])
    if path.stat().st_size > MAX_CONFIG_BYTES:
        raise ConfigError(
            [f"config: expected at most {MAX_CONFIG_BYTES} bytes, received {path.stat().st_size}: {path}"]
        )
    try:
        values = safe_value(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ConfigError([f"config: expected YAML, received {path}: {one_line(error)}"]) from None
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise ConfigError(
            [f"config: expected sections ({', '.join(Config.model_fields)}), received {path}: {values!r:.60}"]
        )
    return {str(k): ({} if v is None and k != "detector" else v) for k, v in values.items()}


def _problem_line(error: dict[str, Any]) -> str:
    """One line for one pydantic error: dotted key, what was expected, what came, the nearest right spelling."""
    where = [str(part) for part in error["loc"]]
    name, received = ".".join(where) or "config", f"{error['input']!r:.80}"
    if error["type"] == "extra_forbidden":
        return _unknown_key_line(where, received)
    expected = error["msg"].removeprefix("Value error, ")
    line = f"{name}: {expected[:1].lower() + expected[1:]}"
    if ", received" not in expected:
        line += f", received {received}"
    if error["type"] == "literal_error":
        allowed = [part.strip("' ") for part in error["ctx"]["expected"].replace(" or ", ", ").split(",")]
        near = difflib.get_close_matches(str(error["input"]), allowed, 1)
        line += f". Did you mean {near[0]}?" if near else ""
    return line


def _unknown_key_line(where: list[str], received: str) -> str:
    sections = list(Config.model_fields)
    if len(where) == 1:
        allowed, known = sections, sections
    else:
        info = Config.model_fields[where[0]]
        schema = DetectorConfig if where[0] == "detector" else type(info.default)
        allowed = list(schema.model_fields)
        known = [row[0] for row in field_rows()]
    # The right name in the wrong section is a surer guess than a similar one in this section.
    suggestion = next((name for name in known if name.endswith("." + where[-1])), None)
    near = difflib.get_close_matches(where[-1], allowed, 1, 0.5)
    if suggestion is None and near:
        suggestion = ".".join([*where[:-1], near[0]])
    hint = f"Did you mean {suggestion}?" if suggestion else f"Allowed: {', '.join(allowed)}"
    return f"{'.'.join(where)}: unknown key, received {received}. {hint}"
