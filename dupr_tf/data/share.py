"""A share of the labelled images, drawn by a seed: the semi-supervised protocols train on 1 % or 10 % of COCO."""

from __future__ import annotations

import numpy as np

from dupr_tf.errors import UserError


def take_share(images, share: float, seed: int):
    """Draws a share of the images, at least one. With one seed, a smaller share lies within a larger one.

    Args:
        images: `AnnotatedImages` or `SegmentedImages`.
        share: 0 < share <= 1; 1 gives all of them.
        seed: of the draw.

    Returns:
        The chosen images in their old order, and their ids, a tuple of strings.
    """
    if not 0 < share <= 1:
        raise UserError("data.share", f"Expected a share above 0 and up to 1, received {share}.", "Use 0.1.")
    count = max(1, round(share * len(images)))
    chosen = sorted(np.random.default_rng(seed).permutation(len(images))[:count].tolist())
    subset = images.taking(chosen)
    return subset, subset.ids or subset.paths
