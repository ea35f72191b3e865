"""Runs a probe on the backbone while it trains."""

from __future__ import annotations

import functools
from collections.abc import Callable

import numpy as np

from dupr_tf.training.callbacks import Validate

# Maps a backbone that takes normalised images to {name: number} and {name: picture (H, W, 3) uint8}.
Probe = Callable[[object], tuple[dict[str, float], dict[str, np.ndarray]]]


class RunProbes(Validate):
    """Probes the backbone every `every` steps and at the end. The metrics get `probe/NAME` and `seconds/probes`.

    Args:
        probe: function that must not change the backbone.
        backbone: the query encoder's backbone.
        every: steps between two probes.
        first_step, last_step: steps of this start of the run.
    """

    def __init__(self, probe: Probe, backbone, every: int, first_step: int, last_step: int):
        super().__init__(functools.partial(probe, backbone), every, first_step, last_step, "probe")
