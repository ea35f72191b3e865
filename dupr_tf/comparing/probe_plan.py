"""Plans a comparison by a probe: reads the labelled images, and checks that each share can be scored."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from dupr_tf.comparing.grid import middle_share
from dupr_tf.comparing.plan import Settings, default_reference, lost_of_images
from dupr_tf.comparing.record import Comparison
from dupr_tf.config import Config, DataConfig, ModelConfig
from dupr_tf.data.labels.split import draw_positions
from dupr_tf.data.layouts import mask_folders
from dupr_tf.detection.task_labels import labels_entry
from dupr_tf.errors import UserError
from dupr_tf.probing.labelled import (
    SPLITS,
    check_class_folders,
    has_class_folders,
    image_labels,
    is_annotated,
    read_both_splits,
    read_class_folders,
)

LEVEL = "P5"
DATA_FIELDS = ("kind", "max_bad_share", "max_pixels", "depth")  # fields of the config that a probe uses
MODEL_FIELDS = ("backbone", "width")
FIELDS = (*(f"data.{name}" for name in DATA_FIELDS), *(f"model.{name}" for name in MODEL_FIELDS))


@dataclasses.dataclass(frozen=True)
class ProbedImages:
    """Holds a split: N image files, their classes, and the names of the classes.

    Args:
        paths: the files.
        labels: (N,) int64, the class of each image of class folders; or (N, classes) int8, as from `image_labels`.
        class_names: names of the classes.
    """

    paths: tuple[str, ...]
    labels: np.ndarray
    class_names: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.paths)

    def matrix(self) -> np.ndarray:
        """Returns the labels as (N, classes) int8."""
        if self.labels.ndim == 2:
            return self.labels
        return (self.labels[:, None] == np.arange(len(self.class_names))).astype(np.int8)

    def classes(self) -> list[set[int]]:
        """Returns the numbers of the classes that each image shows."""
        if self.labels.ndim == 1:
            return [{label} for label in self.labels.tolist()]
        return [set(np.flatnonzero(row == 1).tolist()) for row in self.labels]


def read_probed(probe: str, data: str, section: DataConfig) -> dict[str, ProbedImages]:
    """Reads {"train", "val"} of class folders; for the SVM, of a root with boxes if it shows one.

    Raises:
        UserError: the root has no layout that the probe can use, or its labels are wrong.
    """
    if any(mask_folders(Path(data), split) for split in SPLITS):
        problem = f"{data} has a class for each pixel, and probes need classes of images, or boxes."
        raise UserError("--data", problem, "Leave --probes out, with the config of an fcn.")
    boxes = is_annotated(data) or section.kind not in ("auto", "folder")
    if probe == "knn" and boxes:
        try:
            check_class_folders(data)
        except UserError:
            problem = f"knn needs train/CLASS/ and val/CLASS/, and {data} has boxes."
            raise UserError("--probes", problem, "Use --probes svm.") from None
    if probe == "svm" and (boxes or not has_class_folders(data)):
        splits = read_both_splits(data, SPLITS, section)
        read = [ProbedImages(tuple(one.paths), image_labels(one), tuple(one.class_names)) for one in splits]
        return dict(zip(SPLITS, read, strict=True))
    folders = read_class_folders(data)
    return {split: ProbedImages(tuple(one.paths), one.labels, one.class_names) for split, one in folders.items()}


def label_digests(data: str, splits: dict[str, ProbedImages]) -> dict[str, str]:
    """Returns the digest of the images and labels of each split."""
    return {split: labels_entry(data, images)["sha256"] for split, images in splits.items()}


def make_probe_comparison(
    config: Config, data: str, settings: Settings, probe: str
) -> tuple[Comparison, ProbedImages, ProbedImages]:
    """Reads the labels, and returns the comparison of a call with the images of train and val.

    Args:
        config: config whose `FIELDS` are used.
        data: absolute root of the labelled data.
        settings: flags that `plan_problems` has checked.
        probe: name of the probe.

    Raises:
        UserError: the data cannot be used.
    """
    used = Config(
        data=DataConfig(**{name: getattr(config.data, name) for name in DATA_FIELDS}),
        model=ModelConfig(**{name: getattr(config.model, name) for name in MODEL_FIELDS}),
    )
    splits, shares = read_probed(probe, data, used.data), tuple(sorted(settings.shares))
    comparison = Comparison(
        config=used,
        data=data,
        labels=label_digests(data, splits),
        counts={split: len(images) for split, images in splits.items()},
        backbones=tuple(settings.backbones),
        shares=shares,
        steps=(1,) * len(shares),
        seeds=settings.seeds,
        rates=(),
        rate_share=settings.rate_share or middle_share(shares),
        reference=settings.reference or default_reference(settings.backbones),
        probe=probe,
        level=settings.level or LEVEL,
    )
    return comparison, splits["train"], splits["val"]


def check_trainable(comparison: Comparison, train: ProbedImages, val: ProbedImages) -> None:
    """Raises UserError if, in some seed, a share has no class that an SVM can learn and val can show."""
    labels, in_val = train.matrix(), (val.matrix() == 1).any(0)
    for share in comparison.shares:
        for seed in range(comparison.seeds):
            rows = labels[draw_positions(len(train), share, seed)]
            if not ((rows == 1).any(0) & (rows == 0).any(0) & in_val).any():
                problem = (
                    f"Share {share:g} with seed {seed} has {len(rows)} images, and no class with images that show it "
                    "and images that do not."
                )
                raise UserError("--shares", problem, "Use a larger share.")


def lost_probed_classes(comparison: Comparison, train: ProbedImages) -> Iterator[str]:
    """Yields a warning for each share in which some seed has no image of a class."""
    yield from lost_of_images(comparison, train.classes(), train.class_names)
