"""Checks that the labelled images are still those of a comparison."""

from __future__ import annotations

import hashlib

from dupr_tf.comparing.record import OTHER, Comparison
from dupr_tf.config.detectors import DETECTORS
from dupr_tf.data.file_results import FileResults
from dupr_tf.detection.task_labels import labels_entry, read_splits
from dupr_tf.errors import UserError
from dupr_tf.files import sha256_of


def contents_digest(images, results: FileResults, threads: int | None) -> str:
    """Returns a digest of the contents of the files of images and masks.

    Args:
        images: a `Split` or `ProbedImages`.
        results: keeps the digest of each file.
        threads: threads that read files.
    """
    files = [*images.paths, *getattr(images, "segment_paths", ())]

    def compute(index: int) -> str:
        try:
            return sha256_of(files[index])
        except OSError:  # a probe leaves out files that cannot be read
            return ""

    digests = results.of("sha256", files, compute, threads)
    return hashlib.sha256("".join(digests).encode()).hexdigest()


def check_same_labels(comparison: Comparison, results: FileResults) -> None:
    """Raises UserError if labels or images of a detector's comparison have changed since it began.

    Args:
        comparison: a comparison of detectors.
        results: results of the checks of images, so that unchanged files are not read again.
    """
    task = DETECTORS[comparison.config.detector.kind].facts["task"]
    splits = dict(zip(("train", "val"), read_splits(comparison.config, comparison.data, task, results), strict=False))
    for split, images in splits.items():
        same = labels_entry(comparison.data, images)["sha256"] == comparison.labels[split]
        threads = comparison.config.data.threads
        if not same or contents_digest(images, results, threads) != comparison.contents[split]:
            raise UserError(
                "--data", f"The images or labels of {split} have changed since this comparison began.", OTHER
            )
