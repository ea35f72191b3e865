"""Backbones for the tests of exports."""

import keras
import numpy as np

from dupr_tf.models.resnet import build_backbone


def randomised(architecture, **kwargs):
    """Returns a backbone whose norms all differ, so that swapped norms show. Fresh norms are all ones and zeros."""
    keras.utils.set_random_seed(0)
    backbone, rng = build_backbone(architecture, **kwargs), np.random.default_rng(0)
    for variable in backbone.variables:
        if variable.name in ("gamma", "moving_variance"):
            variable.assign(rng.uniform(0.5, 1.5, variable.shape))
        elif variable.name in ("beta", "moving_mean"):
            variable.assign(rng.normal(0, 0.2, variable.shape))
    return backbone
