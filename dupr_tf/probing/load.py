"""Loads the backbones to probe, by their label in tables."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from dupr_tf.errors import UserError, raise_all
from dupr_tf.weights.catalogue import is_public
from dupr_tf.weights.paths import RANDOM, check_weights_file, weights_file

if TYPE_CHECKING:
    import keras

log = logging.getLogger(__name__)


def load_backbones(
    weights: Sequence[str], architecture: str | None = None, width: float = 1.0, seed: int = 0
) -> dict[str, keras.Model]:
    """Loads {label: backbone that takes normalised images}, in the order given.

    Args:
        weights: paths or names for `load_backbone`, or "random". Public weights are downloaded.
        architecture, width: those of the random backbone. Default: those of the first loaded backbone.
        seed: seed of the random weights.

    Raises:
        UserError: no weights, weights given twice, a file without a backbone, or no architecture for the random one.
    """
    check_backbones(weights, architecture)
    for public in filter(is_public, weights):
        weights_file(public)
    from dupr_tf.weights.loading import load_backbone  # loads TensorFlow

    labels = labels_of(weights)
    loaded = {w: load_backbone(w, include_normalization=False) for w in weights if w != RANDOM}
    if RANDOM in weights:
        loaded[RANDOM] = _random(list(loaded.values()), architecture, width, seed)
    return {label: loaded[w] for label, w in zip(labels, weights, strict=True)}


def check_backbones(weights: Sequence[str], architecture: str | None = None) -> None:
    """Raises the errors of `load_backbones` that can be found without loading or downloading weights."""
    problems = []
    if not weights:
        problems.append(UserError("--weights", "There are no weights to probe.", "Pass a run, a file, or random."))
    if len(set(weights)) < len(weights):
        problem = f"Some are given twice: {' '.join(map(str, weights))}."
        problems.append(UserError("--weights", problem, "Pass each of them once."))
    if architecture is None and weights and all(one == RANDOM for one in weights):
        problems.append(_no_architecture())
    for one in dict.fromkeys(weights):
        try:
            if one != RANDOM:
                check_weights_file(one)
        except UserError as error:
            problems.append(UserError("--weights", error.problem, error.fix))
    raise_all(problems)


def _no_architecture() -> UserError:
    fix = "Pass --backbone resnet18 --width 0.5, or other weights as well."
    return UserError("backbone", "Random weights need an architecture.", fix)


def labels_of(weights: Sequence[str]) -> list[str]:
    """Returns short names: the last part of each path that differs, or the whole path if all agree."""
    short = [Path(w).name or w for w in weights]
    return [name if short.count(name) == 1 else str(w) for name, w in zip(short, weights, strict=True)]


def _random(others: list[keras.Model], architecture, width, seed) -> keras.Model:
    import keras

    from dupr_tf.models.resnet import ResNetBackbone, build_backbone

    like = next((b for b in others if isinstance(b, ResNetBackbone)), None)
    if architecture is None and like is None:
        raise _no_architecture()
    if architecture is None:
        architecture, width = like.architecture, like.width
    keras.utils.set_random_seed(seed)
    log.info("random: %s, width %g, seed %d", architecture, width, seed)
    return build_backbone(architecture, width)
