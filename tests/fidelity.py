"""Measures the fidelity table of docs/fidelity.md on this machine: python -m tests.fidelity prints it.

Every row compares the package with a NumPy/float64 twin on random inputs. The tests hold the bounds; the table shows
how much room is left. Differences are absolute unless a row says otherwise.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
import tensorflow as tf

from dupr_tf import ops
from dupr_tf.data.views import intersect_views
from dupr_tf.models import MemoryBank
from dupr_tf.models.heads import ProjectionHead
from dupr_tf.ops.photometric import PRESETS, Draws, apply_and_normalise, draw
from dupr_tf.training.optimizers import Cosine, CoupledSGD
from tests import oracles, oracles_step
from tests.models.test_golden import golden_steps, moco_steps
from tests.models.test_replicas import run

RANDOM = np.random.default_rng(0)


def largest(actual, expected):
    """Returns the largest absolute difference of two arrays, or of two lists of arrays."""
    if isinstance(expected, list | tuple):
        return max(largest(a, e) for a, e in zip(actual, expected, strict=True))
    return float(np.abs(np.asarray(actual, np.float64) - np.asarray(expected, np.float64)).max())


def unit_rows(count, dim=128):
    rows = RANDOM.normal(size=(count, dim))
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def overlap():
    corner = RANDOM.integers(0, 100, (2, 500, 2))
    crops = np.concatenate([corner, corner + RANDOM.integers(120, 300, (2, 500, 2))], -1)
    flips = RANDOM.random((2, 500)) < 0.5
    ours = intersect_views(*crops, *flips, 224)
    theirs = oracles.intersect_views(*crops, *flips, 224)
    assert (ours[2] == theirs[2]).all()
    return largest(ours[:2], theirs[:2])


def roi_align(form, ratio):
    features = RANDOM.normal(size=(6, 14, 14, 5)).astype(np.float32)
    corner = RANDOM.uniform(0, 150, (6, 2))
    boxes = np.concatenate([corner, corner + RANDOM.uniform(20, 74, (6, 2))], -1).astype(np.float32)
    boxes[0], boxes[1], boxes[2] = (0, 0, 224, 224), (0, 100, 30, 224), (-60, -3, 227, 300)  # at the border and outside
    flipped = np.arange(6) % 2 == 1
    ours = form(features, boxes, 7, 1 / 16, ratio, flipped)
    return largest(ours, oracles.roi_align(features, boxes[:, None], 7, 1 / 16, ratio, flipped=flipped)[:, 0])


def heads():
    head, features = ProjectionHead(128), RANDOM.normal(size=(4, 5, 5, 64)).astype(np.float32)
    ours = [head(tf.reduce_mean(features, [1, 2])), head(features)]
    weights = [np.asarray(w, np.float64) for w in head.get_weights()]
    return largest(ours, [oracles.image_head(features, *weights), oracles.patch_head(features, *weights)])


def info_nce():
    queries, positives, bank = (tf.constant(unit_rows(count), tf.float32) for count in (16, 16, 3000))
    with tf.GradientTape() as tape:
        tape.watch([queries, positives])
        losses = ops.info_nce(queries, positives, bank, 0.2)
    arrays = [np.asarray(x, np.float64) for x in (queries, positives, bank)]
    slopes = tape.gradient(losses, [queries, positives])
    return largest(losses, oracles.info_nce(*arrays, 0.2)), largest(slopes, oracles.info_nce_gradients(*arrays, 0.2))


def ring():
    bank, keys = MemoryBank(37, 16), unit_rows(24, 16).astype(np.float32)
    expected, row = np.asarray(bank.keys, np.float64), 0
    for _ in range(3):
        bank.enqueue(tf.constant(keys))
        expected, row = oracles_step.enqueue(expected, row, keys)
    assert int(bank.next_row) == row
    return largest(bank.keys, expected)


def sgd():
    weights, variable = [RANDOM.normal(size=50)], None
    variable, velocities = keras.Variable(weights[0]), [np.zeros(50)]
    optimizer = CoupledSGD(0.1, 0.9, 0.01)
    for _ in range(20):
        gradient = RANDOM.normal(size=50)
        optimizer.apply([tf.constant(gradient, tf.float32)], [variable])
        weights, velocities = oracles_step.sgd_step(weights, [gradient], velocities, 0.1, 0.9, 0.01)
    return largest(variable, weights[0])


def cosine():
    ours = [Cosine(0.06, 1000)(tf.constant(step, tf.int64)) for step in range(0, 1001, 50)]
    return largest(np.array(ours), np.array([oracles_step.cosine_per_step(s, 1000, 0.06) for s in range(0, 1001, 50)]))


def photometrics():
    """Returns the difference in grey levels of 256, after undoing the division by the standard deviation."""
    images = RANDOM.integers(0, 256, (24, 20, 20, 3), np.uint8)
    draws = draw(24, [1, 2])
    ours = apply_and_normalise(tf.constant(images), draws, PRESETS["moco_v2"]).numpy()
    names, worst = ("brightness", "contrast", "saturation", "hue"), 0.0
    for n, image in enumerate(images):
        mine = Draws(*(np.asarray(column)[n] for column in draws))
        factors = dict(zip(names, mine[:4], strict=True))
        order = [names[i] for i in mine.order]
        theirs = oracles.photometric(image, order, factors, bool(mine.grey), float(mine.sigma) or None, 8)
        worst = max(worst, float(np.abs((ours[n] - theirs) * oracles.IMAGENET_STD).max()) * 255)
    return worst


def replicas():
    """Returns the largest relative loss difference of four steps: one device's eight groups against 2 x 4 and 8 x 1."""
    with tempfile.TemporaryDirectory() as folder:
        one, two = (result["losses"] for result in run(Path(folder), "recipe,1,8,4", "recipe,2,8,4"))
        (eight,) = (result["losses"] for result in run(Path(folder), "recipe,8,8,4"))
    return max(float(np.abs(losses / one - 1)[one > 0].max()) for losses in (two, eight))


def rows():
    """Yields (what, compared with, largest difference as text), one at a time."""
    twin = "NumPy, float64, loops"
    yield "overlap of two crops in the pixels of both views, flips", twin, f"{overlap():.1e}"
    for ratio in (1, 2):
        for name, form in (("separable", ops.roi_align), ("`crop_and_resize`", ops.roi_align_reference)):
            yield f"RoIAlign, {name}, sampling_ratio {ratio}", twin, f"{roi_align(form, ratio):.1e}"
    yield "image and patch heads", twin, f"{heads():.1e}"
    losses, slopes = info_nce()
    yield "InfoNCE with a bank of 3,000 keys (eqs. 5, 6)", twin, f"{losses:.1e}"
    yield "its gradients", twin, f"{slopes:.1e}"
    yield "memory bank after three turns of the ring", twin, f"{ring():.1e}"
    yield "coupled SGD, 20 steps", "PyTorch's definition in NumPy", f"{sgd():.1e}"
    yield "cosine schedule", twin, f"{cosine():.1e}"
    yield "photometric chain, grey levels of 256", "Pillow's definitions in NumPy", f"{photometrics():.1e}"
    found = list(golden_steps())
    labels = {"logs": "losses, accuracies", "gradients": "every gradient", "state": "weights, keys, banks, statistics"}
    for what, label in labels.items():
        worst = max(max(of_tensors[what].values()) for of_tensors in found)
        yield f"four whole steps, four levels: {label}", "second implementation, backward by hand", f"{worst:.1e} rel."
    worst = max(max(of_tensors.values()) for of_tensors in moco_steps())
    yield "five steps with MoCo v2's weights: all of these", "MoCo v2 from its definition, NumPy", f"{worst:.1e} rel."
    devices = "the same on 2 logical devices × 4 groups, 8 × 1"
    yield "losses of four steps, 1 device × 8 groups", devices, f"{replicas():.1e} rel."


if __name__ == "__main__":
    print("| what | compared with | largest difference |\n|---|---|---|")
    for row in rows():
        print("| " + " | ".join(row) + " |", flush=True)
