"""Finds photos that occur twice: the same bytes (sha256), or the same picture in another size or quality.

Pictures are compared by ImageHash's `phash` of 64 bits. Another size or quality changes at most 2 bits. Different
photos mostly differ in 16 bits or more, but photos of one small object on a plain ground may differ in only 6. A cut
edge of 5 % changes about 10 bits, so cropped copies are not found.
"""

from __future__ import annotations

import collections
import dataclasses
import hashlib
import os
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
from PIL import Image

from dupr_tf.data.images.decode import FACTORS, MAX_PIXELS, Unusable, decode, read_header
from dupr_tf.data.images.source import ImageSource, map_in_order, read_file
from dupr_tf.text import escape

BANDS, BITS = 4, 16  # bands that a hash is cut into; two hashes with fewer different bits than bands share a band
MAX_DISTANCE = BANDS - 1  # bits, up to which every pair is found
SHOWN_DISTANCE = 8  # bits, up to which example pairs are kept
MAX_BUCKET = 2000  # hashes that share a band; in a larger bucket each is compared with this many neighbours only
CHUNK = 1 << 21  # pairs compared at a time
LEAST_SIDE = 128  # px of the image that is hashed
FRAMES_DISTANCE = 8  # bits between neighbouring frames of a video
FRAMES_SHARE = 0.5  # share of the neighbours in a folder that are this near
NEIGHBOURS, LEAST_FRAMES, FOLDERS = 8, 10, 24  # pairs compared in a folder; images it must have; folders compared


@dataclasses.dataclass(frozen=True)
class Hashes:
    """Hashes of the N readable images of a source."""

    index: np.ndarray  # (N,) int64, numbers in the source, rising
    exact: np.ndarray  # (N,) S32, sha256 of the bytes
    near: np.ndarray  # (N,) uint64, phash
    unreadable: list[tuple[int, str]]  # number and reason of the others


@dataclasses.dataclass(frozen=True)
class Matches:
    """The nearest other image of each image.

    Attributes:
        of: (N,) int64, the position of the other image. -1 means that no image is within the threshold.
        distance: (N,) uint8, bits in which the hashes differ; 255 without another image.
        exact: (N,) bool, whether both files have the same bytes.
        examples: {distance in bits: a pair of positions}, also of distances above the threshold.
        capped: number of hashes in buckets that are too large to compare all pairs.
    """

    of: np.ndarray
    distance: np.ndarray
    exact: np.ndarray
    examples: dict[int, tuple[int, int]]
    capped: int


def hash_images(
    source: ImageSource, workers: int | None = None, max_pixels: int = MAX_PIXELS
) -> Iterator[tuple | Unusable]:
    """Yields (sha256, phash) of each image, or why it cannot be read, in the order of the source."""
    return map_in_order(lambda index: hash_image(source, index, max_pixels), range(len(source)), workers)


def collect_hashes(hashed: Iterable[tuple | Unusable]) -> Hashes:
    """Puts the results of `hash_images` into arrays of 48 bytes an image."""
    index, exact, near, unreadable = [], bytearray(), bytearray(), []
    for number, one in enumerate(hashed):
        if isinstance(one, Unusable):
            unreadable.append((number, str(one)))
            continue
        index.append(number)
        exact += one[0]
        near += one[1].to_bytes(8, "little")
    return Hashes(
        np.array(index, np.int64), np.frombuffer(bytes(exact), "S32"), np.frombuffer(bytes(near), "<u8"), unreadable
    )


def phash(image: np.ndarray) -> int:
    """Computes ImageHash's `phash`, 64 bits, of an image (H, W, 3) uint8."""
    import imagehash

    return int(str(imagehash.phash(Image.fromarray(image))), 16)


def find_duplicates(pool: Hashes, against: Hashes | None = None, distance: int = MAX_DISTANCE) -> Matches:
    """Finds the nearest earlier image, or one of another set, for each image. Images of the same bytes come first.

    Args:
        pool, against, distance: as in `match_hashes`.
    """
    other = None if against is None else against.near
    matches, twins = match_hashes(pool.near, other, distance), _same_bytes(pool, against)
    matches.exact[twins >= 0] = True
    matches.of[matches.exact], matches.distance[matches.exact] = twins[matches.exact], 0
    return matches


def _same_bytes(pool: Hashes, against: Hashes | None) -> np.ndarray:
    """Returns (N,) int64, the first position of the same bytes, earlier or in another set; -1 if there is none."""
    unique, first = np.unique((against or pool).exact, return_index=True)
    place = np.minimum(np.searchsorted(unique, pool.exact), max(0, len(unique) - 1))
    if not len(unique):
        return np.full(len(pool.exact), -1, np.int64)
    twin = np.where(unique[place] == pool.exact, first[place], -1)
    return np.where(twin == np.arange(len(twin)), -1, twin) if against is None else twin


def match_hashes(pool: np.ndarray, against: np.ndarray | None = None, distance: int = MAX_DISTANCE) -> Matches:
    """Finds for each image of a pool the nearest earlier image in it, or the nearest one of another set.

    Every pair with up to `MAX_DISTANCE` different bits is found, except in buckets of more than `MAX_BUCKET` hashes.

    Args:
        pool: (N,) uint64 hashes.
        against: (M,) uint64 hashes. None takes the pool itself.
        distance: most bits in which two images may differ, 0 to `MAX_DISTANCE`.

    Returns:
        The matches of the pool. Positions refer to `against`, or to the pool if there is no other set.
    """
    if against is None:
        unique, first, inverse = np.unique(pool, return_index=True, return_inverse=True)
        best = _Nearest(len(unique))
        capped = _compare(unique, lambda a, b, bits: best.add_ordered(first, a, b, bits))
        return _within(best, first, inverse, distance, capped)
    unique, inverse = np.unique(np.concatenate([pool, against]), return_inverse=True)
    own, other = (np.full(len(unique), -1, np.int64) for _ in range(2))
    own[inverse[: len(pool)][::-1]] = np.arange(len(pool))[::-1]  # the first of equal ones
    other[inverse[len(pool) :][::-1]] = np.arange(len(against))[::-1]
    best = _Nearest(len(unique))
    capped = _compare(unique, lambda a, b, bits: best.add_between(own, other, a, b, bits))
    both = np.flatnonzero((own >= 0) & (other >= 0))
    best.add(both, other[both], np.zeros(len(both), np.uint8), own[both])
    return best.matches(inverse[: len(pool)], distance, capped)


class _Nearest:
    """Keeps the nearest other image of each hash while pairs are added."""

    def __init__(self, count: int):
        self.distance, self.of = np.full(count, 255, np.uint8), np.full(count, -1, np.int64)
        self.examples: dict[int, tuple[int, int]] = {}

    def add_ordered(self, first: np.ndarray, a: np.ndarray, b: np.ndarray, bits: np.ndarray) -> None:
        """Adds pairs of hashes. The hash that occurs earlier is the match of the later one."""
        swap = first[a] > first[b]
        later, earlier = np.where(swap, a, b), np.where(swap, b, a)
        self.add(later, first[earlier], bits, first[later])

    def add_between(self, own: np.ndarray, other: np.ndarray, a: np.ndarray, b: np.ndarray, bits: np.ndarray) -> None:
        """Adds pairs that join a hash of the pool to one of the other set."""
        for left, right in ((a, b), (b, a)):
            kept = (own[left] >= 0) & (other[right] >= 0)
            self.add(left[kept], other[right[kept]], bits[kept], own[left[kept]])

    def add(self, hashes: np.ndarray, of: np.ndarray, bits: np.ndarray, own: np.ndarray) -> None:
        """Adds pairs: hash, position of the other image, distance in bits, position of an image that has the hash."""
        for value in np.unique(bits).tolist():
            if value not in self.examples:
                at = int(np.argmax(bits == value))
                self.examples[value] = (int(own[at]), int(of[at]))
        order = np.lexsort((of, bits))[::-1]  # the nearest is written last
        order = order[bits[order] < self.distance[hashes[order]]]
        self.distance[hashes[order]], self.of[hashes[order]] = bits[order], of[order]

    def matches(self, inverse: np.ndarray, distance: int, capped: int) -> Matches:
        """Spreads the matches of hashes over the images that have them."""
        near = self.distance[inverse] <= distance
        of, bits = np.where(near, self.of[inverse], -1), np.where(near, self.distance[inverse], 255)
        return Matches(of, bits.astype(np.uint8), np.zeros(len(of), bool), dict(sorted(self.examples.items())), capped)


def _within(best: _Nearest, first: np.ndarray, inverse: np.ndarray, distance: int, capped: int) -> Matches:
    """Returns the matches within one set: a repeated hash matches its first occurrence."""
    matches = best.matches(inverse, distance, capped)
    repeated = np.flatnonzero(first[inverse] != np.arange(len(inverse)))
    matches.of[repeated], matches.distance[repeated] = first[inverse[repeated]], 0
    if len(repeated):
        matches.examples[0] = (int(repeated[0]), int(first[inverse[repeated[0]]]))
    return dataclasses.replace(matches, examples=dict(sorted(matches.examples.items())))


def _compare(unique: np.ndarray, use) -> int:
    """Calls `use(a, b, bits)` for pairs of rising hashes that share a band. Returns how many hashes were capped."""
    capped = np.zeros(len(unique), bool)
    for band in range(BANDS):
        values = ((unique >> np.uint64(BITS * band)) & np.uint64((1 << BITS) - 1)).astype(np.uint16)
        order = np.argsort(values, kind="stable")  # within a bucket, rising hashes
        ends = np.searchsorted(values[order], values[order], side="right")  # size of the bucket of each place
        places = np.arange(len(order))
        partners = np.minimum(ends - places - 1, MAX_BUCKET)
        capped[order[ends - places - 1 > MAX_BUCKET]] = True
        begin = 0
        sums = np.cumsum(partners)
        while begin < len(order):
            done = sums[begin - 1] if begin else 0
            end = max(begin + 1, int(np.searchsorted(sums, done + CHUNK, side="right")))
            counts = partners[begin:end]
            left = np.repeat(places[begin:end], counts)
            steps = np.arange(len(left)) - np.repeat(np.cumsum(counts) - counts, counts) + 1
            a, b = order[left], order[left + steps]
            bits = np.bitwise_count(unique[a] ^ unique[b])
            kept = bits <= SHOWN_DISTANCE
            if kept.any():
                use(a[kept], b[kept], bits[kept])
            begin = end
    return int(capped.sum())


def near_identical_folders(paths: Sequence[str]) -> list[tuple[str, float]]:
    """Folders whose neighbouring images, by name, are mostly near-identical, such as the frames of a video.

    Args:
        paths: image files, sorted. `FOLDERS` folders of at least `LEAST_FRAMES` images are looked at, and
            `NEIGHBOURS` pairs in each, evenly spread.

    Returns:
        The folders and their shares of near pairs, the largest first.
    """
    folders = collections.defaultdict(list)
    for path in paths:
        folders[os.path.dirname(path)].append(path)
    large = [folder for folder, images in folders.items() if len(images) >= LEAST_FRAMES]
    shares = []
    for at in np.unique(np.linspace(0, len(large) - 1, min(FOLDERS, len(large))).astype(int)).tolist():
        images = folders[large[at]]
        starts = np.linspace(0, len(images) - 2, NEIGHBOURS).astype(int).tolist()
        distances = [_distance(images[start], images[start + 1]) for start in starts]
        known = [distance for distance in distances if distance is not None]
        share = sum(distance <= FRAMES_DISTANCE for distance in known) / max(1, len(known))
        if share > FRAMES_SHARE:
            shares.append((large[at], share))
    return sorted(shares, key=lambda pair: -pair[1])


def frames_warning(folder: str, share: float) -> str:
    """Returns the warning that `scan` and `doctor` print about such a folder."""
    return (
        f"{escape(folder)} holds near-identical images, as a video does: {share:.0%} of the neighbours looked at. "
        "Keep every tenth or so, since an epoch shows each scene again and again (see dupr-tf duplicates)."
    )


def _distance(first: str, second: str) -> int | None:
    """Returns the number of bits in which the hashes of two files differ. None if one file cannot be used."""
    try:
        hashes = [phash(_small(read_file(path), MAX_PIXELS)) for path in (first, second)]
    except Unusable:
        return None
    return (hashes[0] ^ hashes[1]).bit_count()


def hash_image(source: ImageSource, index: int, max_pixels: int) -> tuple | Unusable:
    """Returns (sha256, phash) of an image, or why it cannot be read."""
    try:
        content = source.read(index)
        return hashlib.sha256(content).digest(), phash(_small(content, max_pixels))
    except Unusable as error:
        return error


def _small(content: bytes, max_pixels: int) -> np.ndarray:
    header = read_header(content, max_pixels)
    factor = next((factor for factor in FACTORS if min(header[1:3]) >= LEAST_SIDE * factor), 1)
    return decode(content, max_pixels, header, factor, "auto")  # the hash does not depend on the scale of the values
