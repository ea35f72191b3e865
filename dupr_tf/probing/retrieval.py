"""Which images are nearest, and whether what they show stands in the same place (paper, section 4.8, Figs. 6 and 8)."""

from __future__ import annotations

import numpy as np

from dupr_tf.errors import UserError
from dupr_tf.probing.features import unit
from dupr_tf.probing.matching import nearest_cells

TOP = 4


def neighbours(maps: np.ndarray, queries, top: int = TOP) -> tuple[np.ndarray, np.ndarray]:
    """The nearest other images of each query, by the cosine of whole feature maps.

    Args:
        maps: (N, h, w, C) of all images.
        queries: (Q,) positions in them.
        top: how many; at most N - 1.

    Returns:
        (Q, top) positions from the nearest on, and their cosines.
    """
    if len(maps) < 2:
        raise UserError("data", f"Expected at least two images, received {len(maps)}.", "Use more images.")
    rows = unit(maps.reshape(len(maps), -1))
    similarity = rows[queries] @ rows.T
    similarity[np.arange(len(queries)), queries] = -np.inf  # not the query itself
    found = np.argsort(-similarity, axis=1, kind="stable")[:, : min(top, len(maps) - 1)]
    return found, np.take_along_axis(similarity, found, 1)


def alignment(query: np.ndarray, other: np.ndarray) -> float:
    """Share of a map's cells (h, w, C) whose most similar cell of another lies where they do, to within one cell."""
    places = np.stack(np.meshgrid(*(np.arange(side) for side in query.shape[:2]), indexing="ij"), -1)
    return float((abs(nearest_cells(query, other) - places).max(-1) <= 1).mean())


def alignment_chance(height: int, width: int) -> float:
    """`alignment` of guessing: a cell has fewer neighbours at the border."""
    y, x = ((abs(np.arange(s)[:, None] - np.arange(s)) <= 1).sum(1).mean() for s in (height, width))
    return float(y * x / (height * width))


def without_places(maps: np.ndarray) -> np.ndarray:
    """Maps (N, h, w, C) without what a cell has in common over all images: the zeros around an image tell a network
    where a cell is, whatever it shows, and without this a random one would seem to align best."""
    return maps - maps.mean(0)


def retrieval(maps: np.ndarray, queries, labels=None, top: int = TOP) -> tuple[dict, np.ndarray, np.ndarray]:
    """Numbers of the nearest neighbours, their positions (Q, top), and the alignment of each.

    Args:
        maps: (N, h, w, C) features.
        queries: (Q,) positions in them.
        labels: (N,) classes, where known.
        top: neighbours of each.

    Returns:
        {"similarity", "alignment", "chance", "same_class" and "same_class_chance" (None without labels), "queries",
        "images"}, the neighbours, and their alignments (Q, top), of maps `without_places`.
    """
    queries, shown = np.asarray(queries), without_places(maps)
    found, similarity = neighbours(maps, queries, top)
    aligned = [[alignment(shown[q], shown[k]) for k in row] for q, row in zip(queries, found, strict=True)]
    same = guess = None
    if labels is not None:
        labels = np.asarray(labels)
        same = float((labels[found] == labels[queries][:, None]).mean())
        counts = np.array([(labels == labels[q]).sum() - 1 for q in queries])
        guess = float((counts / (len(labels) - 1)).mean())
    return {
        "similarity": float(similarity.mean()), "alignment": float(np.mean(aligned)),
        "chance": alignment_chance(*maps.shape[1:3]), "same_class": same, "same_class_chance": guess,
        "queries": len(queries), "images": len(maps),
    }, found, np.array(aligned)  # fmt: skip
