"""How many bytes the replicas of a training step exchange, counted from the network's shapes."""

from __future__ import annotations

import numpy as np

NUMBER = 4  # bytes of a float32, and of a bool or an index as they are gathered
BOX = 4  # numbers of an overlap


def step_traffic(model, image_size: int, batch: int) -> dict[str, dict[str, int]]:
    """What goes through the collectives in a step, as the whole that each replica holds afterwards.

    Scalars (the losses' sums, the count of valid pairs) are left out.

    Args:
        model: a `DUPR`.
        image_size: side of a view, px.
        batch: images a step, over all replicas.

    Returns:
        {"reduced": bytes by part, "gathered": bytes by part}.
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
    """[(term, channels of the features that it reads)] of a `DUPR`."""
    outputs = model.query_encoder.pyramid.output
    return [(term, outputs[term.level].shape[-1]) for term in model.terms]
