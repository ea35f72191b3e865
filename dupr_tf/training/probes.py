"""Runs a probe on the backbone while it trains."""

from __future__ import annotations

import functools
from collections.abc import Callable

import numpy as np

from dupr_tf.training.callbacks import Validate

# A backbone that takes normalised images -> {name: number} and {name: picture (H, W, 3) uint8}.
Probe = Callable[[object], tuple[dict[str, float], dict[str, np.ndarray]]]


class RunProbes(Validate):
    """Probes the backbone every so many steps and at the end; `probe/NAME` and `seconds/probes` go into the metrics.

    Args:
        probe: must leave the backbone as it is.
        backbone: the query encoder's.
        every: steps.
        first_step, last_step: of this start of the run.
    """

    def __init__(self, probe: Probe, backbone, every: int, first_step: int, last_step: int):
        super().__init__(functools.partial(probe, backbone), every, first_step, last_step, "probe")
