"""Counts what a training step costs, from the network's shapes.

The costs are arithmetic operations and the bytes that replicas exchange.
"""

from __future__ import annotations

import keras
import numpy as np

from dupr_tf.models.resnet import ResNetBackbone

NUMBER = 4  # bytes of a gathered element: a float32, or a bool or index, which are gathered as 4 bytes
BOX = 4  # numbers in an overlap box
QUERY = 3  # passes of the query encoder: forward, and the gradients w.r.t. inputs and kernels
KEY = 1  # passes of the key encoder: forward only


def step_flops(model, image_size: int, batch: int) -> dict[str, int]:
    """Counts the operations of a step by part.

    A multiplication and an addition count as two. Norm layers and the exponentials of the losses are left out.

    Args:
        model: a `DUPR` on a `ResNetBackbone`.
        image_size: side of a view, px.
        batch: images per step.

    Returns:
        `{"convolutions": …, "heads": …, "losses": …}`.
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
    """Counts the operations of one image's forward pass."""
    return 2 * int(np.prod(layer.output.shape[1:])) * int(np.prod(layer.kernel.shape[:3]))


def step_traffic(model, image_size: int, batch: int) -> dict[str, dict[str, int]]:
    """Counts the bytes that collectives move in a step: the size of the result that each replica holds afterwards.

    Scalars (the sums of the losses, the count of valid pairs) are left out.

    Args:
        model: a `DUPR`.
        image_size: side of a view, px.
        batch: images per step, over all replicas.

    Returns:
        `{"reduced": bytes by part, "gathered": bytes by part}`.
    """
    keys = sum(term.cost(channels, batch).key_bytes for term, channels in channels_by_term(model) if term.needs_keys)
    return {
        "reduced": {"gradients": NUMBER * sum(int(np.prod(v.shape)) for v in model.query_variables)},
        "gathered": {
            "views of the keys": NUMBER * batch * image_size**2 * 3,
            "boxes, flips, valid pairs": NUMBER * batch * (BOX + 2),
            "keys": batch * keys,
        },
    }


def channels_by_term(model):
    """Returns [(term, channels of the features that it reads)] of a `DUPR`."""
    outputs = model.query_encoder.pyramid.output
    return [(term, outputs[term.level].shape[-1]) for term in model.terms]
