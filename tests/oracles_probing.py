"""Slow twins of what probes compute: loops in float64 NumPy, written from the paper and the metrics' definitions."""

import math

import numpy as np


def cosine(a, b):
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    return float(a @ b / (math.sqrt(a @ a) * math.sqrt(b @ b)))


def knn_votes(train, labels, query, classes, k, temperature):
    """Follows InstDis, section 3.4: each of the k nearest adds exp(cosine / τ) to its class."""
    similar = sorted(((cosine(query, row), label) for row, label in zip(train, labels, strict=True)), reverse=True)
    votes = [0.0] * classes
    for value, label in similar[:k]:
        votes[label] += math.exp(value / temperature)
    return votes


def average_precision_11(scores, positive):
    """Follows the VOC2007 devkit: at each of eleven recalls, the highest precision among cut-offs that reach it."""
    order = sorted(range(len(scores)), key=lambda i: -scores[i])
    total, points = sum(map(bool, positive)), []
    for cut in range(1, len(order) + 1):
        hits = sum(bool(positive[i]) for i in order[:cut])
        points.append((hits / total, hits / cut))
    levels = [n / 10 for n in range(11)]
    return sum(max((p for r, p in points if r >= level - 1e-12), default=0.0) for level in levels) / 11


def similarity(q, k):
    """Computes eq. 8."""
    side = len(q)
    return sum(cosine(q[i][j], k[i][j]) for i in range(side) for j in range(side)) / side**2


def iou(a, b):
    height, width = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    shared = max(height, 0) * max(width, 0)
    return shared / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - shared)


def affinity(f1, f2, temperature):
    """Computes eq. 9, element by element; f1, f2 are (C, N)."""
    count = f1.shape[1]
    matrix = np.zeros((count, count))
    for j in range(count):
        logits = [cosine(f1[:, i], f2[:, j]) / temperature for i in range(count)]
        largest = max(logits)
        below = sum(math.exp(value - largest) for value in logits)
        for i in range(count):
            matrix[i, j] = math.exp(logits[i] - largest) / below
    return matrix


def place_in_view_2(cell, side, size, crop_1, crop_2, flipped_1, flipped_2):
    """Maps the centre of a cell of view 1 through the source image to view 2, in cells of view 2.

    Returns (y, x), where cell k's centre is k, and whether the point lies in both crops.
    """
    px = [(c + 0.5) * size / side for c in cell]
    if flipped_1:
        px[1] = size - px[1]
    source = [crop_1[a] + px[a] * (crop_1[a + 2] - crop_1[a]) / size for a in (0, 1)]
    inside = all(crop_2[a] <= source[a] <= crop_2[a + 2] for a in (0, 1))
    back = [(source[a] - crop_2[a]) * size / (crop_2[a + 2] - crop_2[a]) for a in (0, 1)]
    if flipped_2:
        back[1] = size - back[1]
    return [value * side / size - 0.5 for value in back], inside


def nearest_cell(feature, maps):
    best = max((cosine(feature, maps[i][j]), -i, -j) for i in range(len(maps)) for j in range(len(maps[0])))
    return -best[1], -best[2]


def adaptive_average(feature, cells):
    """Averages (h, w, C) to (cells, cells, C).

    Bin i averages the pixels from floor(i n / cells) to ceil((i + 1) n / cells).
    """
    height, width, channels = feature.shape
    pooled = np.zeros((cells, cells, channels))
    for i in range(cells):
        for j in range(cells):
            rows = slice(math.floor(i * height / cells), math.ceil((i + 1) * height / cells))
            columns = slice(math.floor(j * width / cells), math.ceil((j + 1) * width / cells))
            pooled[i, j] = feature[rows, columns].mean((0, 1))
    return pooled
