"""A fully convolutional network for semantic segmentation, with which MoCo evaluates backbones.

It follows Momentum Contrast (He et al., 2020, appendix A.5). It has the convolutions of a ResNet; the 3×3 convolutions
of conv5 have dilation 2 and stride 1, so that the stride is 16. Two 3×3 convolutions of 256 channels and dilation 6
follow, each with batch norm and ReLU. A 1×1 convolution then classifies every cell. The paper does not describe the
upsampling to pixels. Here it is bilinear in training and at test; cell centres lie on the centres of the pixels they
cover.
"""

from __future__ import annotations

import keras
import tensorflow as tf

from dupr_tf.detection.detector import DetectorMixin, images_of, photos_of
from dupr_tf.models.layers import FusedBatchNormalization
from dupr_tf.models.resnet import dilated, pyramid

STRIDE = 16
DILATION = 6  # dilation of the head's 3×3 convolutions
IGNORED = 255  # label of a pixel without a class


@keras.saving.register_keras_serializable("dupr_tf")
class FCN(DetectorMixin, keras.Model):
    """Maps images to the class of every pixel. Images are RGB in 0–255, (B, H, W, 3), sides multiples of 16.

    `fit` takes batches `{"images", "segments" (B, H, W) int32}`; 255 marks pixels to ignore. `predict` returns
    (B, H, W) int32 classes. Calling the model returns the logits, (B, H, W, classes).

    Args:
        backbone: a `ResNetBackbone` that normalises images. With an `output_stride` of 32, it is copied, dilated.
        class_names: names of the classes 0, 1, …
        head_channels: width of the head's 3×3 convolutions.
        head_convs: number of these convolutions.
        norm: "train", "sync" or "frozen", as in `set_norm`; the head's norms are never frozen.
        test_short_side, max_long_side: image size at test, for the input pipeline. None: the image's own.
        name, trainable: as in every Keras model.

    Raises:
        UserError: the backbone cannot be dilated.
    """

    SETTINGS = ("head_channels", "head_convs", "norm", "test_short_side", "max_long_side", "name", "trainable")
    image_size = None  # any size

    def __init__(
        self,
        backbone,
        class_names,
        head_channels=256,
        head_convs=2,
        norm="train",
        test_short_side=None,
        max_long_side=1333,
        name="fcn",
        trainable=True,
    ):
        super().__init__(name=name, trainable=trainable)
        self.backbone = backbone if getattr(backbone, "output_stride", None) == STRIDE else dilated(backbone)
        self.class_names, self.norm = tuple(class_names), norm
        self.head_channels, self.head_convs = head_channels, head_convs
        self.test_short_side, self.max_long_side = test_short_side, max_long_side
        self.features = pyramid(self.backbone, ("P5",))
        self.head = segmentation_head(len(self.class_names), head_channels, head_convs)
        self._set_norms(self.head)
        self.head.build((None, None, None, self.features.output["P5"].shape[-1]))
        self.built = True

    def class_layers(self):
        return [self.head.layers[-1]]

    def call(self, inputs, training=False):
        images = images_of(inputs)
        cells = self.head(self.features(images, training=training)["P5"], training=training)  # (B, H/16, W/16, C)
        # (B, H, W, C) float32; half-pixel centres
        return tf.image.resize(tf.cast(cells, tf.float32), tf.shape(images)[1:3], method="bilinear")

    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
        """Computes the cross-entropy, averaged over pixels not ignored; each device of a strategy has its share."""
        loss = pixel_cross_entropy(y_pred, x["segments"])
        return loss / tf.distribute.get_strategy().num_replicas_in_sync

    def predict_step(self, data):
        height, width = tf.unstack(tf.shape(images_of(data))[1:3])
        classes = tf.argmax(self(photos_of(data)[0], training=False), axis=-1, output_type=tf.int32)
        return classes[:, :height, :width]  # (B, H, W)


def segmentation_head(classes, channels, convs):
    """Builds `convs` 3×3 convolutions of dilation 6 with batch norm and ReLU, then 1×1 to logits; (B, h, w, ·)."""
    layers = []
    for i in range(convs):
        layers += [
            keras.layers.Conv2D(
                channels,
                3,
                padding="same",
                dilation_rate=DILATION,
                use_bias=False,
                kernel_initializer=keras.initializers.VarianceScaling(2.0, "fan_out", "untruncated_normal"),
                name=f"conv{i}",
            ),
            FusedBatchNormalization(momentum=0.9, epsilon=1e-5, name=f"bn{i}"),
            keras.layers.ReLU(name=f"relu{i}"),
        ]
    small = keras.initializers.RandomNormal(stddev=0.01)
    return keras.Sequential(
        [*layers, keras.layers.Conv2D(classes, 1, kernel_initializer=small, name="logits")], name="head"
    )


def pixel_cross_entropy(logits, segments):
    """Computes the mean of -log softmax(logits)[class] over the pixels with a class in a batch; 0 if there are none.

    Args:
        logits: (B, H, W, C) float32.
        segments: (B, H, W) int32 in 0 … C - 1; 255 is ignored.
    """
    counted = tf.cast(segments != IGNORED, tf.float32)
    classes = tf.where(segments != IGNORED, segments, 0)
    losses = tf.nn.sparse_softmax_cross_entropy_with_logits(classes, logits)  # (B, H, W)
    return tf.reduce_sum(losses * counted) / tf.maximum(tf.reduce_sum(counted), 1.0)
