"""KerasHub's RetinaNet on a pre-trained backbone, with the interface of the other detectors; extra `kerashub`.

The graph, anchors, box coding, label encoder and heads are those of KerasHub 0.32. These faults of KerasHub are
corrected:

* Its prior bias is on the box head, and its head kernels start at deviation 0.05 (the first loss is 155 instead of
  5.8).
* The batch norms of its pyramid use their epsilon as momentum, and those of P3 to P5 are never called. The pyramid is
  therefore that of the other detectors.
* Its non-maximum suppression keeps one class per box. Here it is per class, as in the other detectors.
* Its focal loss has no alpha and is a mean over classes. Its losses are 0 for a batch without boxes. The losses are
  therefore those of `DenseDetector`.
"""

from __future__ import annotations

import keras
import keras_hub
import numpy as np
import tensorflow as tf

from dupr_tf.detection.dense import LEVELS, PRIOR_LOGIT, DenseDetector, FixedSize
from dupr_tf.detection.parts.boxes import FORMAT, decode
from dupr_tf.detection.parts.pyramid import FeaturePyramid
from dupr_tf.models.resnet import pyramid


class PyramidBackbone(keras.Model):
    """The backbone that KerasHub's detector requires: a functional model with the pyramid P3 to P7 and its levels."""

    min_level, max_level = 3, 7

    def __init__(self, backbone, channels, norm, image_size):
        images = keras.Input((image_size, image_size, 3), name="images")
        feature_pyramid = FeaturePyramid(channels, norm, name="feature_pyramid")
        levels = feature_pyramid(pyramid(backbone, LEVELS)(images))
        super().__init__(images, {f"P{3 + i}": level for i, level in enumerate(levels)}, name="pyramid")
        self.feature_pyramid, self.image_shape = feature_pyramid, (image_size, image_size, 3)


@keras.saving.register_keras_serializable("dupr_tf")
class KerasHubRetinaNet(FixedSize, DenseDetector, keras_hub.models.RetinaNetObjectDetector):
    """KerasHub's RetinaNet. Images are RGB in 0–255, (B, S, S, 3); the backbone normalises them itself.

    Args:
        backbone: a functional model with P3, P4 and P5, as `pyramid` takes.
        class_names: names of the classes 0, 1, …
        image_size: side S of its input, a multiple of 32. KerasHub's anchors require a fixed size.
        fpn_channels, fpn_norm, head_convs, anchor_scale, norm: as in `RetinaNet`.
        score_threshold, nms_iou, max_detections: settings of `predict`; NMS is per class.
        name, trainable: as in every Keras model.
    """

    SETTINGS = (
        "image_size", "fpn_channels", "fpn_norm", "head_convs", "anchor_scale", "norm", "score_threshold", "nms_iou",
        "max_detections", "name", "trainable",
    )  # fmt: skip
    BOXES, CLASSES = "bbox_regression", "cls_logits"

    def __init__(
        self,
        backbone,
        class_names,
        image_size,
        fpn_channels=256,
        fpn_norm=True,
        head_convs=4,
        anchor_scale=4.0,
        norm="train",
        score_threshold=0.05,
        nms_iou=0.5,
        max_detections=100,
        name="kerashub_retinanet",
        trainable=True,
    ):
        anchors = keras_hub.layers.AnchorGenerator(
            FORMAT, min_level=3, max_level=7, num_scales=3, aspect_ratios=[0.5, 1.0, 2.0], anchor_size=anchor_scale
        )
        levels = PyramidBackbone(backbone, fpn_channels, fpn_norm, image_size)
        super().__init__(
            backbone=levels,
            num_classes=len(class_names),
            bounding_box_format=FORMAT,
            anchor_generator=anchors,
            pre_logits_num_conv_layers=head_convs,
            compile=False,
            name=name,
            trainable=trainable,
        )
        self.levels, self.backbone = levels, backbone
        self.class_names, self.image_size = tuple(class_names), image_size
        self.fpn_channels, self.fpn_norm = fpn_channels, fpn_norm
        self.head_convs, self.anchor_scale, self.norm = head_convs, anchor_scale, norm
        self.score_threshold, self.nms_iou, self.max_detections = score_threshold, nms_iou, max_detections
        for head, bias in ((self.box_head, 0.0), (self.classification_head, PRIOR_LOGIT)):
            initialize_head(head, bias)
        self.test_short_side, self.max_long_side = None, image_size
        self._set_norms(levels.feature_pyramid)

    def class_layers(self):
        return [self.classification_head.prediction_layer]

    def _anchors(self, images):
        return tf.concat(list(self.anchor_generator(images).values()), axis=0)

    def _targets(self, images, labels):
        return self.label_encoder(images=images, gt_boxes=labels["boxes"], gt_classes=labels["classes"])

    def decode_predictions(self, predictions, data, sizes=None):
        """Returns `boxes`, `classes`, `confidence`, `num_detections` of images (B, S, S, 3), as `RetinaNet` does."""
        boxes = decode(predictions["bbox_regression"], self._anchors(data), None)
        return self._suppress(boxes, predictions["cls_logits"], sizes)


def initialize_head(head, bias):
    """Initialises a head as in RetinaNet's paper: kernels of deviation 0.01, and this bias in the prediction layer."""
    kernel = keras.initializers.RandomNormal(stddev=0.01)
    for layer in (*head.conv_layers, head.prediction_layer):
        layer.kernel.assign(kernel(layer.kernel.shape))
        layer.bias.assign(np.zeros(layer.bias.shape, np.float32))
    head.prediction_layer.bias.assign(np.full(head.prediction_layer.bias.shape, bias, np.float32))
