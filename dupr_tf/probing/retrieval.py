"""Finds the nearest images, and the share of their content at the same place (paper, section 4.8, Figs. 6, 8)."""

from __future__ import annotations

import numpy as np

from dupr_tf.errors import UserError
from dupr_tf.probing.features import unit
from dupr_tf.probing.matching import nearest_cells

TOP = 4


def neighbours(maps: np.ndarray, queries, top: int = TOP) -> tuple[np.ndarray, np.ndarray]:
    """Finds the nearest other images of each query, by the cosine of whole feature maps.

    Args:
        maps: (N, h, w, C) of all images.
        queries: (Q,) positions in them.
        top: number of neighbours; at most N - 1.

    Returns:
        (Q, top) positions, nearest first, and their cosines.
    """
    if len(maps) < 2:
        raise UserError("data", f"Expected at least two images, received {len(maps)}.", "Use more images.")
    rows = unit(maps.reshape(len(maps), -1))
    similarity = rows[queries] @ rows.T
    similarity[np.arange(len(queries)), queries] = -np.inf  # excludes the query itself
    nearest = np.argsort(-similarity, axis=1, kind="stable")[:, : min(top, len(maps) - 1)]
    return nearest, np.take_along_axis(similarity, nearest, 1)


def alignment(query: np.ndarray, other: np.ndarray) -> float:
    """Returns the share of cells of a map (h, w, C) whose most similar cell in another map lies at the same place.

    A distance of one cell counts as the same place.
    """
    places = np.stack(np.meshgrid(*(np.arange(side) for side in query.shape[:2]), indexing="ij"), -1)
    return float((abs(nearest_cells(query, other) - places).max(-1) <= 1).mean())


def alignment_chance(height: int, width: int) -> float:
    """Returns the `alignment` of guessing; a cell has fewer neighbours at the border."""
    y, x = ((abs(np.arange(s)[:, None] - np.arange(s)) <= 1).sum(1).mean() for s in (height, width))
    return float(y * x / (height * width))


def without_places(maps: np.ndarray) -> np.ndarray:
    """Subtracts from maps (N, h, w, C) what each cell has in common over all images.

    The zeros around an image tell a network the position of a cell, independent of its content. Otherwise a random
    network would seem to align best.
    """
    return maps - maps.mean(0)


def retrieval(maps: np.ndarray, queries, labels=None, top: int = TOP) -> tuple[dict, np.ndarray, np.ndarray]:
    """Computes the numbers of the nearest neighbours, their positions (Q, top), and the alignment of each.

    Args:
        maps: (N, h, w, C) features.
        queries: (Q,) positions in them.
        labels: (N,) classes, if known.
        top: number of neighbours of each query.

    Returns:
        `{"similarity", "alignment", "chance", "same_class", "same_class_chance", "queries", "images"}`, the neighbours,
        and their alignments `(Q, top)`, computed on maps `without_places`. The values of "same_class…" are None without
        labels.
    """
    queries, shown = np.asarray(queries), without_places(maps)
    nearest, similarity = neighbours(maps, queries, top)
    aligned = [[alignment(shown[q], shown[k]) for k in row] for q, row in zip(queries, nearest, strict=True)]
    same = guess = None
    if labels is not None:
        labels = np.asarray(labels)
        same = float((labels[nearest] == labels[queries][:, None]).mean())
        counts = np.array([(labels == labels[q]).sum() - 1 for q in queries])
        guess = float((counts / (len(labels) - 1)).mean())
    return {
        "similarity": float(similarity.mean()), "alignment": float(np.mean(aligned)),
        "chance": alignment_chance(*maps.shape[1:3]), "same_class": same, "same_class_chance": guess,
        "queries": len(queries), "images": len(maps),
    }, nearest, np.array(aligned)  # fmt: skip
