"""The base of all detectors: config, norms, and the creation of all variables before `fit`."""

from __future__ import annotations

import keras

from dupr_tf.errors import UserError
from dupr_tf.models.layers import set_norm
from dupr_tf.training.distribution import deterministic_ops


class Detector:
    """Mixin for a Keras model with a `backbone` and `class_names` that creates every variable in `compile`.

    `SETTINGS` names the other arguments of its constructor, each kept in an attribute of that name.
    """

    SETTINGS: tuple[str, ...] = ()

    def fit(self, *arguments, **settings):
        """Runs Keras' `fit`; on CPUs with deterministic operations, without which region gradients are wrong."""
        with deterministic_ops():
            return super().fit(*arguments, **settings)

    def _maybe_symbolic_build(self, iterator=None, data_batch=None):
        """Does nothing, because all variables exist already.

        Under a strategy, Keras' own method would first run the model on symbols, on the mean of the batches of all
        devices. It would also take the whole batch, including boxes, for the model's input.
        """

    def get_config(self):
        settings = {name: getattr(self, name) for name in self.SETTINGS}
        return {
            "backbone": keras.saving.serialize_keras_object(self.backbone),
            "class_names": list(self.class_names),
            **{name: list(value) if isinstance(value, tuple) else value for name, value in settings.items()},
        }

    @classmethod
    def from_config(cls, config):
        return cls(**{**config, "backbone": keras.saving.deserialize_keras_object(config["backbone"])})

    def get_compile_config(self):
        """Returns None, because a saved detector has no optimizer."""
        return None

    def _set_norms(self, own):
        """Applies `norm` to the backbone; the detector's own layers are never frozen."""
        set_norm(self.backbone, self.norm)
        set_norm(own, "sync" if self.norm == "sync" else "train")


def check_image_size(size):
    """Raises UserError if a fixed input side is no multiple of 32; None means any size."""
    if size is not None and size % 32:
        raise UserError("image_size", f"Expected a multiple of 32, received {size}.", "Use 224 or 256, for example.")
