"""Defines the section `detector`: the kind of detector, its sizes, and its settings in training and at test."""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import Field, field_validator

from dupr_tf.config.detectors import DETECTORS
from dupr_tf.config.terms import Section
from dupr_tf.errors import UserError

Side = Annotated[int, Field(ge=32, le=4096)]
Count = Annotated[int, Field(ge=1)]
EPOCHS = re.compile(r"([1-9]\d*) epochs?")  # of `validate_every`


class DetectorConfig(Section):
    kind: Literal[tuple(DETECTORS)] = Field("retinanet", description="name of a detector, see `dupr-tf list detectors`")
    neck: Literal["fpn", "c4"] = Field("fpn", description="R-CNN: feature pyramid, or res4 with res5 as the head")
    norm: Literal["train", "sync", "frozen"] = Field(
        "train", description="BN of backbone and pyramid: statistics of a device, of all devices, or frozen (backbone)"
    )
    fpn_channels: int = Field(256, ge=8, description="width of the feature pyramid")
    fpn_norm: bool = Field(True, description="BN in the feature pyramid (paper, appendix 6.3)")
    head_channels: int = Field(256, ge=8, description="width of the convolutions in heads")
    head_convs: int = Field(4, ge=1, le=8, description="3x3 convolutions in each head (RetinaNet 4, mask 4, FCN 2)")
    box_head_width: int = Field(1024, ge=8, description="R-CNN with a pyramid: width of the two dense layers")
    anchor_scale: float | None = Field(
        None, ge=1, le=16, description="smallest anchor of a level in strides. Default: RetinaNet 4, R-CNN 8"
    )
    rpn_pre_nms: tuple[Count, Count] | None = Field(
        None,
        description="R-CNN: proposals before NMS (training, test). Default: fpn 2000, 1000 per level, c4 12000, 6000",
    )
    rpn_post_nms: tuple[Count, Count] | None = Field(
        None, description="R-CNN: proposals after NMS (training, test). Default: fpn 1000, 1000, c4 2000, 1000"
    )
    rois_per_image: int = Field(
        512, ge=4, description="R-CNN: proposals per image that train the heads, a quarter of them objects"
    )
    short_sides: tuple[Side, ...] | None = Field(
        None, description="short sides to draw from in training, px. Default: squares of data.image_size"
    )
    test_short_side: Side | None = Field(
        None, description="short side at test, px. Default: the largest of short_sides"
    )
    max_long_side: Side = Field(1333, description="largest long side of an image, px")
    scale_jitter: tuple[float, float] = Field((0.8, 1.25), description="squares: scale factor in training (min, max)")
    score_threshold: float = Field(0.05, ge=0, lt=1, description="lowest score of a detection")
    nms_iou: float = Field(0.5, gt=0, lt=1, description="IoU from which NMS removes the lower score")
    max_detections: int = Field(100, ge=1, description="most detections per image")
    optimizer: Literal["sgd", "adamw"] = Field("sgd", description="optimiser; adamw needs fewer steps than sgd")
    backbone_rate: float = Field(1.0, gt=0, le=1, description="learning rate of the backbone, as a share of the rest's")
    gradient_clip: float | None = Field(10.0, gt=0, description="largest global norm of the gradients")
    precise_bn_images: int = Field(
        0,
        ge=0,
        description="training images that batch-norm statistics are computed from before evaluation; 0 disables it",
    )

    validate_every: int | str = Field(
        0, description="steps (500) or epochs (1 epoch) between two validations on val; 0 disables it"
    )
    patience: int | None = Field(
        None, ge=1, description="validations without a better AP or mIoU after which training stops. Default: never"
    )

    @field_validator("validate_every", mode="before")
    @classmethod
    def _steps_or_epochs(cls, value):
        good = EPOCHS.fullmatch(value) if isinstance(value, str) else type(value) is int and value >= 0
        if not good:
            raise UserError(None, f"Expected 0, steps (500) or epochs (1 epoch), received {value!r:.80}.")
        return value

    @field_validator("scale_jitter")
    @classmethod
    def _rising(cls, value):
        if not 0.1 <= value[0] <= value[1] <= 10:
            raise UserError(None, f"Expected 0.1 <= min <= max <= 10, received {list(value)}.", "Use [0.8, 1.25].")
        return value

    def validation_steps(self, steps_per_epoch: int) -> int:
        """Returns the steps between two validations; 0 without validation."""
        if isinstance(self.validate_every, int):
            return self.validate_every
        return int(EPOCHS.fullmatch(self.validate_every)[1]) * steps_per_epoch

    @property
    def side_at_test(self) -> int | None:
        """Returns the short side of an image at test, px. None: squares, or for an FCN the image's own size."""
        return self.test_short_side or (max(self.short_sides) if self.short_sides else None)
