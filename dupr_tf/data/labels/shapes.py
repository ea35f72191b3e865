"""Turns the shapes that labelling tools draw into objects. Shapes that lose information are counted.

Coordinates are in the unit of the labels: pixels, or shares of the image.
"""

from __future__ import annotations

import collections
import math
from collections.abc import Sequence

import numpy as np

from dupr_tf.data.labels.annotations import Object

ROTATED = "rotated boxes, read as upright boxes around them"
ROUND = "circles and ellipses, read as boxes around them"
FLAT = "polygons without area, left out"
ARC_POINTS = 64  # points of the polygon that a circle or an ellipse becomes


def box(name: str, first: Sequence[float], second: Sequence[float], ignored: bool = False) -> Object:
    """Returns an upright box between two opposite corners `(x, y)`, in any order."""
    (x1, x2), (y1, y2) = (sorted(map(float, pair)) for pair in zip(first, second, strict=True))
    return Object(name, (x1, y1, x2, y2), ignored=ignored)


def polygon(name: str, points, ignored: bool = False) -> Object:
    """Returns the object of a polygon of points (n, 2) or (2n,). Without area it has the fault `FLAT`."""
    points = np.asarray(points, np.float64).reshape(-1, 2)
    area = _area(points)
    fault = FLAT if not area > 0 and np.isfinite(points).all() else ""
    corners = (*points.min(0).tolist(), *points.max(0).tolist()) if len(points) else (0.0,) * 4
    return Object(name, corners, area, ignored, [points.ravel().tolist()], fault)


def rotated_box(name, centre, sides, degrees: float, counts: collections.Counter, ignored=False) -> Object:
    """Returns the object of a box that is turned clockwise about its centre, and counts it.

    Args:
        name: name of the class.
        centre: (x, y).
        sides: width and height.
        degrees: angle of the turn.
        counts: receives `ROTATED`.
        ignored: whether the object is ignored.
    """
    offsets = np.array([(-1, -1), (1, -1), (1, 1), (-1, 1)]) * np.asarray(sides, np.float64) / 2
    counts[ROTATED] += 1
    return polygon(name, turned(offsets, degrees) + np.asarray(centre, np.float64), ignored)


def ellipse(name, centre, radii, degrees: float, counts: collections.Counter, ignored=False) -> Object:
    """Returns the object of an ellipse, as `rotated_box` does, and counts it as `ROUND`. Its box is exact."""
    angles = np.linspace(0, 2 * math.pi, ARC_POINTS, endpoint=False)
    outline = np.stack([np.cos(angles), np.sin(angles)], 1) * np.asarray(radii, np.float64)
    counts[ROUND] += 1
    item = polygon(name, turned(outline, degrees) + np.asarray(centre, np.float64), ignored)
    angle = math.radians(degrees)
    axes = np.asarray(radii, np.float64) * np.array(
        [(math.cos(angle), math.sin(angle)), (math.sin(angle), math.cos(angle))]
    )
    reach = np.hypot(axes[:, 0], axes[:, 1])
    return item._replace(box=(*(np.asarray(centre) - reach).tolist(), *(np.asarray(centre) + reach).tolist()))


def turned(points: np.ndarray, degrees: float) -> np.ndarray:
    """Turns points (n, 2) clockwise, as seen with y downwards, about the origin."""
    sine, cosine = math.sin(math.radians(degrees)), math.cos(math.radians(degrees))
    return points @ np.array([[cosine, sine], [-sine, cosine]])


def not_read(kind: str) -> Object:
    """Returns an object of a kind that is not read, so that its image does not count as one without objects."""
    return Object("", (0.0,) * 4, unread=kind)


def join(items: Sequence[Object]) -> Object:
    """Joins the parts of an object."""
    boxes = np.array([item.box for item in items])
    parts = [part for item in items for part in item.segmentation or [corners_of(item.box)]]
    corners = (*boxes[:, :2].min(0).tolist(), *boxes[:, 2:].max(0).tolist())
    return Object(items[0].name, corners, None, items[0].ignored, parts)


def corners_of(box: Sequence[float]) -> list[float]:
    """Returns the polygon of a box."""
    x1, y1, x2, y2 = box
    return [x1, y1, x2, y1, x2, y2, x1, y2]


def _area(points: np.ndarray) -> float:
    if len(points) < 3:
        return 0.0
    x, y = (points - points[0]).T
    return abs(float(x @ np.roll(y, -1) - y @ np.roll(x, -1))) / 2
