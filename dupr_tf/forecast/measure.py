"""Measures this machine for the forecasts, in a core's own seconds, so that other work has little effect."""

from __future__ import annotations

import dataclasses
import time

import numpy as np
import tensorflow as tf

from dupr_tf.config import Config
from dupr_tf.data.images.bad_images import BadImages
from dupr_tf.data.images.decode import Unusable
from dupr_tf.data.images.source import ImageSource
from dupr_tf.data.pipeline import view_pairs
from dupr_tf.errors import RunFailed
from dupr_tf.forecast.assumptions import Assumption
from dupr_tf.resources import available_memory, usable_cpus
from dupr_tf.training.pretrain import compiled_model

SECONDS = 6.0  # rough limit for reading images
SIDE, PRODUCT_SECONDS = 1536, 0.4  # side of the matrix product, and seconds for which it is repeated
MOST_STEPS = 1_000_000  # more than can be read in that time
LOOKED_AT = 256  # images whose bytes are counted
COPIED = 64 << 20  # bytes, more than caches hold
STEPS = 2


def measured_assumptions(assumed: dict[str, Assumption]) -> dict[str, Assumption]:
    """Measures the assumptions that are still NaN: speed, memory and cores of this machine."""
    measures = {
        "peak_tflops": lambda: product_speed() * usable_cpus() / 1e3,
        "memory_gb": lambda: (available_memory() or np.inf) / 1e9,
        "memory_gb_s": copy_speed,
        "cores_a_machine": usable_cpus,
    }
    return {
        name: dataclasses.replace(entry, value=float(measures[name]())) if np.isnan(entry.value) else entry
        for name, entry in assumed.items()
    }


def product_speed() -> float:
    """Measures the GFLOP/s of a large matrix product in float32 with one core, the best of several."""
    a = tf.random.stateless_uniform([SIDE, SIDE], seed=[0, 0])
    tf.linalg.matmul(a, a).numpy()
    best, end = float("inf"), time.perf_counter() + PRODUCT_SECONDS
    while time.perf_counter() < end or best == float("inf"):
        start = time.process_time()
        tf.linalg.matmul(a, a)[0, 0].numpy()
        best = min(best, time.process_time() - start)
    return 2 * SIDE**3 / best / 1e9


def copy_speed() -> float:
    """Measures GB/s of copying a large array with one core, bytes read and written together; the best of several."""
    source = np.ones(COPIED // 4, np.float32)
    target, best = np.empty_like(source), float("inf")
    for _ in range(8):
        start = time.process_time()
        np.copyto(target, source)
        best = min(best, time.process_time() - start)
    return 2 * COPIED / best / 1e9


def input_assumptions(source: ImageSource, config: Config) -> dict[str, Assumption]:
    """Measures images/s of a core through the run's own input pipeline, and the mean bytes of an image.

    Args:
        source: the images.
        config: config of the run.

    Raises:
        ValueError: too many of the images cannot be read.
    """
    batch = config.train.batch_size
    bad = BadImages.of(source, config.data)
    # One thread of this process, so that its seconds can be counted; few blocks are ready at the start and the end.
    one_thread = config.model_copy(update={"data": config.data.model_copy(update={"threads": 1, "processes": 0})})
    with view_pairs(source, one_thread, 0, MOST_STEPS, bad) as batches:
        next(batches)
        start, began, images = time.process_time(), time.perf_counter(), 0
        while time.perf_counter() - began < SECONDS:
            next(batches)
            images += batch
        speed = images / (time.process_time() - start)
    bad.check()
    chosen = np.unique(np.linspace(0, len(source) - 1, LOOKED_AT).astype(np.int64))
    lengths = [length for index in chosen.tolist() if (length := _length(source, index))]
    measured = "measured just now on these images"
    return {
        "input_images_s_a_core": Assumption(speed, "images/s to two views", f"{measured}, in seconds of a core"),
        "bytes_an_image": Assumption(float(np.mean(lengths)), "bytes", f"{measured}, {len(lengths)} of them"),
    }


def _length(source: ImageSource, index: int) -> int:
    """Returns the bytes of an image, or 0 if it cannot be read."""
    try:
        return len(source.read(index))
    except Unusable:
        return 0


def step_seconds(config: Config) -> float:
    """Measures the seconds of all cores for a real step on noise images, the faster of two, without the input."""
    model = compiled_model(config, 10_000)
    model.make_train_function()
    batches = iter(tf.data.Dataset.from_tensors(noise_pairs(config)).repeat())
    seconds = []
    for _ in range(1 + STEPS):
        start = time.process_time()
        loss = float(model.train_function(batches)["loss"])  # waits for the step
        seconds.append(time.process_time() - start)
    if not np.isfinite(loss):
        raise RunFailed(f"The loss is {loss} after {1 + STEPS} steps. Use a lower --optimizer.learning_rate.")
    return min(seconds[1:])  # the first one traces


def noise_pairs(config: Config) -> dict[str, np.ndarray]:
    """Makes a batch of noise, with overlaps from half a view to a whole one."""
    random, size, batch = np.random.default_rng(0), config.data.image_size, config.train.batch_size
    low, high = random.uniform(0, size / 4, (2, batch, 2)), random.uniform(0.75 * size, size, (2, batch, 2))
    boxes = np.concatenate([low, high], -1).astype(np.float32)
    views = random.integers(0, 256, (2, batch, size, size, 3), np.uint8)
    return {
        "view_1": views[0], "view_2": views[1], "boxes_1": boxes[0], "boxes_2": boxes[1],
        "flipped_1": random.random(batch) < 0.5, "flipped_2": random.random(batch) < 0.5,
        "valid": np.ones(batch, bool), "index": np.arange(batch),
    }  # fmt: skip
