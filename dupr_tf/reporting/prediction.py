"""Predicts what a run needs of this machine, from the shapes of its network and one matrix product."""

from __future__ import annotations

import dataclasses
import os
import time
from pathlib import Path

import tensorflow as tf

from dupr_tf.config import Config
from dupr_tf.models.cost import step_flops
from dupr_tf.training.dry_run import predicted_memory
from dupr_tf.training.pretrain import build_model

SIDE, SECONDS = 1536, 0.4  # side of the matrix product, and seconds for which it is repeated
# Shares of that product's speed that whole steps reached on CPUs: small networks at 64 px, ResNet-50.
SHARES = (0.2, 0.85)


@dataclasses.dataclass(frozen=True)
class Prediction:
    """The predicted memory and speed of a pre-training run."""

    memory: dict[str, int]  # bytes by part
    gflop: float  # per image
    gflops: float  # of this machine, in a large matrix product
    images_per_second: tuple[float, float]  # from, to

    @property
    def total_memory(self) -> int:
        return sum(self.memory.values())


def predict(config: Config) -> Prediction:
    """Predicts memory and speed without taking a step.

    It leaves out reading images, which may be slower than the step.

    Args:
        config: config of the run.
    """
    model = build_model(config)
    batch = config.train.batch_size
    gflop = sum(step_flops(model, config.data.image_size, batch).values()) / batch / 1e9
    gflops = product_speed()
    return Prediction(predicted_memory(model, config), gflop, gflops, tuple(share * gflops / gflop for share in SHARES))


def product_speed(clock=time.perf_counter) -> float:
    """Measures the GFLOP/s of a large matrix product in float32: the best of several, to reduce disturbances.

    Args:
        clock: `time.process_time` measures one core, even while others work.
    """
    a = tf.random.stateless_uniform([SIDE, SIDE], seed=[0, 0])
    tf.linalg.matmul(a, a).numpy()
    best, end = float("inf"), time.perf_counter() + SECONDS
    while time.perf_counter() < end or best == float("inf"):
        start = clock()
        tf.linalg.matmul(a, a)[0, 0].numpy()
        best = min(best, clock() - start)
    return 2 * SIDE**3 / best / 1e9


def available_memory() -> int | None:
    """Returns the bytes this process may still take: free memory, or a container's limit; None if unknown."""
    found = []
    try:
        lines = Path("/proc/meminfo").read_text(encoding="utf-8").splitlines()
        found += [1024 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable:")]
        limit, used = (Path(f"/sys/fs/cgroup/memory.{name}").read_text(encoding="utf-8") for name in ("max", "current"))
        found.append(int(limit) - int(used))
    except (OSError, ValueError):  # no Linux, no such container, or its limit is the word max
        pass
    return min(found, default=None)


def usable_cpus() -> int:
    """Returns the processors this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
