"""Orders the images of a run as a function of seed and position, so that a run can be resumed."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np


class Order:
    """Gives the image at each position of a run. Each epoch has another order.

    Args:
        count: images of an epoch.
        permutation: epoch -> (count,) images in their order. It must be picklable.
    """

    def __init__(self, count: int, permutation: Callable[[int], np.ndarray]):
        self.count, self.permutation = count, permutation
        self._epochs: dict[int, np.ndarray] = {}

    def __call__(self, position: int) -> int:
        epoch, place = divmod(position, self.count)
        order = self._epochs.get(epoch)
        if order is None:
            order = self.permutation(epoch)
            # Threads read positions around the end of an epoch, so two epochs are kept. A new dict is safe for other
            # readers.
            self._epochs = {**dict(list(self._epochs.items())[-1:]), epoch: order}
        return int(order[place])


def shuffled_epoch(count: int, seed: int, epoch: int) -> np.ndarray:
    """Returns a permutation (count,) for one epoch."""
    return np.random.default_rng([seed, epoch]).permutation(count)


def grouped_epoch(tall: np.ndarray, batch: int, seed: int, epoch: int) -> np.ndarray:
    """Returns a permutation (N,) for one epoch whose batches have one orientation where possible, for less padding.

    If N is no multiple of the batch, an epoch begins within a batch, and its first images complete that batch.

    Args:
        tall: (N,) bool, whether each image is tall.
        batch: images a step.
        seed: seed of the order.
        epoch: number from 0.
    """
    count, rng = len(tall), np.random.default_rng([seed, epoch])
    order = rng.permutation(count)
    lead = min(count, -epoch * count % batch)
    rest = order[lead:]
    groups, left = [], []
    for group in (rest[tall[rest]], rest[~tall[rest]]):
        full = len(group) // batch * batch
        groups += list(group[:full].reshape(-1, batch))
        left.append(group[full:])
    mixed = np.concatenate(left)
    rng.shuffle(mixed)
    full = len(mixed) // batch * batch
    groups += list(mixed[:full].reshape(-1, batch))
    return np.concatenate([order[:lead], *(groups[i] for i in rng.permutation(len(groups))), mixed[full:]])
