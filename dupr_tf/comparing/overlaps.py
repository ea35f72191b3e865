"""Counts the photos of each pre-training that are in val, where they would flatter its scores."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path

from dupr_tf.comparing.record import Comparison
from dupr_tf.text import escape
from dupr_tf.training.pool import HASHES_FILE, Overlap, overlap
from dupr_tf.training.run import IMAGES_FILE
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
    for path in dict.fromkeys(path for _, path in _pretrainings(comparison)):
        if path not in overlaps or overlaps[path].unknown:
            overlaps[path] = _overlap_of(path, val, folder / HASHES_FILE)
    comparison = dataclasses.replace(comparison, overlaps=overlaps)
    for name, path in _pretrainings(comparison):
        sentence = escape(_sentence(name, overlaps[path]))
        if overlaps[path].duplicates:
            log.warning("warning: %s", sentence)
        else:
            log.info("%s", sentence)
    return comparison


def overlap_sentences(comparison: Comparison) -> list[str]:
    """States for each pre-training how many of its photos are in val, as far as that was counted."""
    known = comparison.overlaps
    return [_sentence(name, known[path]) for name, path in _pretrainings(comparison) if path in known]


def overlap_entries(comparison: Comparison) -> list[dict]:
    """Returns an entry for each pre-training whose overlap was counted, for compare.json."""
    known = comparison.overlaps
    return [
        {"backbone": name, "weights": path, **dataclasses.asdict(known[path])}
        for name, path in _pretrainings(comparison)
        if path in known
    ]


def _pretrainings(comparison: Comparison) -> Iterator[tuple[str, str]]:
    """Yields (name, weights) of all weights but random ones. Those of a label with several runs are numbered."""
    for one in comparison.backbones:
        for number, path in enumerate(one.weights):
            if path != RANDOM:
                yield f"{one.label} (run {number})" if len(one.weights) > 1 else one.label, path


def _overlap_of(weights: str, val: Sequence[str], cache: Path) -> Overlap:
    if is_public(weights):
        return Overlap(unknown="Public weights have no record of their photos.")
    run = Path(weights) if Path(weights).is_dir() else Path(weights).parent
    if not (run / IMAGES_FILE).is_file():
        return Overlap(unknown=f"{weights} is not in the folder of a run of pretrain.")
    return overlap(run, val, cache)


def _sentence(name: str, counted: Overlap) -> str:
    if counted.unknown:
        return f"{name}: it is unknown whether photos of its pre-training are in val. {counted.unknown}"
    kinds = f" ({counted.exact:,} exact, {counted.near:,} near duplicates)" if counted.duplicates else ""
    unread = f" {counted.unread:,} photos could not be read." if counted.unread else ""
    return f"{name}: {counted.duplicates:,} of {counted.images:,} photos of its pre-training are in val{kinds}.{unread}"
