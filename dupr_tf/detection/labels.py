"""Labelled images by the task of a detector: how they are read, and which labels count. Imports no TensorFlow."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from dupr_tf.config import Config, DataConfig
from dupr_tf.data import layouts
from dupr_tf.data.labels.annotations import AnnotatedImages, read_annotations
from dupr_tf.data.labels.segments import SegmentedImages, read_segments
from dupr_tf.data.labels.split import take_share
from dupr_tf.errors import UserError


class Labels(NamedTuple):
    """The functions that a task needs to read and count labels."""

    read: Callable  # (root, split, data section, class_names or None) -> images
    learnable: Callable  # images -> how many of them have something to learn from


def read_boxes(root, split: str, data: DataConfig, class_names=None, masks: bool = False) -> AnnotatedImages:
    """Reads a split with boxes, and with masks if `masks` is set."""
    return read_annotations(root, split, data.kind, class_names, data.max_bad_share, masks)


def read_masks(root, split: str, data: DataConfig, class_names=None) -> AnnotatedImages:
    """Reads a split with boxes and masks."""
    return read_boxes(root, split, data, class_names, masks=True)


def read_classes(root, split: str, data: DataConfig, class_names=None) -> SegmentedImages:
    """Reads a split with a class for every pixel."""
    names = data.class_names if class_names is None else class_names
    return read_segments(root, split, data.kind, names, data.ignore_value, data.max_bad_share)


def count_with_boxes(annotated: AnnotatedImages) -> int:
    """Counts the images that have a box that counts."""
    return len(annotated.with_boxes())


LABELS = {
    "boxes": Labels(read_boxes, count_with_boxes),
    "masks": Labels(read_masks, count_with_boxes),
    "segments": Labels(read_classes, len),
}


def read_splits(config: Config, data: str | Path, task: str) -> tuple:
    """Returns the images to train on (or a share of them), the images to evaluate on, and the share's ids or None.

    Args:
        config: config with the sections `data` and `detector`.
        data: root of a labelled data set.
        task: a key of `LABELS`.

    Raises:
        UserError: a split is missing or wrong, or has nothing to evaluate on.
    """
    train = LABELS[task].read(data, "train", config.data)
    val = read_evaluated(data, "val", config.data, task, train.class_names)
    if config.data.share == 1:
        return train, val, None
    train, ids = take_share(train, config.data.share, config.data.share_seed)
    return train, val, ids


def read_evaluated(data: str | Path, split: str, section: DataConfig, task: str, class_names):
    """Returns the images of a split. Raises UserError if they have nothing to evaluate a detector on."""
    images = LABELS[task].read(data, split, section, class_names)
    if not LABELS[task].learnable(images):
        raise UserError("data", f"{data} has no boxes to evaluate on.", "Use a split whose images have labels.")
    return images


def labels_entry(root, images: AnnotatedImages | SegmentedImages) -> dict:
    """Returns {"count", "sha256"} of the images and labels of a split as they were read, independent of the root.

    The digest covers the names of segmentation masks, but not their values, which are not read.
    """
    digest = hashlib.sha256()
    names = ("paths", "segment_paths", "class_names", "sizes", "boxes", "labels", "ignored", "masks", "table")
    for name in names:
        rows = getattr(images, name, None)
        for row in () if rows is None else rows:
            if name.endswith("paths"):
                row = os.path.relpath(row, root)
            values = row if isinstance(row, list) else [row]
            parts = [v.tobytes() if isinstance(v, np.ndarray | np.generic) else os.fsencode(v) for v in values]
            digest.update(f"{name} {[len(part) for part in parts]}".encode() + b"".join(parts))
    return {"count": len(images), "sha256": digest.hexdigest()}


def layout_of(root, split: str, kind: str) -> str:
    """Returns the layout that "auto" detects; other values are returned unchanged."""
    return layouts.layout_of(layouts.BOXES, Path(root), split=split) if kind == "auto" else kind
