"""Compares the features that two networks compute from the same image."""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import numpy as np

from dupr_tf.errors import RunFailed
from dupr_tf.models.resnet import IMAGENET_MEAN, IMAGENET_STD, LEVELS, ResNetBackbone, pyramid
from dupr_tf.text import listed

# An even size reveals one-sided padding (stride 2 over an odd size pads both alike); an odd size reveals rounding.
SIZES = ((64, 96), (65, 97))
TOLERANCE = 1e-4  # share of a level's largest feature


class Check(NamedTuple):
    """Holds a comparison of one level of an image between the network in memory and the written file."""

    against: str  # "torchvision 0.29.1", "the file, read again"
    image: str  # "65×97"
    level: str
    difference: float  # largest absolute difference of two features; infinite if shapes or non-finite places differ
    scale: float  # largest finite feature
    finite: bool  # True if all features are

    @property
    def relative(self):
        return self.difference / self.scale if self.scale > 0 else self.difference


@dataclasses.dataclass
class Written:
    """Holds the results of a writer's check of its output: its comparisons, and those that were not possible."""

    checks: list[Check]
    not_compared: list[str] = dataclasses.field(default_factory=list)

    def worst(self):
        """Returns the comparison with the largest difference relative to its features."""
        return max(self.checks, key=lambda check: check.relative)

    def difference(self):
        """Returns the largest absolute difference of all comparisons."""
        return max(check.difference for check in self.checks)


def check_images(size):
    """Return a fixed noise image, `(1, *size, 3)`, uint8."""
    return np.random.default_rng(0).integers(0, 256, (1, *size, 3), dtype=np.uint8)


def normalized(images):
    """Return (x − mean) / std in float32, computed in float64, as the same input for all libraries compared here."""
    return ((images - np.array(IMAGENET_MEAN)) / np.array(IMAGENET_STD)).astype(np.float32)


def levels_of(backbone):
    """Return those of P2..P5 that the backbone has, or all if it has none, so that `pyramid` reports the problem."""
    outputs = getattr(backbone, "pyramid_outputs", None) or getattr(backbone, "pyramid_level_inputs", {})
    return tuple(level for level in LEVELS if level in outputs) or LEVELS


def features(backbone, images):
    """Return `{level: float32 array}` of a backbone, run eagerly."""
    outputs = pyramid(backbone, levels_of(backbone))(images, training=False)
    return {level: np.asarray(value, dtype=np.float32) for level, value in outputs.items()}


def float32_twin(backbone, include_normalization=False):
    """Return a copy of a `ResNetBackbone` that computes in float32, as other tools do with its weights."""
    config = {**backbone.get_config(), "dtype": "float32", "include_normalization": include_normalization}
    twin = ResNetBackbone.from_config(config)
    twin.set_weights(backbone.get_weights())
    return twin


def compare(against, expected, received, inputs=check_images):
    """Run both networks on an even and on an odd image.

    Args:
        against: name and version of what computes `received`.
        expected: function from images to `{level: array}`.
        received: function like `expected`, with the same levels.
        inputs: function from a size to the input of both.

    Returns:
        A list of `Check`, one for each size and level.
    """
    checks = []
    for size in SIZES:
        images = inputs(size)
        ours, theirs = expected(images), received(images)
        if set(ours) != set(theirs):
            raise RunFailed(f"Expected the levels {', '.join(sorted(ours))} from {against}, received {sorted(theirs)}.")
        checks += [
            _check(against, "×".join(map(str, size)), level, ours[level], theirs[level]) for level in sorted(ours)
        ]
    return checks


def _check(against, image, level, expected, received):
    expected, received = (np.asarray(value, dtype=np.float32) for value in (expected, received))
    finite = np.isfinite(expected)
    scale = float(np.max(np.abs(expected[finite]), initial=0.0))
    if expected.shape != received.shape or not np.array_equal(expected[~finite], received[~finite], equal_nan=True):
        difference = float("inf")
    else:
        difference = float(np.max(np.abs(expected[finite] - received[finite]), initial=0.0))
    if not np.isfinite(difference):  # NaN: only the other side is not finite
        difference = float("inf")
    return Check(against, image, level, difference, scale, bool(finite.all()))


def check_arrays(expected, received, where):
    """Reject a file whose names or arrays differ in any bit from those that were to be written.

    Args:
        expected: `{name: array}`.
        received: arrays read from the file.
        where: the file, for the message.

    Raises:
        RunFailed: names what is missing, unmapped or different.
    """
    missing, unmapped = sorted(set(expected) - set(received)), sorted(set(received) - set(expected))
    if missing or unmapped:
        raise RunFailed(
            f"{where} lacks {listed(missing) or 'nothing'} and has {listed(unmapped) or 'nothing'} besides. "
            "This is a defect of the table of names; please report it."
        )
    changed = [name for name in expected if not np.array_equal(expected[name], received[name], equal_nan=True)]
    if changed:
        raise RunFailed(f"{where} does not hold the weights: {listed(changed)} differ. Try again.")
