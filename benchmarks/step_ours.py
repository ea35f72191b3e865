"""Times our training step on a batch in memory."""

from __future__ import annotations

import time

import numpy as np
import tensorflow as tf

from dupr_tf.config import parse_config
from dupr_tf.forecast.counts import step_flops
from dupr_tf.training.pretrain import compiled_model


def build(architecture, size, batch, groups, bank, roi_sizes, width=1.0):
    """Returns a step of `model.fit`'s training function. Its facts: counted operations, speed of a large product."""
    config = parse_config(
        {
            "data": {"image_size": size},
            "views": {"photometric": "none"},
            "model": {"backbone": architecture, "width": width, "bank_size": bank, "roi_sizes": list(roi_sizes)},
            "train": {"batch_size": batch, "micro_batches": groups},
        }
    )
    model = compiled_model(config, images=10_000)
    iterator = iter(tf.data.Dataset.from_tensors(view_pairs(batch, size)).repeat())
    model.make_train_function()

    def work():
        assert np.isfinite(float(model.train_function(iterator)["loss"]))  # waits for the step
        return batch

    flops = {part: count / batch / 1e9 for part, count in step_flops(model, size, batch).items()}
    work.facts = {"gflop_an_image": flops, "gflops_of_a_product": product_gflops(), "version": tf.__version__}
    return work


def view_pairs(batch, size, seed=0):
    """Returns a batch of noise with boxes like those of real overlaps."""
    random = np.random.default_rng(seed)
    low = random.uniform(0, size / 3, (2, batch, 2)).astype(np.float32)
    high = random.uniform(size / 2, size, (2, batch, 2)).astype(np.float32)
    boxes = np.concatenate([low, high], -1)
    view_1, view_2 = random.integers(0, 256, (2, batch, size, size, 3), dtype=np.uint8)
    flipped = random.random((2, batch)) < 0.5
    return {
        "view_1": view_1, "view_2": view_2, "boxes_1": boxes[0], "boxes_2": boxes[1],
        "flipped_1": flipped[0], "flipped_2": flipped[1], "valid": np.ones(batch, bool),
        "index": np.arange(batch, dtype=np.int64),
    }  # fmt: skip


def product_gflops(side=2048, repeats=5) -> float:
    """Returns the GFLOP/s of this machine in a product of two large matrices, which define the floor."""
    product, matrix = tf.function(tf.matmul), tf.random.normal([side, side])
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        product(matrix, matrix).numpy()
        seconds.append(time.perf_counter() - start)
    return 2 * side**3 / min(seconds) / 1e9
