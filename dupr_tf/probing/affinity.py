"""Computes the affinity of all places of one region in two views (paper, eq. 9 and Fig. 9)."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from dupr_tf.errors import UserError
from dupr_tf.ops.roi_align import roi_align
from dupr_tf.probing.features import unit
from dupr_tf.probing.pairs import check_overlaps

TEMPERATURE = 0.001
CELLS = 14  # S of the regions


def affinity(region_1: np.ndarray, region_2: np.ndarray, temperature: float = TEMPERATURE) -> np.ndarray:
    """Computes eq. 9: A[i, j], a softmax over the places i of view 1 of their cosine with place j of view 2.

    Args:
        region_1, region_2: (S, S, C) features of the same region.
        temperature: τ > 0.

    Returns:
        (S², S²) float64; each column adds up to 1, and the ideal is the identity.
    """
    if temperature <= 0:
        raise UserError("temperature", f"Expected more than 0, received {temperature}.", "Use the paper's 0.001.")
    a, b = (unit(np.asarray(r, np.float64)).reshape(-1, r.shape[-1]) for r in (region_1, region_2))
    logits = a @ b.T / temperature
    weights = np.exp(logits - logits.max(0, keepdims=True))
    return weights / weights.sum(0, keepdims=True)


def diagonal_mass(matrix: np.ndarray, radius: int = 0) -> float:
    """Returns the mean over columns of the mass within `radius` cells of the diagonal (rows, columns)."""
    side = round(matrix.shape[0] ** 0.5)
    y, x = np.divmod(np.arange(side * side), side)
    near = (abs(y[:, None] - y) <= radius) & (abs(x[:, None] - x) <= radius)
    return float((matrix * near).sum(0).mean())


def affinities(
    maps, pairs: Iterable[dict], size: int, level: str = "P5", cells: int = CELLS, temperature: float = TEMPERATURE,
    drawn: int = 0,
) -> tuple[dict, list[tuple]]:  # fmt: skip
    """Measures the mass on the diagonal of eq. 9 over many pairs of views.

    Args:
        maps: from `feature_maps`, of `level`.
        pairs: from `view_pairs_of` (the region is the overlap) or `object_pairs` (an object's box).
        size: side of a view, px.
        level: level of the features.
        cells: S.
        temperature: τ.
        drawn: number of pairs to return for a picture.

    Returns:
        `{"diagonal", "within_1", "chance", "chance_within_1", "pairs"}`, and `(view_1, view_2, box_1, box_2, matrix)`
        of the pairs to draw.
    """
    exact, near, shown = [], [], []
    for pair in pairs:
        regions = []
        for number in (1, 2):
            features = maps(pair[f"view_{number}"])[level]
            scale, flipped = features.shape[1] / size, pair[f"flipped_{number}"]
            regions.append(roi_align(features, pair[f"boxes_{number}"], cells, scale, 1, flipped).numpy())
        for n in np.flatnonzero(pair["valid"]):
            matrix = affinity(regions[0][n], regions[1][n], temperature)
            exact.append(diagonal_mass(matrix))
            near.append(diagonal_mass(matrix, 1))
            if len(shown) < drawn:
                shown.append((*(pair[name][n] for name in ("view_1", "view_2", "boxes_1", "boxes_2")), matrix))
    check_overlaps(exact)
    flat = np.full((cells * cells,) * 2, 1 / cells**2)
    return {
        "diagonal": float(np.mean(exact)), "within_1": float(np.mean(near)),
        "chance": diagonal_mass(flat), "chance_within_1": diagonal_mass(flat, 1), "pairs": len(exact),
    }, shown  # fmt: skip
