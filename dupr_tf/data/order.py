"""Which image comes at which position of a run: a function of the seed and the position, so a run can be resumed."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np


class Order:
    """The image at each position of a run, epoch after epoch, each in an order of its own.

    Args:
        count: images of an epoch.
        permutation: epoch -> (count,) the images in their order. Must be picklable.
    """

    def __init__(self, count: int, permutation: Callable[[int], np.ndarray]):
        self.count, self.permutation = count, permutation
        self._epochs: dict[int, np.ndarray] = {}

    def __call__(self, position: int) -> int:
        epoch, place = divmod(position, self.count)
        order = self._epochs.get(epoch)
        if order is None:
            order = self.permutation(epoch)
            # Threads ask for positions around the end of an epoch, so two of them are kept; a new dict, as others read.
            self._epochs = {**dict(list(self._epochs.items())[-1:]), epoch: order}
        return int(order[place])


def shuffled_epoch(count: int, seed: int, epoch: int) -> np.ndarray:
    """(count,) a permutation for one epoch."""
    return np.random.default_rng([seed, epoch]).permutation(count)


def grouped_epoch(tall: np.ndarray, batch: int, seed: int, epoch: int) -> np.ndarray:
    """(N,) a permutation for one epoch, in which batches are of one orientation where they can be: less padding.

    Where N is no multiple of the batch, an epoch begins within one: its first images complete that.

    Args:
        tall: (N,) bool, for each image.
        batch: images a step.
        seed: of the order.
        epoch: from 0.
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
