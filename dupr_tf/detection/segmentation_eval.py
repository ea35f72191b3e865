"""Computes intersection over union of pixel classes, counted image by image."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from dupr_tf.data.labels.segments import IGNORED
from dupr_tf.errors import UserError


class ConfusionMatrix:
    """Counts pixels by true and predicted class; ignored ones (255 in the truth) are not counted.

    Args:
        classes: number of classes.
    """

    def __init__(self, classes: int):
        self.counts = np.zeros((classes, classes), np.int64)  # [truth, predicted]

    def add(self, truth: np.ndarray, predicted: np.ndarray) -> None:
        """Counts one image.

        Args:
            truth: (H, W) integers, classes or 255.
            predicted: (H, W) integers, classes.

        Raises:
            UserError: the shapes differ, or a class is out of range.
        """
        truth, predicted, classes = np.asarray(truth), np.asarray(predicted), len(self.counts)
        if truth.shape != predicted.shape:
            raise UserError(
                "predicted",
                f"Expected shape {truth.shape}, received {predicted.shape}.",
                "Resize the prediction to the size of its image.",
            )
        counted = truth != IGNORED
        rows, columns = truth[counted].astype(np.int64), predicted[counted].astype(np.int64)
        for name, values in (("truth", rows), ("predicted", columns)):
            if values.size and not 0 <= values.min() <= values.max() < classes:
                raise UserError(
                    name,
                    f"Expected classes 0 to {classes - 1}, received {values.min()} to {values.max()}.",
                    "Use the same list of classes for the labels and the detector.",
                )
        self.counts += np.bincount(rows * classes + columns, minlength=classes**2).reshape(classes, classes)

    def scores(self, class_names: Sequence[str]) -> dict:
        """Returns `mIoU`, `pixel_accuracy` in [0, 1] and `per_class`: name -> IoU.

        The IoU of a class is its hits over all pixels with this class in the truth or the prediction. A class in
        neither has None and does not count in the mean. If no pixel was counted, all values are None.
        """
        hits = np.diag(self.counts)
        union = self.counts.sum(0) + self.counts.sum(1) - hits
        shares = [float(h / u) if u else None for h, u in zip(hits, union, strict=True)]
        known, total = [share for share in shares if share is not None], self.counts.sum()
        return {
            "mIoU": float(np.mean(known)) if known else None,
            "pixel_accuracy": float(hits.sum() / total) if total else None,
            "per_class": dict(zip(class_names, shares, strict=True)),
        }
