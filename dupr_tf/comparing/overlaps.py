"""Counts the photos of each pre-training that are in val, where they would flatter its scores."""

from __future__ import annotations

import dataclasses
import itertools
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from dupr_tf.comparing.record import Comparison
from dupr_tf.text import escape
from dupr_tf.training.pool import HASHES_FILE, ValOverlap, overlap
from dupr_tf.training.run_images import IMAGES_FILE
from dupr_tf.weights.catalogue import is_public
from dupr_tf.weights.paths import RANDOM

log = logging.getLogger(__name__)


def with_overlaps(comparison: Comparison, val: Sequence[str], folder: Path) -> Comparison:
    """Returns the comparison with the overlap of every pre-training, and logs each; one above 0 is a warning.

    Args:
        comparison: overlaps that it knows already are not counted again.
        val: paths of the images of val.
        folder: folder of the comparison, which keeps the hashes.
    """
    overlaps = dict(comparison.overlaps)
    for path in dict.fromkeys(one.weights for one in _pretrainings(comparison)):
        if path not in overlaps or overlaps[path].unknown:
            overlaps[path] = _overlap_of(path, val, folder / HASHES_FILE)
    comparison = dataclasses.replace(comparison, overlaps=overlaps)
    for name, counted in _counted(comparison):
        sentence = escape(_sentence(name, counted))
        if counted.duplicates:
            log.warning("warning: %s", sentence)
        else:
            log.info("%s", sentence)
    return comparison


def overlap_sentences(comparison: Comparison) -> list[str]:
    """States for each pre-training how many of its photos are in val, as far as that was counted."""
    return [_sentence(name, counted) for name, counted in _counted(comparison)]


def _counted(comparison: Comparison) -> Iterator[tuple[str, ValOverlap]]:
    """Yields (name, overlap) of the pre-trainings that were counted; once for all runs of a label if they are equal."""
    known = comparison.overlaps
    for label, runs in itertools.groupby(_pretrainings(comparison), key=lambda one: one.label):
        counted = [(one.name, known[one.weights]) for one in runs if one.weights in known]
        if len(counted) > 1 and len({overlap for _, overlap in counted}) == 1:
            yield f"{label} (each of {len(counted)} runs)", counted[0][1]
        else:
            yield from counted


def overlap_entries(comparison: Comparison) -> list[dict]:
    """Returns an entry for each pre-training whose overlap was counted, for compare.json."""
    known = comparison.overlaps
    return [
        {"backbone": one.name, "weights": one.weights, **dataclasses.asdict(known[one.weights])}
        for one in _pretrainings(comparison)
        if one.weights in known
    ]


class Pretraining(NamedTuple):
    """Names weights of a backbone. The runs of a label with several are numbered."""

    label: str
    name: str
    weights: str


def _pretrainings(comparison: Comparison) -> Iterator[Pretraining]:
    """Yields all weights but random ones."""
    for one in comparison.backbones:
        for number, path in enumerate(one.weights):
            if path != RANDOM:
                name = f"{one.label} (run {number})" if len(one.weights) > 1 else one.label
                yield Pretraining(one.label, name, path)


def _overlap_of(weights: str, val: Sequence[str], cache: Path) -> ValOverlap:
    if is_public(weights):
        return ValOverlap(unknown="Public weights have no record of their photos.")
    run = Path(weights) if Path(weights).is_dir() else Path(weights).parent
    if not (run / IMAGES_FILE).is_file():
        return ValOverlap(unknown=f"{weights} is not in the folder of a run of pretrain.")
    return overlap(run, val, cache)


def _sentence(name: str, counted: ValOverlap) -> str:
    if counted.unknown:
        return f"{name}: it is unknown whether photos of its pre-training are in val. {counted.unknown}"
    kinds = f" ({counted.exact:,} exact, {counted.near:,} near duplicates)" if counted.duplicates else ""
    unread = f" {counted.unread:,} photos could not be read." if counted.unread else ""
    return f"{name}: {counted.duplicates:,} of {counted.images:,} photos of its pre-training are in val{kinds}.{unread}"
