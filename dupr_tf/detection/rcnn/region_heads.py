"""Heads on regions: region features, box predictors and mask heads.

Both kinds of region head have `vectors`, which returns the predictors' input and the maps that it is computed from if
masks share them, and `mask_maps`, the mask head's input.
"""

from __future__ import annotations

import keras
import tensorflow as tf

from dupr_tf.detection.rcnn.pooling import pool, pool_by_level
from dupr_tf.errors import UserError
from dupr_tf.models.layers import FusedBatchNormalization
from dupr_tf.models.resnet import pyramid

STRIDES = (4, 8, 16, 32, 64)  # strides of P2 to P6
BOX_BINS, MASK_BINS = 7, 14  # bins per side, of detectron2's poolers with a pyramid
C4_STRIDE, C4_BINS = 16, 14


@keras.saving.register_keras_serializable("dupr_tf")
class PyramidRegions(keras.layers.Layer):
    """Region head on P2 to P5 (detectron2's FastRCNNConvFCHead).

    It has 7×7 bins and two dense layers with ReLU. Masks have 14×14 bins.

    Args:
        width: width of the dense layers.
    """

    one_image_at_a_time = False  # at test: 1000 vectors per image are small

    def __init__(self, width, **kwargs):
        super().__init__(**kwargs)
        self.width = width
        self.dense = [
            keras.layers.Dense(width, activation="relu", kernel_initializer="lecun_uniform", name=f"dense_{i}")
            for i in range(2)
        ]

    def build(self, input_shape):
        self.dense[0].build((None, None, BOX_BINS**2 * input_shape[-1]))
        self.dense[1].build((None, None, self.width))

    def vectors(self, features, boxes, training):
        maps, places = pool_by_level(features[:4], boxes, STRIDES[:4], BOX_BINS)  # (B · R, 7, 7, C)
        flat = tf.reshape(maps, [-1, BOX_BINS**2 * maps.shape[-1]])
        return tf.gather(self.dense[1](self.dense[0](flat)), places), None  # (B, R, width)

    def mask_maps(self, features, boxes, training, maps=None):
        return pool(features[:4], boxes, STRIDES[:4], MASK_BINS)  # (B, R, 14, 14, C)

    def get_config(self):
        return {**super().get_config(), "width": self.width}


class Res5Regions(keras.layers.Layer):
    """Region head on P4: 14×14 bins, the backbone's last stage at stride 2, an extra batch norm, and their mean.

    This is detectron2's Res5ROIHeads with the extra normalisation of MoCo's detection protocol (He et al., 2020,
    appendix). Masks share the maps.

    Args:
        res5: model from P4 to P5.
    """

    one_image_at_a_time = True  # at test: 1000 regions of 14×14×1024 are 0.8 GB

    def __init__(self, res5, **kwargs):
        super().__init__(**kwargs)
        self.res5 = res5
        self.norm = FusedBatchNormalization(momentum=0.9, epsilon=1e-5, name="res5_norm")

    def build(self, input_shape):
        self.norm.build(self.res5.output.shape)

    def vectors(self, features, boxes, training):
        maps = self.mask_maps(features, boxes, training)
        return tf.reduce_mean(tf.cast(maps, tf.float32), [2, 3]), maps

    def mask_maps(self, features, boxes, training, maps=None):
        if maps is not None:
            return maps
        pooled = pool(features, boxes, (C4_STRIDE,), C4_BINS)  # (B, R, 14, 14, C)
        shape = tf.shape(pooled)
        maps = self.res5(tf.reshape(pooled, [-1, *pooled.shape[2:]]), training=training)
        maps = self.norm(maps, training=training)
        return tf.reshape(maps, [shape[0], shape[1], *maps.shape[1:]])  # (B, R, 7, 7, 2 C)


@keras.saving.register_keras_serializable("dupr_tf")
class BoxPredictor(keras.layers.Layer):
    """Predicts class logits, background last, and deltas for each class (detectron2's FastRCNNOutputLayers).

    Args:
        classes: number C of classes.
    """

    def __init__(self, classes, **kwargs):
        super().__init__(**kwargs)
        self.classes = classes
        self.logits = self._dense(classes + 1, 0.01, "logits")
        self.deltas = self._dense(4 * classes, 0.001, "deltas")

    def _dense(self, units, deviation, name):
        return keras.layers.Dense(
            units, kernel_initializer=keras.initializers.RandomNormal(stddev=deviation), name=name
        )

    def build(self, input_shape):
        for layer in (self.logits, self.deltas):
            layer.build(input_shape)

    def call(self, vectors):
        shape = tf.shape(vectors)
        deltas = tf.reshape(self.deltas(vectors), [shape[0], shape[1], self.classes, 4])
        return tf.cast(self.logits(vectors), tf.float32), tf.cast(deltas, tf.float32)

    def get_config(self):
        return {**super().get_config(), "classes": self.classes}


@keras.saving.register_keras_serializable("dupr_tf")
class MaskHead(keras.layers.Layer):
    """Predicts mask logits of each class (He et al., 2017, figure 4; detectron2's MaskRCNNConvUpsampleHead).

    Its layers are `convs` 3×3 convolutions with ReLU, a 2×2 transposed one of stride 2 with ReLU, and 1×1.

    Args:
        classes: number C of classes.
        channels: width of the convolutions.
        convs: 4 with a pyramid, 0 on res5.
    """

    def __init__(self, classes, channels, convs, **kwargs):
        super().__init__(**kwargs)
        self.classes, self.channels, self.convs = classes, channels, convs
        hidden = {"kernel_initializer": keras.initializers.VarianceScaling(2.0, "fan_out", "untruncated_normal")}
        hidden["activation"] = "relu"
        self.hidden = [
            keras.layers.Conv2D(channels, 3, padding="same", name=f"conv{i}", **hidden) for i in range(convs)
        ]
        self.upsampling = keras.layers.Conv2DTranspose(channels, 2, 2, name="upsampling", **hidden)
        small = keras.initializers.RandomNormal(stddev=0.001)
        self.prediction = keras.layers.Conv2D(classes, 1, kernel_initializer=small, name="prediction")

    def build(self, input_shape):
        shape = tuple(input_shape[-3:])
        for layer in (*self.hidden, self.upsampling, self.prediction):
            layer.build((None, *shape))
            shape = (*shape[:2], self.channels)

    def call(self, maps):
        shape = tf.shape(maps)
        x = tf.reshape(maps, [-1, *maps.shape[2:]])  # (B · R, s, s, C)
        for layer in (*self.hidden, self.upsampling, self.prediction):
            x = layer(x)
        return tf.cast(tf.reshape(x, [shape[0], shape[1], *x.shape[1:]]), tf.float32)  # (B, R, 2 s, 2 s, classes)

    def get_config(self):
        config = {"classes": self.classes, "channels": self.channels, "convs": self.convs}
        return {**super().get_config(), **config}


def split_at_p4(backbone):
    """Splits a backbone at P4: returns models up to P4 and from P4 to P5. They share its layers.

    Args:
        backbone: a functional model with P4 and P5 by name (`pyramid_level_inputs` or `pyramid_outputs`). P5 must be
            computed from P4 alone, as in a ResNet. Its last stage must have stride 2 and take maps of 14×14.

    Raises:
        UserError: P5 is not computed from P4 alone.
    """
    levels = pyramid(backbone, ("P4", "P5")).output
    try:
        stage = keras.Model(levels["P4"], levels["P5"], name=f"{backbone.name}_res5")
    except ValueError as error:
        raise UserError(
            "backbone", f"{backbone.name} does not compute P5 from P4 alone.", "Use detector.neck: fpn."
        ) from error
    return pyramid(backbone, ("P4",)), stage
