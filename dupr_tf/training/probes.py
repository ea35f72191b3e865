"""Probes of the backbone while it trains: what is asked is somebody else's, when and where to is decided here."""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np

from dupr_tf.training.callbacks import MetricsLog, StepCallback

# A backbone that takes normalised images -> {name: number} and {name: picture (H, W, 3) uint8}.
Probe = Callable[[object], tuple[dict[str, float], dict[str, np.ndarray]]]


class RunProbes(StepCallback):
    """Asks the probe every so many steps and at the end; its answers go where the metrics go, with what they cost.

    It stands before what logs, so that a step's line holds them, and before what saves: a run that is killed in between
    asks again.

    Args:
        probe: must leave the backbone as it is.
        backbone: the query encoder's.
        metrics: gets `probe/NAME`, `seconds/probes` and the pictures.
        first_step, last_step: of this start of the run.
        every: steps.
    """

    def __init__(self, probe: Probe, backbone, metrics: MetricsLog, first_step: int, last_step: int, every: int):
        super().__init__(first_step)
        self.probe, self.backbone, self.metrics = probe, backbone, metrics
        self.last_step, self.every = last_step, every

    def on_step(self, step, logs):
        if step % self.every and step != self.last_step:
            return
        start = time.perf_counter()
        numbers, pictures = self.probe(self.backbone)
        seconds = time.perf_counter() - start
        named = {f"probe/{name}": float(value) for name, value in numbers.items()}
        self.metrics.note(
            {**named, "seconds/probes": seconds}, {f"probe/{k}": v for k, v in pictures.items()}, seconds
        )  # fmt: skip
