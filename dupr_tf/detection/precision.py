"""Sets detectors to mixed precision: layers compute in 16 bits; pixels, boxes, losses and variables in float32."""

from __future__ import annotations

import keras


def set_precision(detector, policy: str) -> None:
    """Sets the number format in which the layers of a detector compute.

    Every layer gets its own policy; Keras' global policy is neither read nor changed. The detector itself and models
    that take images stay in float32, because a rounded pixel is another colour. Functions that Keras traced earlier are
    dropped.

    Args:
        detector: a `DetectorMixin`.
        policy: name of a Keras policy, as in `config.train.policy`.
    """
    policy, full = map(keras.dtype_policies.get, (policy, "float32"))
    for layer in detector._flatten_layers(include_self=False):
        layer.dtype_policy = full if _takes_images(layer) else policy
    detector.train_function = detector.test_function = detector.predict_function = None


def _takes_images(layer) -> bool:
    if isinstance(layer, keras.layers.InputLayer | keras.layers.Rescaling):
        return True
    inputs = getattr(layer, "inputs", None)  # of functional models
    return bool(inputs) and inputs[0].shape[-1] == 3
