"""Times torchvision's RoIAlign, and the flip that DUPR needs after it."""

from __future__ import annotations

import numpy as np
import torch
import torchvision

REPEATS = 5


def build(images, side, channels, bins, stride):
    """Returns work: the forward pass, and the gradient w.r.t. the features."""
    torch.manual_seed(0)
    features = torch.randn(images, channels, side, side).requires_grad_()
    size, random = side * stride, np.random.default_rng(0)
    low, high = random.uniform(0, size / 3, (images, 2)), random.uniform(size / 2, size, (images, 2))
    boxes = torch.from_numpy(np.concatenate([low, high], -1).astype(np.float32))
    flipped = torch.from_numpy(random.random(images) < 0.5)[:, None, None, None]

    def work():
        for _ in range(REPEATS):
            features.grad = None
            patches = torchvision.ops.roi_align(features, list(boxes[:, None]), bins, 1 / stride, 1, aligned=True)
            torch.where(flipped, patches.flip(3), patches).square().sum().backward()
        return REPEATS * images

    work.facts = {"version": torchvision.__version__}
    return work
