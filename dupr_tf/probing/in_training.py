"""Runs probes on the backbone during pre-training."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from dupr_tf.config import DataConfig, ProbingConfig
from dupr_tf.config.probes import PROBES

LABEL = "run"


def build_probe(settings: ProbingConfig, seed: int = 0, data: DataConfig | None = None) -> Callable:
    """Returns a function from a backbone to numbers and pictures, for `pretrain(probe=…)`.

    The images, crops and colours are the same each time, so that results are comparable within a run and between runs.

    Args:
        settings: section whose `data`, `probes`, `images` and `image_size` are read.
        seed: seed of the views.
        data: section of the run, whose `max_pixels` and `depth` the probes use too. Default: the schema's.
    """
    arguments = {"images": settings.images, "queries": settings.images, "image_size": settings.image_size, "seed": seed}
    section = data and DataConfig(max_pixels=data.max_pixels, depth=data.depth)
    chosen = {name: (PROBES.load(name), PROBES[name].facts) for name in settings.probes}

    def probe(backbone) -> tuple[dict[str, float], dict[str, np.ndarray]]:
        numbers, pictures = {}, {}
        for name, (run, facts) in chosen.items():
            taken = {key: arguments[key] for key in facts["takes"]}
            findings = run({LABEL: backbone}, settings.data, section=section, **taken)
            for key in facts["logs"]:
                value = findings.numbers[LABEL][key]
                numbers |= {} if value is None else {f"{name}/{key}": value}
            if findings.picture is not None:
                pictures[name] = np.asarray(findings.picture)
        return numbers, pictures

    return probe
