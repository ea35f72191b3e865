"""The encoder: a backbone with a projector for each term of the loss (DUPR figure 3)."""

from __future__ import annotations

import functools

import keras

from dupr_tf.config.terms import STRIDE_OF
from dupr_tf.errors import UserError
from dupr_tf.models import twins
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
        super().__init__(autocast=False, **kwargs)  # each layer casts its own input
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

    def embed(self, terms, images, boxes, flipped, training=True):
        """Embeds a batch for each term.

        Args:
            terms: terms to embed for.
            images: (b, H, W, 3) float, normalised RGB.
            boxes: (b, 4) `(y1, x1, y2, x2)`, the overlap in pixels of these views.
            flipped: (b,) bool, True for mirrored views; their patches are read right-to-left.
            training: True for batch statistics in batch norm, False for moving ones.

        Returns:
            {term name: embeddings}.

        Raises:
            UserError: a level of the backbone has another stride than that of its name.
        """
        features, embeddings = self(images, training=training), {}
        for term in terms:
            _check_stride(term.level, images.shape, features[term.level].shape)
            projector = functools.partial(self.projectors[term.name], training=training)
            embeddings[term.name] = term.embed(features[term.level], boxes, flipped, projector)
        return embeddings

    def twins(self, key):
        """Pairs the backbone and the projectors with those of the key encoder. It may have fewer projectors."""
        heads = [(self.projectors[name], projector) for name, projector in key.projectors.items()]
        return [(self.pyramid, key.pyramid), *heads]

    def get_config(self):
        return {
            **super().get_config(),
            "backbone": twins.serialize_backbone(self.backbone),
            "levels": list(self.levels),
            "projectors": {name: keras.saving.serialize_keras_object(layer) for name, layer in self.projectors.items()},
        }

    @classmethod
    def from_config(cls, config):
        restore = keras.saving.deserialize_keras_object
        projectors = {name: restore(layer) for name, layer in config["projectors"].items()}
        return cls(**{**config, "backbone": twins.restore_backbone(config["backbone"]), "projectors": projectors})


def _check_stride(level, images, features):
    """Checks statically that a map of (b, h, w, C) belongs to images of (b, H, W, 3) at the level's stride."""
    for side, cells in zip(images[1:3], features[1:3], strict=True):
        if None not in (side, cells) and abs(cells - side / STRIDE_OF[level]) >= 1:
            raise UserError(
                "backbone",
                f"Expected {level} at 1/{STRIDE_OF[level]} of the image, received {cells} cells for {side} pixels.",
                "P2, P3, P4 and P5 are the feature maps of strides 4, 8, 16 and 32 (output_stride 32).",
            )
