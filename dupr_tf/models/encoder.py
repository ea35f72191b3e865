"""The encoder: a backbone with a projector for each term of the loss (DUPR figure 3)."""

from __future__ import annotations

import keras

from dupr_tf.models.resnet import LEVELS, pyramid


@keras.saving.register_keras_serializable("dupr_tf")
class Encoder(keras.layers.Layer):
    """Maps images to the features of each level; `embed` also applies the terms' projectors.

    Args:
        backbone: a Functional Keras model with `pyramid_outputs` or `pyramid_level_inputs`.
        levels: levels that terms read, e.g. ("P4", "P5").
        projectors: {term name: its projector, built}.

    Attributes:
        pyramid: the backbone as a model from its input to {level: features}.
    """

    def __init__(self, backbone, levels, projectors, **kwargs):
        super().__init__(**kwargs)
        self.backbone = backbone
        self.levels = [level for level in LEVELS if level in levels]
        self.pyramid = pyramid(backbone, self.levels)
        self.projectors = dict(projectors)
        self.built = True

    @classmethod
    def of_terms(cls, backbone, levels, terms, **kwargs):
        """Creates an encoder with a new projector for each term; the terms read features of some of the levels."""
        outputs = pyramid(backbone, levels).output
        projectors = {term.name: term.make_projector(outputs[term.level].shape[-1]) for term in terms}
        return cls(backbone, levels, projectors, **kwargs)

    def call(self, images, training=None):
        """Maps `(b, H, W, 3)` normalised images to `{level: (b, H/s, W/s, C_level)}`."""
        return self.pyramid(images, training=training)

    def embed(self, terms, images, boxes, flipped):
        """Embeds a batch for each term, with batch statistics in batch norm.

        Args:
            terms: terms to embed for.
            images: (b, H, W, 3) float, normalised RGB.
            boxes: (b, 4) `(y1, x1, y2, x2)`, the overlap in pixels of these views.
            flipped: (b,) bool, True for mirrored views; their patches are read right-to-left.

        Returns:
            {term name: embeddings}.
        """
        features = self(images, training=True)
        return {
            term.name: term.embed(features[term.level], boxes, flipped, self.projectors[term.name]) for term in terms
        }

    def get_config(self):
        return {
            **super().get_config(),
            "backbone": keras.saving.serialize_keras_object(self.backbone),
            "levels": list(self.levels),
            "projectors": {name: keras.saving.serialize_keras_object(layer) for name, layer in self.projectors.items()},
        }

    @classmethod
    def from_config(cls, config):
        restore = keras.saving.deserialize_keras_object
        projectors = {name: restore(layer) for name, layer in config.pop("projectors").items()}
        return cls(restore(config.pop("backbone")), projectors=projectors, **config)
