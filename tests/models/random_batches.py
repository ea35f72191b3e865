"""Batches of random views, as a function of the step."""

import numpy as np

# Groups of four and P5 maps of 2 x 2: over only two numbers, rounding errors could flip signs after normalising.
GROUP, SIZE = 4, 64  # the SIZE that TinyBackbone takes


def batches(steps, batch):
    """Batches that are a function of the step; some pairs are invalid."""
    random = np.random.default_rng(0)
    for _ in range(steps):
        corner = random.uniform(0, 16, (2, batch, 2))
        boxes = np.concatenate([corner, corner + random.uniform(32, 48, (2, batch, 2))], -1).astype(np.float32)
        yield {
            "view_1": random.integers(0, 256, (batch, SIZE, SIZE, 3), np.uint8),
            "view_2": random.integers(0, 256, (batch, SIZE, SIZE, 3), np.uint8),
            "boxes_1": boxes[0],
            "boxes_2": boxes[1],
            "flipped_1": random.random(batch) < 0.5,
            "flipped_2": random.random(batch) < 0.5,
            "valid": random.random(batch) < 0.8,
            "index": np.arange(batch),
        }
