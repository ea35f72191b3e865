"""Losses of D-FINE (Peng et al., 2024), in which one query of a layer stands for each object.

Boxes are `(centre x, centre y, width, height)` in sides of the image. A side of a box lies at a distance from a
reference box. Its distribution over `BINS` + 1 distances is predicted. Numbers are those of D-FINE's published config.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import tensorflow as tf
from scipy.optimize import linear_sum_assignment

CLASS_COST, BOX_COST, OVERLAP_COST = 2.0, 5.0, 2.0  # of the assignment
COST_ALPHA, SCORE_ALPHA, GAMMA = 0.25, 0.75, 2.0  # focal terms of the assignment, and of the loss of scores
BINS, REACH, SPAN = 32, 0.5, 4.0  # D-FINE's reg_max, up and reg_scale
TEMPERATURE = 5.0  # of the distributions that a layer learns from the last one
WEIGHTS = {"score_loss": 1.0, "box_loss": 5.0, "overlap_loss": 2.0, "bin_loss": 0.15, "distillation_loss": 1.5}


class Layer(NamedTuple):
    """Predictions of a layer of the decoder."""

    logits: tf.Tensor  # (B, Q, C)
    boxes: tf.Tensor  # (B, Q, 4)
    bins: tf.Tensor | None = None  # (B, Q, 4, BINS + 1) logits of left, top, right, bottom; None without distributions
    references: tf.Tensor | None = None  # (B, Q, 4)


def set_losses(layers, truth):
    """Computes the losses of all layers, summed over the layers and divided by the number of objects, at least 1.

    Each layer has its own assignment. The layers before the last also learn its distributions.

    Args:
        layers: list of `Layer`, the last of the decoder at the end.
        truth: a `GroundTruth` whose boxes have this module's form.

    Returns:
        {name: () float32}, with the keys and weights of `WEIGHTS`.
    """
    losses, last = {name: [] for name in WEIGHTS}, layers[-1]
    for layer in layers:
        queries = assign_queries(layer.logits, layer.boxes, truth)
        assigned = tf.cast(queries >= 0, tf.float32)  # (B, M)
        count = tf.maximum(tf.reduce_sum(tf.cast(truth.valid, tf.float32)), 1.0)
        boxes = of_objects(layer.boxes, queries)  # (B, M, 4)
        iou, generalised = overlaps(boxes, truth.boxes)
        iou = tf.stop_gradient(iou) * assigned
        apart = tf.reduce_sum(tf.abs(boxes - truth.boxes), -1)
        losses["score_loss"].append(score_loss(layer.logits, truth.classes, iou, queries) / count)
        losses["box_loss"].append(tf.reduce_sum(apart * assigned) / count)
        losses["overlap_loss"].append(tf.reduce_sum((1 - generalised) * assigned) / count)
        if layer.bins is None:
            continue
        references = tf.stop_gradient(of_objects(layer.references, queries))
        losses["bin_loss"].append(bin_loss(of_objects(layer.bins, queries), references, truth.boxes, iou) / count)
        if layer is not last:
            losses["distillation_loss"].append(distillation_loss(layer, last, iou, queries))
    return {name: WEIGHTS[name] * tf.add_n([tf.constant(0.0), *values]) for name, values in losses.items()}


def assign_queries(logits, boxes, truth):
    """Assigns each object to a different query at the lowest total cost (the Hungarian method, by SciPy).

    Args:
        logits: (B, Q, C).
        boxes: (B, Q, 4).
        truth: a `GroundTruth` whose boxes have this module's form.

    Returns:
        (B, M) int32, the query of each object; -1 where `truth` is not valid, and for objects beyond the Q-th.
    """
    chances = tf.gather(tf.sigmoid(logits), truth.classes, axis=2, batch_dims=1)  # (B, Q, M)
    positive = -COST_ALPHA * (1 - chances) ** GAMMA * tf.math.log(chances + 1e-8)
    negative = -(1 - COST_ALPHA) * chances**GAMMA * tf.math.log(1 - chances + 1e-8)
    predicted, true = boxes[:, :, None], truth.boxes[:, None]
    apart = tf.reduce_sum(tf.abs(predicted - true), -1)  # (B, Q, M)
    costs = CLASS_COST * (positive - negative) + BOX_COST * apart - OVERLAP_COST * overlaps(predicted, true)[1]
    return tf.ensure_shape(tf.numpy_function(_solve, [costs, truth.valid], tf.int32), truth.valid.shape)


def _solve(costs, valid):
    queries = np.full(valid.shape, -1, np.int32)
    for image, objects in enumerate(valid):
        # SciPy refuses NaN. A training that diverged is to be noticed by its loss.
        rows, columns = linear_sum_assignment(np.nan_to_num(costs[image][:, objects], nan=1e9, posinf=1e9))
        queries[image, np.flatnonzero(objects)[columns]] = rows
    return queries


def of_objects(values, queries):
    """Returns (B, M, ...), the values (B, Q, ...) of the query of each object; of query 0 where it has none."""
    return tf.gather(values, tf.maximum(queries, 0), batch_dims=1)


def overlaps(first, second):
    """Returns the IoU and the generalised IoU (Rezatofighi et al., 2019), each (...,), of boxes (..., 4)."""
    (low, high), (other_low, other_high) = (
        (boxes[..., :2] - tf.nn.relu(boxes[..., 2:]) / 2, boxes[..., :2] + tf.nn.relu(boxes[..., 2:]) / 2)
        for boxes in (first, second)
    )
    shared = _area(tf.minimum(high, other_high) - tf.maximum(low, other_low))
    union = _area(high - low) + _area(other_high - other_low) - shared
    hull = _area(tf.maximum(high, other_high) - tf.minimum(low, other_low))
    iou = tf.math.divide_no_nan(shared, union)
    return iou, iou - tf.math.divide_no_nan(hull - union, hull)


def _area(sides):
    sides = tf.nn.relu(sides)
    return sides[..., 0] * sides[..., 1]


def score_loss(logits, classes, iou, queries):
    """Computes the varifocal loss (Zhang et al., 2021), whose target is the IoU of the query with its object.

    Args:
        logits: (B, Q, C).
        classes: (B, M) of the objects.
        iou: (B, M), constants.
        queries: (B, M), -1 for none.

    Returns:
        () float32, the sum over queries and classes.
    """
    chosen = tf.one_hot(queries, tf.shape(logits)[1])  # (B, M, Q)
    classes = tf.one_hot(classes, logits.shape[-1])  # (B, M, C)
    positive = tf.einsum("bmq,bmc->bqc", chosen, classes)
    targets = tf.einsum("bmq,bmc->bqc", chosen * iou[..., None], classes)
    weights = SCORE_ALPHA * tf.sigmoid(tf.stop_gradient(logits)) ** GAMMA * (1 - positive) + targets
    return tf.reduce_sum(weights * tf.nn.sigmoid_cross_entropy_with_logits(targets, logits))


def bin_values():
    """Returns the (BINS + 1,) float32 distances of the bins: finer near 0, W(n) of D-FINE."""
    first = REACH * SPAN
    inner = (first + 1) ** (2 / (BINS - 2) * np.arange(1, BINS // 2)) - 1
    return np.concatenate([[-2 * first], -inner[::-1], [0], inner, [2 * first]]).astype(np.float32)


def bin_loss(bins, references, boxes, iou):
    """Computes the fine-grained localisation loss: the cross-entropy with the two bins around each true distance.

    Args:
        bins: (B, M, 4, BINS + 1) logits of the queries of the objects.
        references: (B, M, 4) reference boxes of the queries, constants.
        boxes: (B, M, 4) of the objects.
        iou: (B, M) weights, constants.

    Returns:
        () float32, the sum over the objects and their sides.
    """
    centre, size = references[..., :2], references[..., 2:] / SPAN
    low, high = boxes[..., :2] - boxes[..., 2:] / 2, boxes[..., :2] + boxes[..., 2:] / 2
    distances = tf.concat([(centre - low) / (size + 1e-16), (high - centre) / (size + 1e-16)], -1) - SPAN / 2
    values = tf.constant(bin_values())
    left = tf.searchsorted(values, tf.reshape(distances, [-1]), side="right") - 1
    left = tf.reshape(tf.clip_by_value(left, 0, BINS - 1), tf.shape(distances))  # (B, M, 4)
    below, above = tf.gather(values, left), tf.gather(values, left + 1)
    share = tf.clip_by_value((distances - below) / (above - below), 0.0, 1.0)[..., None]
    targets = tf.one_hot(left, BINS + 1) * (1 - share) + tf.one_hot(left + 1, BINS + 1) * share
    losses = tf.nn.softmax_cross_entropy_with_logits(targets, bins)  # (B, M, 4)
    return tf.reduce_sum(losses * iou[..., None])


def distillation_loss(layer, last, iou, queries):
    """Computes the divergence of a layer's distributions from the last layer's, which are constants.

    Queries of objects weigh as much as their IoU, the others as much as their score in the last layer. The means of
    both groups are mixed by the square roots of their sizes.

    Args:
        layer, last: `Layer` with distributions.
        iou, queries: (B, M) of the layer's assignment.

    Returns:
        () float32.
    """
    teacher = tf.nn.log_softmax(tf.stop_gradient(last.bins) / TEMPERATURE)
    gap = teacher - tf.nn.log_softmax(layer.bins / TEMPERATURE)
    divergence = TEMPERATURE**2 * tf.reduce_mean(tf.reduce_sum(tf.exp(teacher) * gap, -1), -1)  # (B, Q)
    chosen = tf.one_hot(queries, tf.shape(layer.logits)[1])  # (B, M, Q)
    matched = tf.reduce_max(chosen, 1)  # (B, Q)
    weights = tf.reduce_max(tf.sigmoid(tf.stop_gradient(last.logits)), -1) * (1 - matched)
    divergence *= weights + tf.reduce_sum(chosen * iou[..., None], 1)
    numbers = [tf.reduce_sum(matched), tf.reduce_sum(1 - matched)]
    means = [
        tf.math.divide_no_nan(tf.reduce_sum(divergence * group), number)
        for group, number in zip((matched, 1 - matched), numbers, strict=True)
    ]
    roots = [tf.sqrt(number) for number in numbers]
    return (means[0] * roots[0] + means[1] * roots[1]) / (roots[0] + roots[1])
