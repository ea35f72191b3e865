"""KerasCV's RetinaNet on a pre-trained backbone, with a feature pyramid and heads of any width.

KerasCV's last release is 0.9.0. Only this file and `yolov8.py` import it. Its graph and its label encoder with matcher
and box coding are used. These parts are replaced:

* Its pyramid and heads have 256 channels and cannot be resized.
* Its `get_config` omits the pyramid.
* Its anchors and decoder require the image size when the graph is built.
* Its losses are silently summed over the devices of a strategy. They are 0 for a batch without boxes.
"""

from __future__ import annotations

import keras
import keras_cv
import tensorflow as tf

from dupr_tf.detection.dense import PRIOR_LOGIT, DenseDetector
from dupr_tf.detection.detector import check_image_size
from dupr_tf.detection.parts.anchors import grid_anchors
from dupr_tf.detection.parts.boxes import FORMAT, clip, decode
from dupr_tf.detection.parts.pyramid import FeaturePyramid

ANCHORS_PER_CELL = 9


@keras.saving.register_keras_serializable("dupr_tf")
class RetinaNet(DenseDetector, keras_cv.models.RetinaNet):
    """KerasCV's RetinaNet. Images are RGB in 0–255, (B, H, W, 3); the backbone normalises them itself.

    Anchors, targets (IoU 0.5 and 0.4) and focal loss are those of Focal Loss for Dense Object Detection (Lin et al.,
    2018). The box loss is KerasCV's: the mean over the coordinates of a smooth L1 that turns linear at 1.

    Args:
        backbone: a functional model with `pyramid_level_inputs` for P3, P4 and P5.
        class_names: names of the classes 0, 1, …
        image_size: side of its square input, a multiple of 32. None: any height and width, multiples of 32.
        fpn_channels: width of the feature pyramid.
        anchor_scale: side of the smallest anchor of a level, in strides: 4, or less for small images.
        fpn_norm: batch normalisation after the lateral and output convolutions of P3 to P5.
        head_channels: width of the class and box heads, which have no normalisation.
        head_convs: 3×3 convolutions in each head before the one that predicts.
        norm: mode of batch norms, as in `set_norm`: `"train"`, `"sync"` (backbone, pyramid) or `"frozen"` (backbone).
        score_threshold, nms_iou, max_detections: settings of `predict`; NMS is per class.
        test_short_side, max_long_side: image size at test, for the input pipeline, if `image_size` is None.
        name, trainable: as in every Keras model.
    """

    SETTINGS = (
        "image_size", "fpn_channels", "fpn_norm", "head_channels", "head_convs", "anchor_scale", "norm",
        "score_threshold", "nms_iou", "max_detections", "test_short_side", "max_long_side", "name", "trainable",
    )  # fmt: skip
    BOXES, CLASSES = "box", "classification"

    def __init__(
        self,
        backbone,
        class_names,
        image_size=None,
        fpn_channels=256,
        fpn_norm=True,
        head_channels=256,
        head_convs=4,
        anchor_scale=4.0,
        norm="train",
        score_threshold=0.05,
        nms_iou=0.5,
        max_detections=100,
        test_short_side=None,
        max_long_side=1333,
        name="retinanet",
        trainable=True,
    ):
        check_image_size(image_size)
        classes = len(class_names)
        super().__init__(
            backbone=backbone,
            num_classes=classes,
            bounding_box_format=FORMAT,
            anchor_generator=Anchors(anchor_scale),
            feature_pyramid=FeaturePyramid(fpn_channels, fpn_norm, name="feature_pyramid"),
            classification_head=PredictionHead(
                ANCHORS_PER_CELL * classes, head_channels, head_convs, PRIOR_LOGIT, name="class_head"
            ),
            box_head=PredictionHead(ANCHORS_PER_CELL * 4, head_channels, head_convs, name="box_head"),
            name=name,
            trainable=trainable,
        )
        self.class_names, self.image_size = tuple(class_names), image_size
        self.fpn_channels, self.fpn_norm = fpn_channels, fpn_norm
        self.head_channels, self.head_convs = head_channels, head_convs
        self.anchor_scale, self.norm = anchor_scale, norm
        self.score_threshold, self.nms_iou, self.max_detections = score_threshold, nms_iou, max_detections
        self.test_short_side, self.max_long_side = test_short_side, max_long_side
        self._set_norms(self.feature_pyramid)

    def class_layers(self):
        return [self.classification_head.prediction]

    def _graph_inputs(self, images):
        return {"images": images}

    def _anchors(self, images):
        return tf.concat(list(self.anchor_generator(tf.shape(images)[1:]).values()), axis=0)

    def _targets(self, images, labels):
        return self.label_encoder(images, dict(labels))

    def decode_predictions(self, predictions, images, sizes=None):
        """Decodes as KerasCV does, for images of any size. `boxes` and `classes` from `num_detections` on are -1.

        Args:
            predictions: outputs of the model.
            images: (B, H, W, 3), padded.
            sizes: (B, 2) float32 height and width without padding. If given, no box is outside of them.
        """
        boxes = decode(predictions["box"], self._anchors(images), order="center_yxhw")  # (B, anchors, 4)
        return self._suppress(boxes, predictions["classification"], sizes)


@keras.saving.register_keras_serializable("dupr_tf")
class PredictionHead(keras.layers.Layer):
    """Predicts at all levels with shared convolutions (Lin et al., 2018, section 4.1).

    Its layers are `convs` convolutions with ReLU, then one that predicts.

    Args:
        filters: channels of the prediction.
        channels: channels of the convolutions before it.
        convs: number of these convolutions.
        bias: initial bias of the prediction; for classes the logit of the prior probability of an object.
    """

    def __init__(self, filters, channels, convs, bias=0.0, **kwargs):
        super().__init__(**kwargs)
        self.filters, self.channels, self.convs, self.bias = filters, channels, convs, bias
        self.hidden = [self._conv(channels, activation="relu", name=f"conv{i}") for i in range(convs)]
        self.prediction = self._conv(filters, bias_initializer=keras.initializers.Constant(bias), name="prediction")

    def _conv(self, filters, **kwargs):
        # The deviation is 0.01 for 256 input channels, as in the paper. Narrower heads keep its effect on the signal;
        # at 64 channels, 0.01 would halve it in every layer.
        kernel = keras.initializers.VarianceScaling(0.01**2 * 9 * 256, "fan_in", "untruncated_normal")
        return keras.layers.Conv2D(filters, 3, padding="same", kernel_initializer=kernel, **kwargs)

    def build(self, input_shape):
        for layer in (*self.hidden, self.prediction):
            layer.build(input_shape)
            input_shape = (*input_shape[:-1], self.channels)

    def call(self, inputs):
        for layer in self.hidden:
            inputs = layer(inputs)
        return self.prediction(inputs)  # (B, h, w, filters)

    def get_config(self):
        config = {"filters": self.filters, "channels": self.channels, "convs": self.convs, "bias": self.bias}
        return {**super().get_config(), **config}


class Anchors:
    """Three sizes times three shapes of anchors at every cell of P3 to P7, clipped to the image; KerasCV's at scale 4.

    KerasCV's own generator requires an image whose size is known before the graph runs.

    Args:
        scale: side of the smallest anchor of a level, in strides.
    """

    bounding_box_format = FORMAT  # read by KerasCV's label encoder

    def __init__(self, scale):
        self.scale = scale

    def __call__(self, image_shape):
        """Returns {level: (cells · 9, 4) float32 xyxy} of an image shape (height, width, channels)."""
        height, width = tf.unstack(tf.convert_to_tensor(image_shape)[:2])
        size = tf.cast(tf.stack([height, width]), tf.float32)[None]
        levels = {}
        for level in range(5):
            stride = 8 * 2**level
            sizes = [self.scale * stride * 2 ** (third / 3) for third in range(3)]
            cells = ((side + stride - 1) // stride for side in (height, width))
            anchors = grid_anchors(*cells, stride, sizes, ratios=(2.0, 1.0, 0.5), offset=0.5)
            levels[level] = clip(anchors[None], size)[0]
        return levels
