"""Classifies by nearest neighbours in feature space, with votes weighted by similarity (InstDis, section 3.4)."""

from __future__ import annotations

import numpy as np

from dupr_tf.errors import UserError
from dupr_tf.probing.features import unit

BLOCK = 512  # images classified at a time
MOST_VOTES = 200  # of InstDis on ImageNet


def votes(images: int, classes: int, most: int = MOST_VOTES) -> int:
    """Returns the default k: the mean number of training images of a class, at most `most`.

    With a fixed 200, all images of a small set would vote. The features of random weights are all alike, so that this
    gave chance level on 110 images of Imagenette, against a top1 of .2 with 11.

    Args:
        images: number of training images.
        classes: number of their classes.
        most: upper limit, for sets in which most classes have more images than that.
    """
    return min(most, max(1, images // classes))


def knn_scores(train, labels, val, classes: int, k: int, temperature: float = 0.07) -> np.ndarray:
    """Computes votes for each class: the sum of exp(cosine / τ) over the k nearest training images.

    Args:
        train: (N, D) features.
        labels: (N,) int, their classes.
        val: (M, D) features.
        classes: number of classes.
        k: number of neighbours that vote; at most N do.
        temperature: τ > 0.

    Returns:
        (M, classes), each row divided by the weight of its nearest neighbour, which keeps it finite for any τ.
    """
    if k < 1:
        raise UserError("k", f"Expected 1 or more, received {k}.", "Use 20, for example.")
    if temperature <= 0:
        raise UserError("temperature", f"Expected more than 0, received {temperature}.", "Use 0.07, for example.")
    train, val, k = unit(np.asarray(train)), unit(np.asarray(val)), min(k, len(train))
    scores = np.zeros((len(val), classes))
    for start in range(0, len(val), BLOCK):
        similarity = val[start : start + BLOCK] @ train.T  # (m, N)
        nearest = largest(similarity, k)
        closest = np.take_along_axis(similarity, nearest, 1)
        weights = np.exp((closest - closest[:, :1]) / temperature)
        rows = np.arange(start, start + len(closest))[:, None]
        np.add.at(scores, (rows, np.asarray(labels)[nearest]), weights)
    return scores


def largest(values: np.ndarray, k: int) -> np.ndarray:
    """Returns (m, k) columns of the k largest of each row, largest first, without sorting all columns."""
    columns = np.argpartition(-values, k - 1, axis=1)[:, :k]
    order = np.argsort(-np.take_along_axis(values, columns, 1), axis=1, kind="stable")
    return np.take_along_axis(columns, order, 1)


def knn(train, labels, val, val_labels, classes: int, k: int | None = None, temperature: float = 0.07) -> dict:
    """Returns {"top1", "top5" (None below six classes), "chance", "k", "temperature"} of `knn_scores`; see `votes`."""
    k = votes(len(train), classes) if k is None else k
    scores = knn_scores(train, labels, val, classes, k, temperature)
    return {**top_accuracies(scores, val_labels), "k": min(k, len(train)), "temperature": temperature}


def top_accuracies(scores: np.ndarray, labels) -> dict:
    """Returns the shares of rows whose class has the highest score, or one of the five highest; the first wins ties."""
    order = np.argsort(-scores, axis=1, kind="stable")
    hits = order == np.asarray(labels)[:, None]
    classes = scores.shape[1]
    top5 = float(hits[:, :5].any(1).mean()) if classes > 5 else None
    return {"top1": float(hits[:, 0].mean()), "top5": top5, "chance": 1 / classes}
