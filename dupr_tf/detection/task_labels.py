"""Reads labelled images for the task of a detector, and counts the labels to train on. Imports no TensorFlow."""

from __future__ import annotations

import dataclasses
import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from dupr_tf.config import Config, DataConfig
from dupr_tf.data import layouts
from dupr_tf.data.file_results import FileResults
from dupr_tf.data.labels.annotations import AnnotatedImages, read_annotations
from dupr_tf.data.labels.partition import divide_train, warn_of_overlap
from dupr_tf.data.labels.segments import IGNORED, SegmentedImages, read_segments
from dupr_tf.data.labels.split import MissingSplit, take_share
from dupr_tf.data.labels.usable import leave_out_unusable
from dupr_tf.errors import UserError
from dupr_tf.files import local_path


class Labels(NamedTuple):
    """The functions that a task needs to read and count labels."""

    read: Callable  # (root, split, data section, class_names or None) -> images
    learnable: Callable  # images -> number of images to train on


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


def count_trained_on(annotated: AnnotatedImages) -> int:
    """Counts the images to train on, those with a label that counts."""
    return len(annotated.trained_on())


LABELS = {
    "boxes": Labels(read_boxes, count_trained_on),
    "masks": Labels(read_masks, count_trained_on),
    "segments": Labels(read_classes, len),
}


def read_splits(config: Config, data: str | Path, task: str, results: FileResults | None = None) -> tuple:
    """Returns the images to train on (or a share of them), the images to evaluate on, and the share's ids or None.

    Args:
        config: config with the sections `data` and `detector`.
        data: root of a labelled data set.
        task: a key of `LABELS`.
        results: results of the checks of an earlier start. Those of this start are added.

    Raises:
        UserError: a split is missing or wrong, or has nothing to evaluate on.
    """
    section = config.data
    train, val = LABELS[task].read(data, "train", section), None
    if section.val_share is not None:
        _refuse_own_val(data, section, task)
    elif section.held_out is None:
        val = _read_val(data, section, task, train.class_names)
    train, val = divide_train(train, val, section, results)
    val = _check_evaluated(data, val, "val", section, task, results)
    train = leave_out_unusable(train, "train", section, results)  # first: they would change the share
    if section.share < 1:
        train, _ = take_share(train, section.share, section.share_seed)
    warn_of_overlap(train, val)
    if section.background:
        train = dataclasses.replace(train, background=True)
    return train, val, (train.ids or train.paths) if section.share < 1 else None


def read_evaluated(data: str | Path, split: str, section: DataConfig, task: str, class_names, results=None):
    """Returns the images of a split. "val" can be a part of train, by `data.val_share` or `data.held_out`.

    Raises:
        UserError: the split is missing, or has nothing to evaluate a detector on.
    """
    read = LABELS[task].read
    drawn = split == "val" and section.held_out is not None
    if not drawn:
        try:
            images = read(data, split, section, class_names)
        except MissingSplit:
            if split != "val" or section.val_share is None:
                raise
            drawn = True
    if drawn:
        _, images = divide_train(read(data, "train", section, class_names), None, section, results)
    return _check_evaluated(data, images, split, section, task, results)


def _read_val(data, section: DataConfig, task: str, class_names):
    """Reads the split val of a root that has train. Raises UserError that names the setting if it has none."""
    try:
        return LABELS[task].read(data, "val", section, class_names)
    except MissingSplit as error:
        fix = "Pass --data.val_share 0.1 to draw a tenth of train for it, or add the split."
        raise UserError("data.val_share", error.problem, fix) from None


def _refuse_own_val(data, section: DataConfig, task: str) -> None:
    try:
        LABELS[task].read(data, "val", section)
    except MissingSplit:
        return
    raise UserError("data.val_share", f"{data} has a split val.", "Leave data.val_share out.")


def _check_evaluated(data, images, split: str, section: DataConfig, task: str, results: FileResults | None):
    images = leave_out_unusable(images, split, section, results)
    if not LABELS[task].learnable(images):
        raise UserError("data", f"{data} has no boxes to evaluate on.", "Use a split whose images have labels.")
    if task == "segments" and all((images.truth(index) == IGNORED).all() for index in range(len(images))):
        problem = f"No mask of the split {split} of {data} has a pixel of a class."
        raise UserError("data", problem, "Use a split whose masks have classes, or check data.ignore_value.")
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


def kind_of_root(root, split: str, kind: str, task: str | None) -> str:
    """Returns the layout of a detector's run if another root has it too, or else "auto". `task` may be unknown."""
    tables = {"segments": layouts.PIXELS, None: {**layouts.PIXELS, **layouts.BOXES}}
    entry = tables.get(task, layouts.BOXES).get(kind)
    shown = entry.facts["shown"] if entry else lambda root, split: []
    return kind if any(shown(local_path(root), one) for one in (split, "train")) else "auto"


def layout_of(root, split: str, kind: str, task: str) -> str:
    """Returns the layout of boxes that "auto" detects, by train if the root does not show the split.

    Other values stay. So does that of segments, whose metrics do not depend on the layout.
    """
    if task == "segments":
        return kind
    root = local_path(root)
    shown = any(entry.facts["shown"](root, split) for entry in layouts.BOXES.values())
    return layouts.layout_of(layouts.BOXES, root, kind, split if shown else "train")
