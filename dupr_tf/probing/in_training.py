"""The probes that a pre-training run can put to its own backbone."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from dupr_tf.config import ProbingConfig
from dupr_tf.probing.protocols import Findings, probe_affinity, probe_knn, probe_matching, probe_retrieval

LABEL = "run"
LOGGED = {
    "knn": ("top1",), "matching": ("pck_1", "pck_2"), "affinity": ("diagonal", "within_1"),
    "retrieval": ("alignment", "same_class"),
}  # fmt: skip


def build_probe(settings: ProbingConfig, seed: int = 0) -> Callable:
    """A function of a backbone that returns numbers and pictures, as `pretrain(probe=…)` takes it.

    The images, crops and colours are the same each time, so that its answers compare within a run and between runs.

    Args:
        settings: `data`, `probes`, `images` and `image_size` are read.
        seed: of the views.
    """
    images, size = settings.images, settings.image_size
    asked = {
        "knn": lambda b: probe_knn(b, settings.data, image_size=size),
        "matching": lambda b: probe_matching(b, settings.data, images, size, seed=seed),
        "affinity": lambda b: probe_affinity(b, settings.data, images, size, seed=seed),
        "retrieval": lambda b: probe_retrieval(b, settings.data, images, images, size),
    }

    def probe(backbone) -> tuple[dict[str, float], dict[str, np.ndarray]]:
        numbers, pictures = {}, {}
        for name in settings.probes:
            found: Findings = asked[name]({LABEL: backbone})
            for key in LOGGED[name]:
                value = found.numbers[LABEL][key]
                numbers |= {} if value is None else {f"{name}/{key}": value}
            if found.picture is not None:
                pictures[name] = np.asarray(found.picture)
        return numbers, pictures

    return probe
