"""Scores backbones by a probe: features of train and val once for the weights, then each share and seed."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import keras
import numpy as np

from dupr_tf.comparing.grid import Cell
from dupr_tf.comparing.labels import contents_digest
from dupr_tf.comparing.probe_plan import ProbedImages, label_digests, read_probed
from dupr_tf.comparing.record import OTHER, Comparison
from dupr_tf.comparing.results import METRICS_FILE, is_finished
from dupr_tf.config.probes import PROBE_METRICS
from dupr_tf.data.file_results import FileResults
from dupr_tf.data.labels.split import draw_positions, refuse_many
from dupr_tf.detection.finetune import CHECKED_FILE
from dupr_tf.errors import UserError
from dupr_tf.files import write_whole
from dupr_tf.models.resnet import build_backbone
from dupr_tf.probing.features import extract_paths, feature_maps
from dupr_tf.probing.image_views import centre_view
from dupr_tf.probing.knn import knn, votes
from dupr_tf.probing.svm import CELLS, svm
from dupr_tf.weights.loading import load_weights_for
from dupr_tf.weights.paths import RANDOM

IMAGE_SIZE = 224  # px, as in `dupr-tf probe`
MOST_VOTES = 20  # of neighbours

Split = tuple[np.ndarray, np.ndarray, ProbedImages]  # positions of the readable images, their features, all images


def run_probe(folder: Path, comparison: Comparison, cells: Sequence[Cell]) -> None:
    """Scores the unfinished of some cells with the same weights, and writes the metrics of each.

    Args:
        folder: folder of the comparison.
        comparison: the comparison.
        cells: cells of one backbone and, if its weights differ by seed, one seed.

    Raises:
        UserError: the labels have changed, or too many images cannot be read.
    """
    splits = read_probed(comparison.probe, comparison.data, comparison.config.data)
    results, threads = FileResults(folder / CHECKED_FILE), comparison.config.data.threads
    contents = {split: contents_digest(images, results, threads) for split, images in splits.items()}
    if label_digests(comparison.data, splits) != comparison.labels or comparison.contents not in ({}, contents):
        raise UserError("--data", "The images or labels are others than in this comparison.", OTHER)
    backbone = _backbone(comparison, cells[0])
    train, val = (_features(comparison, backbone, images) for images in (splits["train"], splits["val"]))
    score_cells(folder, comparison, cells, lambda drawn: score(comparison.probe, train, val, drawn))


def score_cells(folder: Path, comparison: Comparison, cells: Sequence[Cell], score_drawn: Callable) -> None:
    """Writes the metrics of the cells that are not finished.

    Args:
        folder, comparison, cells: as for `run_probe`.
        score_drawn: positions of the training images that a cell draws -> its metrics. Seeds that draw the same images
            are scored once.
    """
    scored: dict[tuple[int, ...], dict] = {}
    for cell in cells:
        place = folder / cell.folder
        if is_finished(place):
            continue
        drawn = tuple(draw_positions(comparison.counts["train"], cell.share, cell.seed))
        if drawn not in scored:
            scored[drawn] = score_drawn(drawn)
        place.mkdir(parents=True, exist_ok=True)
        write_whole(place / METRICS_FILE, json.dumps(scored[drawn], indent=2) + "\n")


def score(probe: str, train: Split, val: Split, drawn: Sequence[int]) -> dict:
    """Scores features with the labels of the drawn training images.

    Args:
        probe: "knn" or "svm".
        train, val: (positions of the readable images, their (n, D) features, all images of the split).
        drawn: positions of training images.

    Returns:
        The score, under its name in `PROBE_METRICS`, the number of training images, and what the probe returns else.
    """
    (kept, rows, images), (val_kept, val_rows, val_images) = train, val
    chosen = np.isin(kept, drawn)
    if not chosen.any():
        raise UserError("--shares", f"None of the {len(drawn)} drawn images can be read.", "Use a larger share.")
    rows, names = rows[chosen], images.class_names
    if probe == "svm":
        found = svm(rows, images.matrix()[kept[chosen]], val_rows, val_images.matrix()[val_kept], names)
    else:
        k = votes(len(rows), len(names), MOST_VOTES)
        found = knn(rows, images.labels[kept[chosen]], val_rows, val_images.labels[val_kept], len(names), k)
    return {PROBE_METRICS[probe]: found.pop(PROBE_METRICS[probe]), "train_images": len(rows), **found}


def _backbone(comparison: Comparison, cell: Cell) -> keras.Model:
    """Returns the backbone of a cell, which takes normalised images."""
    model, weights = comparison.config.model, comparison.backbone(cell.backbone).weights_of(cell.seed)
    if weights != RANDOM:
        return load_weights_for(model.backbone, model.width, weights, include_normalization=False)
    keras.utils.set_random_seed(cell.seed)
    return build_backbone(model.backbone, model.width)


def _features(comparison: Comparison, backbone: keras.Model, images: ProbedImages) -> Split:
    level, section = comparison.level, comparison.config.data
    cells = CELLS[level] if comparison.probe == "svm" else 1
    kept, features = extract_paths(
        feature_maps(backbone, (level,)),
        images.paths,
        lambda image: centre_view(image, IMAGE_SIZE),
        {level: cells},
        section=section,
    )
    unreadable = [images.paths[i] for i in np.setdiff1d(np.arange(len(images)), kept)]
    if unreadable:
        refuse_many(unreadable, len(images), section.max_bad_share, "cannot be read")
    return kept, features[level], images
