"""Divides train into images to train on and to evaluate on, and finds files that two splits share."""

from __future__ import annotations

import collections
import hashlib
import os
from collections.abc import Sequence

import numpy as np

from dupr_tf.config import DataConfig
from dupr_tf.data.file_results import FileResults
from dupr_tf.data.images.decode import Unusable
from dupr_tf.data.images.duplicates import collect_hashes, find_duplicates, hash_image
from dupr_tf.data.images.source import Files
from dupr_tf.data.labels.split import Split, log
from dupr_tf.errors import UserError
from dupr_tf.text import escape


def divide_train(
    train: Split, val: Split | None, data: DataConfig, results: FileResults | None = None
) -> tuple[Split, Split | None]:
    """Draws the images to evaluate on from train, first by `data.val_share`, then by `data.held_out`.

    Args:
        train: `AnnotatedImages` or `SegmentedImages`.
        val: split val of the root. None if it has none, or if it is not used.
        data: section `data` of the config.
        results: hashes of an earlier start. An image that has not changed since is not decoded again.

    Returns:
        The images to train on, and those to evaluate on: `val` if nothing is drawn.

    Raises:
        UserError: all images are near duplicates of each other.
    """
    if data.val_share is not None:
        seed = data.share_seed if data.val_seed is None else data.val_seed
        train, val = draw(train, "val_share", seed, data, results)
    if data.held_out is not None:
        train, val = draw(train, "held_out", data.share_seed, data, results)
    return train, val


def draw(
    images: Split, field: str, seed: int, data: DataConfig, results: FileResults | None = None
) -> tuple[Split, Split]:
    """Divides a split by the share that a field of `data` gives. Near duplicates stay on one side.

    Args:
        images: `AnnotatedImages` or `SegmentedImages`.
        field: "val_share" or "held_out".
        seed: seed of the draw.
        data: this field, `max_pixels` and `threads` are used.
        results: hashes of an earlier start. An image that has not changed since is not decoded again.

    Returns:
        The rest, and the share that was drawn, each with at least one image, in their old order.

    Raises:
        UserError: all images are near duplicates of each other.
    """
    groups = group_duplicates(images.paths, data, results)
    members = collections.defaultdict(list)
    for index, group in enumerate(groups.tolist()):
        members[group].append(index)
    if len(members) < 2:
        problem = f"All {len(images)} images of the split train are near duplicates of each other."
        raise UserError(f"data.{field}", problem, "Use more images, or a data set with a split val.")
    order = np.random.default_rng(seed).permutation(len(members)).tolist()
    drawn, wanted = [list(members.values())[group] for group in order], getattr(data, field) * len(images)
    chosen: list[int] = []
    for group in drawn:
        chosen += group if len(chosen) + len(group) <= wanted else []
    chosen = sorted(chosen or min(drawn, key=len))
    rest = sorted(set(range(len(images))) - set(chosen))
    log.info(
        "to evaluate on: %d of %d images of train (data.%s); %d images with near duplicates stay together",
        len(chosen), len(images), field, sum(len(group) for group in members.values() if len(group) > 1),
    )  # fmt: skip
    return images.select(rest), images.select(chosen)


def group_duplicates(paths: Sequence[str], data: DataConfig, results: FileResults | None = None) -> np.ndarray:
    """Numbers images so that duplicates, and near duplicates by a chain of pairs, have the same number; (N,) int64.

    Decodes every image whose hash is not in `results`. An image that cannot be decoded is a group of one.
    """
    source, results = Files(paths), results or FileResults()

    def compute(index: int) -> str:
        hashed = hash_image(source, index, data.max_pixels)
        return "" if isinstance(hashed, Unusable) else f"{hashed[0].hex()} {hashed[1]:x}"

    texts = results.of(f"sha256 and phash, max_pixels {data.max_pixels}", paths, compute, data.threads)
    pairs = [text.split() for text in texts]
    hashes = collect_hashes((bytes.fromhex(p[0]), int(p[1], 16)) if p else Unusable("cannot be used") for p in pairs)
    groups = np.arange(len(paths))
    of = find_duplicates(hashes).of
    for place in np.flatnonzero(of >= 0).tolist():
        one, other = (_root(groups, int(hashes.index[at])) for at in (place, of[place]))
        groups[max(one, other)] = min(one, other)
    return np.array([_root(groups, index) for index in range(len(paths))], np.int64)


def _root(groups: np.ndarray, index: int) -> int:
    while groups[index] != index:
        index = int(groups[index])
    return index


def warn_of_overlap(train: Split, val: Split) -> list[tuple[str, str]]:
    """Returns the pairs of files with the same contents in two splits, and warns of them.

    A file is read only if the other split has one of the same length.
    """
    lengths = [{path: _length(path) for path in split.paths} for split in (train, val)]
    shared = set(lengths[0].values()) & set(lengths[1].values()) - {None}
    digests = {_digest(path): path for path, length in lengths[0].items() if length in shared}
    candidates = [(digests.get(_digest(path)), path) for path, length in lengths[1].items() if length in shared]
    pairs = [(first, second) for first, second in candidates if first is not None]
    if pairs:
        first, second = map(escape, pairs[0])
        log.warning(
            "%d of the %d images of val are also in train, such as %s and %s: scores on val will be too high",
            len(pairs), len(val), first, second,
        )  # fmt: skip
    return pairs


def _length(path: str) -> int | None:
    try:
        return os.stat(path).st_size
    except OSError:  # reported with all others when it is read
        return None


def _digest(path: str) -> bytes:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").digest()
