"""Defines the costs that terms and backbones state for forecasts. A multiply-add counts as two operations."""

from __future__ import annotations

from typing import NamedTuple


class Cost(NamedTuple):
    """Holds the costs that a term adds to a step."""

    key_bytes: int = 0  # bytes of one image's keys, as replicas exchange them
    projector_flops: int = 0  # operations of one image's forward pass
    compare_flops: int = 0  # operations of one image's queries, forward and backward
    compare_bytes: int = 0  # bytes held at a time while a batch-norm group's queries are compared


class BackboneCost(NamedTuple):
    """Holds the costs of one view."""

    flops: int = 0  # operations of the forward pass
    first_flops: int = 0  # operations of the first convolution, which needs no gradient w.r.t. the images
    activations: int = 0  # numbers kept for the gradient
