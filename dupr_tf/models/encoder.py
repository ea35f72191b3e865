"""An encoder: a backbone with an image head and a patch head at each level that has a loss (DUPR figure 3)."""

from __future__ import annotations

import keras
import tensorflow as tf

from dupr_tf.models.heads import ProjectionHead
from dupr_tf.models.resnet import LEVELS, pyramid
from dupr_tf.ops import roi_align


@keras.saving.register_keras_serializable("dupr_tf")
class Encoder(keras.layers.Layer):
    """Images and their overlap boxes in, embeddings by loss name out: `image_P5` (B, C), `patch_P4` (B, S, S, C).

    Args:
        backbone: a Functional Keras model with `pyramid_outputs` or `pyramid_level_inputs`.
        image_levels: levels with an image head, e.g. ("P2", "P3", "P4", "P5").
        patch_sizes: S of each level with a patch head, e.g. {"P4": 14, "P5": 7}.
        embedding_dim: C.
        head: "mlp" or "linear".
        sampling_ratio: of RoIAlign.
    """

    def __init__(self, backbone, image_levels, patch_sizes, embedding_dim=128, head="mlp", sampling_ratio=1, **kwargs):
        super().__init__(**kwargs)
        self.backbone = backbone
        self.image_levels, self.patch_sizes = tuple(image_levels), dict(patch_sizes)
        self.embedding_dim, self.head, self.sampling_ratio = embedding_dim, head, sampling_ratio
        levels = [level for level in LEVELS if level in self.image_levels or level in self.patch_sizes]
        self.pyramid = pyramid(backbone, levels)
        self.heads = {}
        for level in levels:
            width = self.pyramid.output[level].shape[-1]
            if level in self.image_levels:
                self._add_head(f"image_{level}", (None, width))
            if level in self.patch_sizes:
                self._add_head(f"patch_{level}", (None, None, None, width))
        self.built = True

    def _add_head(self, name, input_shape):
        head = ProjectionHead(self.embedding_dim, self.head, name=name, dtype=self.dtype_policy)
        head.build(input_shape)
        self.heads[name] = head

    @property
    def loss_names(self) -> tuple[str, ...]:
        """`image_P2`, …, `patch_P5`: one embedding, one memory bank and one loss each."""
        return tuple(self.heads)

    def call(self, images, boxes, flipped, training=None):
        """Embeds a batch.

        Args:
            images: (B, H, W, 3) float, normalised RGB.
            boxes: (B, 4) `(y1, x1, y2, x2)`, the overlap in pixels of these views.
            flipped: (B,) bool, mirrored views; their patches are read right-to-left.

        Returns:
            {loss name: float32 embeddings of unit length}.
        """
        features = self.pyramid(images, training=training)  # {level: (B, H/s, W/s, C_level)}
        embeddings = {}
        for name, head in self.heads.items():
            kind, level = name.split("_")
            if kind == "image":
                pooled = tf.reduce_mean(features[level], axis=[1, 2])  # (B, C_level)
                embeddings[name] = head(pooled)  # (B, C)
            else:
                scale = features[level].shape[1] / images.shape[1]
                patches = roi_align(
                    features[level], boxes, self.patch_sizes[level], scale, self.sampling_ratio, flipped
                )
                embeddings[name] = head(patches)  # (B, S, S, C)
        return embeddings

    def get_config(self):
        return {
            **super().get_config(),
            "backbone": keras.saving.serialize_keras_object(self.backbone),
            "image_levels": self.image_levels,
            "patch_sizes": self.patch_sizes,
            "embedding_dim": self.embedding_dim,
            "head": self.head,
            "sampling_ratio": self.sampling_ratio,
        }

    @classmethod
    def from_config(cls, config):
        backbone = keras.saving.deserialize_keras_object(config.pop("backbone"))
        return cls(backbone, **config)
