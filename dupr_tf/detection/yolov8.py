"""KerasCV's YOLOv8 on a pre-trained backbone: its graph and its box loss. These parts are replaced:

* Its class scores are probabilities, which lose their digits near 0 and 1. They start at 0.5. Here they are logits,
  which start at the prior probability of 0.01.
* Its boxes start 15 strides wide, and small objects overlap them so little that they train nothing for long. Here they
  start at 4 strides, like the anchors of RetinaNet.
* Its assignment takes the 6th power of the complete IoU, by which a box far off (below 0) counts as a good one. It also
  requires the image size when the graph is built.
* Its class loss is a mean over classes, and YOLOv8's is their sum. Its losses are silently summed over the devices of a
  strategy.
* Its non-maximum suppression keeps one class per box, and its decoder requires the image size.
"""

from __future__ import annotations

import re

import keras
import keras_cv
import numpy as np
import tensorflow as tf

from dupr_tf.detection.dense import PRIOR_LOGIT, AnchorFree
from dupr_tf.detection.detector import batch_of, check_image_size
from dupr_tf.detection.parts.alignment import align
from dupr_tf.detection.parts.anchors import cell_centres
from dupr_tf.detection.parts.box_matching import ground_truth
from dupr_tf.detection.parts.boxes import FORMAT

STRIDES = (8, 16, 32)  # of P3, P4 and P5
BINS = 16  # of the distribution of each side's distance; KerasCV has no other number
FIRST_DISTANCE = 2.0  # strides from a point to the sides of its box at the start
BOX_WEIGHT, CLASS_WEIGHT = 7.5, 0.5  # of the losses, as in YOLOv8 and KerasCV


@keras.saving.register_keras_serializable("dupr_tf")
class YOLOv8(AnchorFree, keras_cv.models.YOLOV8Detector):
    """KerasCV's YOLOv8. Images are RGB in 0–255, (B, H, W, 3); the backbone normalises them itself.

    It has no anchors: every cell of P3 to P5 predicts a box around its centre. The widths of pyramid and heads follow
    from those of P3 to P5. The boxes are trained by the complete IoU loss alone, as in KerasCV; YOLOv8 adds a loss of
    the distributions.

    Args:
        backbone: a functional model with `pyramid_level_inputs` for P3, P4 and P5.
        class_names: names of the classes 0, 1, …
        image_size: side of its square input, a multiple of 32. None: any height and width, multiples of 32.
        fpn_depth: convolutions in the blocks on the way down the pyramid: 1 to 3.
        norm: mode of batch norms, as in `set_norm`: `"train"`, `"sync"` (all) or `"frozen"` (backbone).
        score_threshold, nms_iou, max_detections: settings of `predict`; NMS is per class.
        test_short_side, max_long_side: image size at test, for the input pipeline, if `image_size` is None.
        name, trainable: as in every Keras model.
    """

    SETTINGS = (
        "image_size", "fpn_depth", "norm", "score_threshold", "nms_iou", "max_detections", "test_short_side",
        "max_long_side", "name", "trainable",
    )  # fmt: skip

    def __init__(
        self,
        backbone,
        class_names,
        image_size=None,
        fpn_depth=2,
        norm="train",
        score_threshold=0.05,
        nms_iou=0.5,
        max_detections=100,
        test_short_side=None,
        max_long_side=1333,
        name="yolov8",
        trainable=True,
    ):
        check_image_size(image_size)
        super().__init__(
            backbone=backbone,
            num_classes=len(class_names),
            bounding_box_format=FORMAT,
            fpn_depth=fpn_depth,
            name=name,
            trainable=trainable,
        )
        self.class_names, self.image_size, self.norm = tuple(class_names), image_size, norm
        self.score_threshold, self.nms_iou, self.max_detections = score_threshold, nms_iou, max_detections
        self.test_short_side, self.max_long_side = test_short_side, max_long_side
        for level in range(1, 4):
            self.get_layer(f"yolo_v8_head_{level}_classifier").activation = keras.activations.linear
            self.get_layer(f"yolo_v8_head_{level}_class_3_conv").bias.assign([PRIOR_LOGIT] * len(class_names))
            self.get_layer(f"yolo_v8_head_{level}_box_3_conv").bias.assign(np.tile(first_bins(), 4))
        self._set_norms(*self._own_norms())
        self._create_means(("box_loss", "classification_loss"))

    def class_layers(self):
        return [self.get_layer(f"yolo_v8_head_{level}_class_3_conv") for level in range(1, 4)]

    def class_widths(self):
        """Lists the layers before those of the classes. They are as wide as P3, or as the number of classes."""
        names = [layer.name for layer in self.layers]
        return [self.get_layer(name) for name in names if re.search(r"_class_[12]_", name)]

    def losses(self, data, training):
        """Computes both losses over the sum of the target scores of the batch, which counts as 1 at least.

        Args:
            data: a batch {"images": (B, H, W, 3), "bounding_boxes": {"boxes": (B, M, 4) px, "classes": (B, M)}}; rows
                of padding hold -1.
            training: True if batch norm uses and records the statistics of the batch.

        Returns:
            {name: () float32}.
        """
        batch = batch_of(data)
        images = batch["images"]
        outputs = self(images, training=training)
        boxes, points = self._decode(outputs["boxes"], images)
        truth = ground_truth(batch.get("bounding_boxes"), tf.shape(images)[0])
        true_boxes, scores = align(tf.sigmoid(outputs["classes"]), boxes, points, truth)
        strength = tf.reduce_sum(scores, -1)  # (B, N)
        total = tf.maximum(tf.reduce_sum(strength), 1.0)
        apart = 1.0 - keras_cv.bounding_box.compute_ciou(true_boxes, boxes, FORMAT)
        differences = tf.nn.sigmoid_cross_entropy_with_logits(scores, outputs["classes"])
        return {
            "box_loss": BOX_WEIGHT * tf.reduce_sum(strength * apart) / total,
            "classification_loss": CLASS_WEIGHT * tf.reduce_sum(differences) / total,
        }

    def decode_predictions(self, predictions, images, sizes=None):
        """Returns `boxes`, `classes`, `confidence`, `num_detections` of images (B, H, W, 3), as `RetinaNet` does."""
        return self._suppress(self._decode(predictions["boxes"], images)[0], predictions["classes"], sizes)

    def _decode(self, logits, images):
        """Returns boxes (B, N, 4), px, of the logits (B, N, 64), and their points (N, 2), px.

        The distance from a point to a side is the mean of its distribution over 0 to 15 strides.
        """
        points, strides = cell_centres(*tf.unstack(tf.shape(images)[1:3]), STRIDES)
        shares = tf.nn.softmax(tf.reshape(logits, [tf.shape(logits)[0], -1, 4, BINS]))
        distances = tf.reduce_sum(shares * tf.range(BINS, dtype=tf.float32), -1) * strides  # (B, N, 4)
        return tf.concat([points - distances[..., :2], points + distances[..., 2:]], -1), points


def first_bins():
    """Returns the (BINS,) float32 logits of a geometric distribution with the mean `FIRST_DISTANCE`."""
    return np.arange(BINS, dtype=np.float32) * np.log(FIRST_DISTANCE / (1 + FIRST_DISTANCE))
