"""Measures whether matching places of two views have matching features, by nearest neighbours (paper, Fig. 10)."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable

import numpy as np

from dupr_tf.probing.features import unit
from dupr_tf.probing.pairs import check_overlaps

RADII = (1, 2)  # cells


@dataclasses.dataclass(frozen=True)
class Drawn:
    """Holds a pair to draw: views (S, S, 3) in 0–255, and the matches of view 1's cells inside the overlap."""

    view_1: np.ndarray
    view_2: np.ndarray
    cells: np.ndarray  # (n, 2) y, x in cells of view 1
    matched: np.ndarray  # (n, 2) of view 2, the nearest in feature space
    places: np.ndarray  # (n, 2) of view 2, the truth
    side: int  # cells


def true_places(pair: dict, size: int, side: int) -> tuple[np.ndarray, np.ndarray]:
    """Computes the position in view 2 of the centre of each cell of view 1.

    Args:
        pair: `boxes_1`, `boxes_2` (b, 4) `(y1, x1, y2, x2)` px, `flipped_1`, `flipped_2` (b,) bool.
        size: side of a view, px.
        side: n, cells per side of a feature map.

    Returns:
        (b, n, n, 2) float64 `(y, x)` in cells of view 2, where k is the centre of cell k.
        (b, n, n) bool, True if the centre lies in the overlap. Positions outside it have no meaning.
    """
    step = size / side
    centres = (np.arange(side) + 0.5) * step
    grid = np.stack(np.meshgrid(centres, centres, indexing="ij"), -1)[None]  # (1, n, n, 2) px
    box_1, box_2 = (np.asarray(pair[name], np.float64)[:, None, None] for name in ("boxes_1", "boxes_2"))
    share = (grid - box_1[..., :2]) / (box_1[..., 2:] - box_1[..., :2])  # (b, n, n, 2), 0–1 inside the overlap
    inside = ((share >= 0) & (share <= 1)).all(-1)
    mirrored = (np.asarray(pair["flipped_1"]) != np.asarray(pair["flipped_2"]))[:, None, None]
    share[..., 1] = np.where(mirrored, 1 - share[..., 1], share[..., 1])
    points = box_2[..., :2] + share * (box_2[..., 2:] - box_2[..., :2])
    return points / step - 0.5, inside


def nearest_cells(features_1: np.ndarray, features_2: np.ndarray) -> np.ndarray:
    """Finds for each cell of one map `(n, n, C)` the most similar of another by cosine; `(n, n, 2)` int `(y, x)`."""
    side = features_1.shape[0]
    a, b = (unit(np.asarray(f)).reshape(-1, f.shape[-1]) for f in (features_1, features_2))
    best = (a @ b.T).argmax(1)
    return np.stack(np.divmod(best, features_2.shape[1]), -1).reshape(side, -1, 2)


def chance(places: np.ndarray, side: int, radius: float) -> float:
    """Computes the PCK of guessing: the mean share of the side² cells within `radius` of the places (n, 2)."""
    y, x = (np.abs(places[:, axis, None] - np.arange(side)) for axis in range(2))  # (n, side)
    near = y[:, :, None] ** 2 + x[:, None, :] ** 2 <= radius**2
    return float(near.mean())


def match_pair(features_1, features_2, places, inside) -> dict:
    """Matches the n cells of one pair that lie inside the overlap.

    Args:
        features_1, features_2: (s, s, C).
        places: (s, s, 2) truth, see `true_places`.
        inside: (s, s) bool.

    Returns:
        `{"cells": (n, 2), "matched": (n, 2), "places": (n, 2), "errors": (n,)}`; errors are distances in cells.
    """
    nearest = nearest_cells(features_1, features_2)[inside]
    truth = places[inside]
    errors = np.linalg.norm(nearest - truth, axis=-1)
    return {"cells": np.argwhere(inside), "matched": nearest, "places": truth, "errors": errors}


def matching(maps, pairs: Iterable[dict], size: int, level: str = "P4", drawn: int = 0) -> tuple[dict, list[Drawn]]:
    """Computes PCK over many pairs: the share of cells matched to within 1 and 2 cells of their true place.

    Args:
        maps: from `feature_maps`, of `level`.
        pairs: from `view_pairs_of`; a pair without enough overlap is skipped.
        size: side of a view, px.
        level: level of the cells.
        drawn: number of pairs to return for a picture.

    Returns:
        `{"pck_1", "pck_2", "chance_1", "chance_2", "median_error", "pairs", "cells"}`, and the pairs to draw.
    """
    errors, guesses, shown, used = [], [], [], 0
    for pair in pairs:
        features = [maps(pair[name])[level].numpy() for name in ("view_1", "view_2")]
        side = features[0].shape[1]
        places, inside = true_places(pair, size, side)
        for n in np.flatnonzero(pair["valid"] & inside.any((1, 2))):
            match = match_pair(features[0][n], features[1][n], places[n], inside[n])
            errors.append(match.pop("errors"))
            guesses.append([len(errors[-1]) * chance(match["places"], side, radius) for radius in RADII])
            used += 1
            if len(shown) < drawn:
                shown.append(Drawn(pair["view_1"][n], pair["view_2"][n], **match, side=side))
    check_overlaps(errors)
    errors, guesses = np.concatenate(errors), np.sum(guesses, 0)
    numbers = {f"pck_{radius}": float((errors <= radius).mean()) for radius in RADII}
    numbers |= {f"chance_{radius}": float(guess / len(errors)) for radius, guess in zip(RADII, guesses, strict=True)}
    return {**numbers, "median_error": float(np.median(errors)), "pairs": used, "cells": len(errors)}, shown
