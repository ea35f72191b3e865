"""The backbones that are probed, by the label they have in tables."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

import keras

from dupr_tf.errors import UserError
from dupr_tf.models import build_backbone
from dupr_tf.models.resnet import ResNetBackbone
from dupr_tf.weights.loading import load_backbone

log = logging.getLogger(__name__)
RANDOM = "random"


def load_backbones(
    weights: Sequence[str], architecture: str | None = None, width: float = 1.0, seed: int = 0
) -> dict[str, keras.Model]:
    """{label: backbone that takes normalised images}, in the order given.

    Args:
        weights: what `load_backbone` reads, or "random".
        architecture, width: of the random one; None takes those of the first of the others.
        seed: of the random weights.

    Raises:
        UserError: none given, one given twice, no backbone, or nothing to say what the random one should be.
    """
    if not weights:
        raise UserError("weights", "There are no weights to probe.", "Pass a run, a file, or random.")
    if len(set(weights)) < len(weights):
        problem = f"Some are given twice: {' '.join(map(str, weights))}."
        raise UserError("weights", problem, "Pass each of them once.")
    labels = labels_of(weights)
    loaded = {w: load_backbone(w, include_normalization=False) for w in weights if w != RANDOM}
    if RANDOM in weights:
        loaded[RANDOM] = _random(list(loaded.values()), architecture, width, seed)
    return {label: loaded[w] for label, w in zip(labels, weights, strict=True)}


def labels_of(weights: Sequence[str]) -> list[str]:
    """Short names: the last part of each path that differs, the whole where they agree."""
    short = [Path(w).name or w for w in weights]
    return [name if short.count(name) == 1 else str(w) for name, w in zip(short, weights, strict=True)]


def _random(others: list[keras.Model], architecture, width, seed) -> keras.Model:
    like = next((b for b in others if isinstance(b, ResNetBackbone)), None)
    if architecture is None and like is None:
        problem = "Random weights need an architecture."
        raise UserError("backbone", problem, "Pass --backbone resnet18 --width 0.5, or other weights as well.")
    if architecture is None:
        architecture, width = like.architecture, like.width
    keras.utils.set_random_seed(seed)
    log.info("random: %s, width %g, seed %d", architecture, width, seed)
    return build_backbone(architecture, width)
