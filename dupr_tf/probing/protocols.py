"""Runs all probes, from weights and a folder to numbers and a picture, for the commands and for training."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Sequence

import keras
import numpy as np
from PIL import Image

from dupr_tf.config import DataConfig, LinearConfig, ViewsConfig
from dupr_tf.data.images.listing import list_images
from dupr_tf.probing import affinity, drawing, sensitivity
from dupr_tf.probing import knn as neighbours
from dupr_tf.probing import linear as classifier
from dupr_tf.probing.features import extract_paths, feature_maps
from dupr_tf.probing.image_views import centre_view, read_each, spread
from dupr_tf.probing.labelled import (
    SPLITS,
    has_class_folders,
    image_labels,
    is_annotated,
    pick_objects,
    read_both_splits,
    read_class_folders,
    read_split,
)
from dupr_tf.probing.matching import matching
from dupr_tf.probing.pairs import object_pairs, view_pairs_of
from dupr_tf.probing.retrieval import TOP, retrieval

DRAWN = 3  # number of pairs or queries in a picture


@dataclasses.dataclass(frozen=True)
class Findings:
    """Holds the results of a probe. All of them but the picture can be written as JSON."""

    probe: str
    settings: dict
    numbers: dict[str, dict]  # by label of the weights
    seconds: dict[str, float]  # by label of the weights
    picture: Image.Image | None = None

    def as_json(self) -> dict:
        return {name: getattr(self, name) for name in ("probe", "settings", "numbers", "seconds")}


def _each(backbones: dict[str, keras.Model], probe: Callable) -> tuple[dict, dict]:
    """Returns {label: result of `probe(backbone)`} and {label: seconds}."""
    results, seconds = {}, {}
    for label, backbone in backbones.items():
        start = time.perf_counter()
        results[label] = probe(backbone)
        seconds[label] = round(time.perf_counter() - start, 3)
    return results, seconds


def probe_knn(
    backbones, data, level="P5", cells=1, image_size=224, k=None, temperature=0.07, folders=None, section=None
) -> Findings:
    """Runs kNN classification on class folders.

    Args:
        backbones: {label: backbone}, from `load_backbones`.
        data: root with `train/CLASS/` and `val/CLASS/`.
        level, cells: level of the features, and cells per side to which they are averaged.
        image_size: px.
        k, temperature: settings of the vote. Default of k: see `knn.votes`.
        folders: result of `read_class_folders` for the data, if already read.
        section: `DataConfig` with the settings for reading images. Default: those of the schema.
    """
    splits = folders or read_class_folders(data)

    def probe(backbone):
        maps, rows, labels = feature_maps(backbone, (level,)), {}, {}
        for split in SPLITS:
            kept, features = extract_paths(
                maps, splits[split].paths, lambda image: centre_view(image, image_size), {level: cells}, section=section
            )
            rows[split], labels[split] = features[level], splits[split].labels[kept]
        classes = len(splits["train"].class_names)
        found = neighbours.knn(rows["train"], labels["train"], rows["val"], labels["val"], classes, k, temperature)
        return {**found, "train_images": len(labels["train"]), "val_images": len(labels["val"])}

    numbers, seconds = _each(backbones, probe)
    settings = {"data": str(data), "level": level, "cells": cells, "image_size": image_size}
    settings |= {"k": k, "temperature": temperature}
    return Findings("knn", settings, numbers, seconds)


def probe_linear(backbones, data, settings: LinearConfig, seed: int = 0, folders=None, section=None) -> Findings:
    """Runs linear classification on class folders; arguments as for `probe_knn` and `linear`."""
    splits = folders or read_class_folders(data)
    numbers, seconds = _each(
        backbones, lambda b: classifier.linear(feature_maps(b, (settings.level,)), splits, settings, seed, section)
    )
    return Findings("linear", {"data": str(data), "seed": seed, **settings.model_dump(mode="json")}, numbers, seconds)


def probe_svm(
    backbones, data, levels: Sequence[str], splits=SPLITS, image_size=224, costs=None, folds=3, seed=0, annotated=None,
    section=None,
):  # fmt: skip
    """Runs linear SVMs for each level on an annotated set; arguments as for `probe_knn` and `svm`."""
    from dupr_tf.probing.svm import CELLS, COSTS, svm  # scikit-learn takes a second to import

    annotated = annotated or read_both_splits(data, splits, section)
    labels = [image_labels(split) for split in annotated]
    names, costs = annotated[0].class_names, tuple(costs or COSTS)

    def probe(backbone):
        maps, cells = feature_maps(backbone, levels), {level: CELLS[level] for level in levels}
        rows, kept = [], []
        for split in annotated:
            index, features = extract_paths(
                maps, split.paths, lambda image: centre_view(image, image_size), cells, section=section
            )
            rows.append(features)
            kept.append(index)
        truth = [label[index] for label, index in zip(labels, kept, strict=True)]
        return {
            level: svm(rows[0][level], truth[0], rows[1][level], truth[1], names, costs, folds, seed)
            for level in levels
        }

    numbers, seconds = _each(backbones, probe)
    settings = {"data": str(data), "splits": list(splits), "image_size": image_size, "costs": list(costs)}
    return Findings("svm", {**settings, "folds": folds, "seed": seed}, numbers, seconds)


def probe_sensitivity(
    backbones, data, split="val", images=200, image_size=448, level="P4", cells=7, seed=0, annotated=None,
    section=None,
) -> Findings:  # fmt: skip
    """Computes eq. 8 against IoU, on the boxes of an annotated set; arguments as for `sensitivity`."""
    annotated = annotated or read_split(data, split, section)
    rows = pick_objects(annotated, images, seed)
    numbers, seconds = _each(
        backbones,
        lambda b: sensitivity.sensitivity(
            feature_maps(b, (level,)), annotated, rows, image_size, level, cells, seed, section
        ),
    )  # fmt: skip
    settings = {"data": str(data), "split": split, "image_size": image_size, "level": level, "cells": cells}
    picture = drawing.sensitivity_picture(numbers)
    return Findings("sensitivity", {**settings, "seed": seed}, numbers, seconds, picture)


def probe_matching(
    backbones, data, images=64, image_size=448, level="P4", seed=0, views: ViewsConfig | None = None,
    section=None,
) -> Findings:  # fmt: skip
    """Computes PCK between two views of each image; arguments as for `matching`."""
    views = views or ViewsConfig()
    paths = spread(_list_images(data, section), images)
    results, seconds = _each(
        backbones,
        lambda b: matching(
            feature_maps(b, (level,)), view_pairs_of(paths, image_size, views, seed, section),
            image_size, level, DRAWN
        ),
    )  # fmt: skip
    settings = {"data": str(data), "image_size": image_size, "level": level, "seed": seed}
    picture = drawing.matching_picture({label: shown for label, (_, shown) in results.items()})
    return Findings("matching", settings, {label: numbers for label, (numbers, _) in results.items()}, seconds, picture)


def probe_affinity(
    backbones, data, images=64, image_size=448, level="P5", seed=0, split="val", cells=affinity.CELLS,
    temperature=affinity.TEMPERATURE, views: ViewsConfig | None = None, annotated=None, section=None,
) -> Findings:  # fmt: skip
    """Computes eq. 9 in two views of an object, or of the overlap without boxes; arguments as for `affinities`."""
    views, pairs = views or ViewsConfig(), None
    with_boxes = is_annotated(data)
    if with_boxes:
        annotated = annotated or read_split(data, split, section)
        rows = pick_objects(annotated, images, seed)
        pairs = lambda: object_pairs(annotated, rows, image_size, views, seed, section)  # noqa: E731
    else:
        paths = spread(_list_images(data, section), images)
        pairs = lambda: view_pairs_of(paths, image_size, views, seed, section)  # noqa: E731
    results, seconds = _each(
        backbones,
        lambda b: affinity.affinities(
            feature_maps(b, (level,)), pairs(), image_size, level, cells, temperature, DRAWN
        ),
    )  # fmt: skip
    settings = {
        "data": str(data), "region": "object" if with_boxes else "overlap", "image_size": image_size, "level": level,
        "cells": cells, "temperature": temperature, "seed": seed,
    }  # fmt: skip
    picture = drawing.affinity_picture({label: shown for label, (_, shown) in results.items()})
    return Findings("affinity", settings, {label: numbers for label, (numbers, _) in results.items()}, seconds, picture)


def probe_retrieval(
    backbones, data, images=500, queries=100, image_size=224, level="P5", top=TOP, section=None
) -> Findings:
    """Finds nearest neighbours by whole feature maps. For class folders, it uses val/ with its classes."""
    paths, labels = _retrieved_from(data, images, section)
    query_rows = np.linspace(0, len(paths) - 1, min(queries, len(paths))).round().astype(int)

    def view(_index, image):
        return centre_view(image, image_size)

    def views(chosen):
        return np.concatenate([batch for _, batch in read_each(chosen, view, 32, section)])

    def probe(backbone):
        maps = feature_maps(backbone, (level,))
        parts, kept = [], []
        for index, batch in read_each(paths, view, 32, section):
            parts.append(maps(batch)[level].numpy())
            kept.append(index)
        kept, rows = np.concatenate(kept), np.concatenate(parts)
        positions = np.flatnonzero(np.isin(kept, query_rows))
        numbers, *answers = retrieval(rows, positions, None if labels is None else labels[kept], top)
        return numbers, _shown([paths[i] for i in kept], positions, *answers, views)

    results, seconds = _each(backbones, probe)
    settings = {"data": str(data), "image_size": image_size, "level": level, "top": top}
    picture = drawing.retrieval_picture({label: shown for label, (_, shown) in results.items()})
    return Findings(
        "retrieval", settings, {label: numbers for label, (numbers, _) in results.items()}, seconds, picture
    )


def _retrieved_from(data, images, section) -> tuple[list[str], np.ndarray | None]:
    if not has_class_folders(data):
        return spread(_list_images(data, section), images), None
    val = read_class_folders(data)["val"]
    chosen = spread(range(len(val.paths)), images)
    return [val.paths[i] for i in chosen], val.labels[chosen]


def _shown(paths, queries, nearest, aligned, read: Callable) -> list:
    """Returns [(query's view, [(neighbour's view, alignment), …]), …] of a few queries."""
    chosen = np.linspace(0, len(queries) - 1, min(DRAWN + 2, len(queries))).round().astype(int)
    chosen = chosen[1:-1] if len(chosen) > 2 else chosen[:1]
    width = 1 + nearest.shape[1]
    views = read([paths[i] for q in chosen for i in (queries[q], *nearest[q])])
    rows = [views[n * width : (n + 1) * width] for n in range(len(chosen))]
    return [(row[0], list(zip(row[1:], aligned[q], strict=True))) for q, row in zip(chosen, rows, strict=True)]


def _list_images(data, section: DataConfig | None) -> list[str]:
    return list_images(data, (section or DataConfig()).kind)
