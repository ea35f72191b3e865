"""How many floating-point operations a training step is, counted from the network's shapes."""

from __future__ import annotations

import keras
import numpy as np

from dupr_tf.models.resnet import ResNetBackbone
from dupr_tf.models.traffic import channels_by_term

QUERY = 3  # the query encoder's forward pass, and the gradients w.r.t. inputs and kernels
KEY = 1  # the key encoder has a forward pass only


def step_flops(model, image_size: int, batch: int) -> dict[str, int]:
    """Operations of a step by part; a multiplication and an addition are two. Norms, losses' exponentials are left out.

    Args:
        model: a `DUPR` on a `ResNetBackbone`.
        image_size: side of a view, px.
        batch: images a step.

    Returns:
        {"convolutions": …, "heads": …, "losses": …}.
    """
    twin = ResNetBackbone.from_config({**model.backbone.get_config(), "input_shape": (image_size, image_size, 3)})
    convolutions = [_convolution(layer) for layer in twin.layers if isinstance(layer, keras.layers.Conv2D)]
    costs = [(term, term.cost(channels, batch)) for term, channels in channels_by_term(model)]
    heads = sum(cost.projector_flops * (QUERY + KEY if term.needs_keys else QUERY) for term, cost in costs)
    stem = convolutions[0]  # needs no gradient w.r.t. the images
    return {
        "convolutions": batch * ((QUERY + KEY) * sum(convolutions) - stem),
        "heads": batch * heads,
        "losses": batch * sum(cost.compare_flops for _, cost in costs),
    }


def _convolution(layer) -> int:
    """Of one image's forward pass."""
    return 2 * int(np.prod(layer.output.shape[1:])) * int(np.prod(layer.kernel.shape[:3]))
