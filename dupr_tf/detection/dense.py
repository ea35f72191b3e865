"""Base of the detectors with one stage of KerasCV and KerasHub: labels, losses and detections at every anchor."""

from __future__ import annotations

import math

import keras
import tensorflow as tf

from dupr_tf.detection.detector import DetectorMixin, SumOfLosses, batch_of, images_of, photos_of
from dupr_tf.detection.parts.boxes import clip, sides, suppress
from dupr_tf.detection.scaling import pad_to_stride
from dupr_tf.errors import UserError

LEVELS = ("P3", "P4", "P5")  # levels of the backbone; the pyramid adds P6 and P7
PRIOR_LOGIT = math.log(0.01 / 0.99)  # at the start, the probability of an object at an anchor is 0.01


class DeviceShare(keras.losses.Loss):
    """Divides a summed loss by the number of devices of the strategy, because Keras adds up their gradients.

    Args:
        loss: a Keras loss with the reduction "sum".
        factor: a number that multiplies the loss.
    """

    def __init__(self, loss, factor=1.0):
        super().__init__(name=loss.name, reduction="sum")
        self.loss, self.factor = loss, factor

    def __call__(self, y_true, y_pred, sample_weight=None):
        share = self.factor / tf.distribute.get_strategy().num_replicas_in_sync
        return share * self.loss(y_true, y_pred, sample_weight)


class OneStage(DetectorMixin):
    """Mixin for the detectors of KerasCV and KerasHub, whose graph predicts boxes and logits of classes.

    A subclass has `decode_predictions`, which turns these into detections.
    """

    def call(self, inputs, training=None, mask=None):
        # The steps of KerasCV and KerasHub pass the bare images; KerasCV's graph has a dict.
        images = images_of(inputs)
        if tf.executing_eagerly() and not training and not isinstance(images, keras.KerasTensor):
            images = pad_to_stride(tf.cast(images, tf.float32))  # a photo of any size
        outputs = super().call(self._graph_inputs(images), training=training, mask=mask)
        return {name: tf.cast(output, tf.float32) for name, output in outputs.items()}

    def _graph_inputs(self, images):
        """Returns the images as the graph takes them."""
        return images

    def predict_step(self, data):
        """Returns detections of images of any size, or of a batch; boxes are clipped to the image."""
        images, sizes = photos_of(data)
        detections = self.decode_predictions(self(images, training=False), images, sizes)
        boxes = clip(detections["boxes"], sizes)
        return {**detections, "boxes": tf.where(detections["classes"][..., None] >= 0, boxes, -1.0)}

    def _suppress(self, boxes, logits, image_sizes=None):
        """Returns the detections of boxes (B, n, 4) and logits (B, n, C). Those in the padding alone are left out."""
        scores = tf.sigmoid(logits)
        if image_sizes is not None:
            visible = tf.reduce_min(sides(clip(boxes, image_sizes)), -1, keepdims=True) > 0.0  # (B, n, 1)
            scores = tf.where(visible, scores, 0.0)
        return suppress(boxes[:, :, None], scores, self.score_threshold, self.nms_iou, self.max_detections)


class FixedSize(OneStage):
    """Mixin for the detectors of KerasHub, whose graph takes squares of one size."""

    def resize_input(self, size):
        if size != self.image_size:
            problem = f"This detector takes images of {self.image_size} px only."
            raise UserError("--image-size", problem, "Leave the size out, or use detector.kind retinanet.")

    def predict_step(self, data):
        if images_of(data).shape[1:3] != (self.image_size, self.image_size):
            problem = f"Expected images of {self.image_size} px, received shape {images_of(data).shape}."
            raise UserError("images", problem, "Use dupr_tf.Detector, which scales images.")
        return super().predict_step(data)


class AnchorFree(SumOfLosses, OneStage):
    """Mixin for the detectors whose losses are not those of KerasCV or KerasHub, so that these are compiled away."""

    def compile(self, optimizer, **kwargs):
        super().compile(optimizer, **({"box_loss": None, "classification_loss": None} | kwargs))


class DenseDetector(OneStage):
    """Detectors with logits and box deltas at every anchor.

    A subclass has `_anchors(images)`, which returns all anchors (n, 4), `_targets(images, labels)`, and the names
    `BOXES` and `CLASSES` of its outputs.
    """

    def compile(self, optimizer, **kwargs):
        """Compiles with the focal loss (Lin et al., 2018) and a smooth L1 loss that becomes linear at 1."""
        focal = keras.losses.BinaryFocalCrossentropy(apply_class_balancing=True, from_logits=True, reduction="sum")
        losses = {
            # Keras takes the mean over classes, and the paper their sum.
            "classification_loss": DeviceShare(focal, float(len(self.class_names))),
            "box_loss": DeviceShare(keras.losses.Huber(delta=1.0, reduction="sum")),
        }
        super().compile(optimizer, **(losses | kwargs))
        self._build_loss_logs()

    def _build_loss_logs(self):
        """Computes the losses of an empty image of 128 px once, because Keras creates its loss logs then."""
        images = tf.zeros([1, 128, 128, 3])
        count = len(self._anchors(images))
        labels = {"boxes": tf.fill([1, 1, 4], -1.0), "classes": tf.fill([1, 1], -1.0)}
        outputs = {self.BOXES: tf.zeros([1, count, 4]), self.CLASSES: tf.zeros([1, count, len(self.class_names)])}
        self.compute_loss(images, labels, outputs, None)
        self.reset_metrics()

    def train_step(self, data):
        images, boxes, classes = labels_of(batch_of(data))
        return super().train_step((images, {"boxes": boxes, "classes": classes}))

    def compute_loss(self, x, y, y_pred, sample_weight=None, **kwargs):
        """Computes both losses over the number of positive anchors of the batch (Lin et al., 2018, section 4.1).

        The divisor is 1 if no anchor is positive, so that a batch without boxes trains the background. The losses of
        KerasCV and KerasHub are 0 then.

        Args:
            x: (B, H, W, 3) images.
            y: "boxes" (B, M, 4) in pixels and "classes" (B, M); rows of padding hold -1.
            y_pred: deltas (B, anchors, 4) under `BOXES` and logits (B, anchors, C) under `CLASSES`.
            sample_weight: ignored.

        Returns:
            () float32.
        """
        deltas, classes = self._targets(x, y)
        classes = tf.reshape(classes, tf.shape(deltas)[:2])  # (B, anchors); -1 is background, -2 does not count
        positive = tf.cast(classes > -1.0, tf.float32)
        count = tf.maximum(tf.reduce_sum(positive), 1.0)
        targets = {self.BOXES: deltas, self.CLASSES: tf.one_hot(tf.cast(classes, tf.int32), len(self.class_names))}
        weights = {self.BOXES: positive / count, self.CLASSES: tf.cast(classes > -2.0, tf.float32) / count}
        return keras.Model.compute_loss(self, x, targets, y_pred, weights, **kwargs)


def labels_of(batch):
    """Returns the images, boxes (B, M, 4) and classes (B, M) of a batch. Without boxes, M is 1 and both hold -1."""
    images, labels = batch["images"], batch.get("bounding_boxes")
    if labels is None:
        count = tf.shape(images)[0]
        labels = {"boxes": tf.zeros([count, 0, 4]), "classes": tf.zeros([count, 0])}
    missing = tf.cast(tf.shape(labels["boxes"])[1] == 0, tf.int32)  # the label encoders fail without any row
    boxes, classes = (
        tf.pad(labels[name], [[0, 0], [0, missing], *more], constant_values=-1)
        for name, more in (("boxes", [[0, 0]]), ("classes", []))
    )
    return images, boxes, classes
