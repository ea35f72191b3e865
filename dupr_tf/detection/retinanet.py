"""KerasCV's RetinaNet on a pre-trained backbone, with a feature pyramid and heads of any width.

KerasCV's last release is 0.9.0. Its label encoder, losses, their normalisation by the number of positive anchors, and
per-class NMS are used. Other parts are replaced for these reasons:

* Its pyramid and heads have 256 channels and cannot be resized.
* Its `get_config` omits the pyramid.
* Its anchors and decoder require the image size when the graph is built.
* Its losses are silently summed over the devices of a strategy.
"""

from __future__ import annotations

import keras
import keras_cv
import numpy as np
import tensorflow as tf

from dupr_tf.detection.detector import Detector, check_image_size
from dupr_tf.detection.devices import DeviceShare
from dupr_tf.models.layers import FusedBatchNormalization

LEVELS = ("P3", "P4", "P5")  # levels of the backbone; the pyramid adds P6 and P7
ANCHORS_PER_CELL = 9
BOX_FORMAT = "xyxy"
BOX_DEVIATIONS = [0.1, 0.1, 0.2, 0.2]  # divisors of box deltas, KerasCV's


class DenseDetector(Detector):
    """Losses and detections that the RetinaNets of KerasCV and KerasHub share."""

    def compile(self, optimizer, **kwargs):
        """Compiles with KerasCV's focal and smooth L1 loss; no XLA, as its label encoder and NMS gain nothing."""
        focal = DeviceShare(keras_cv.losses.FocalLoss(from_logits=True, reduction="sum"))
        smooth = DeviceShare(keras_cv.losses.SmoothL1Loss(l1_cutoff=1.0, reduction="sum"))
        defaults = {"classification_loss": focal, "box_loss": smooth, "jit_compile": False}
        super().compile(optimizer=optimizer, **(defaults | kwargs))
        # If the first step created variables, Keras would trace it twice, and fail on several devices.
        self.optimizer.build(self.trainable_variables)
        self._build_loss_logs()

    def predict_step(self, data):
        """Returns detections of a batch; boxes are clipped to the image if the batch has `image_sizes`."""
        data = batch_of(data)
        images = images_of(data)
        found = self.decode_predictions(self(images, training=False), images)
        sizes = data.get("image_sizes") if isinstance(data, dict) else None
        return found if sizes is None else clipped(found, sizes)


@keras.saving.register_keras_serializable("dupr_tf")
class RetinaNet(DenseDetector, keras_cv.models.RetinaNet):
    """KerasCV's RetinaNet. Images are RGB in 0–255, (B, H, W, 3); the backbone normalises them itself.

    Anchors, targets (IoU 0.5 and 0.4), focal loss and smooth L1 are those of Focal Loss for Dense Object Detection
    (Lin et al., 2018). Smooth L1 turns linear at 1, as in KerasCV.

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

    def __init__(
        self,
        backbone,
        class_names,
        image_size,
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
        classes, prior = len(class_names), float(-np.log((1 - 0.01) / 0.01))
        super().__init__(
            backbone=backbone,
            num_classes=classes,
            bounding_box_format=BOX_FORMAT,
            anchor_generator=pyramid_anchors(anchor_scale),
            feature_pyramid=FeaturePyramid(fpn_channels, fpn_norm, name="feature_pyramid"),
            classification_head=PredictionHead(
                ANCHORS_PER_CELL * classes, head_channels, head_convs, prior, name="class_head"
            ),
            box_head=PredictionHead(ANCHORS_PER_CELL * 4, head_channels, head_convs, name="box_head"),
            prediction_decoder=per_class_nms(score_threshold, nms_iou, max_detections),
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

    @classmethod
    def from_experiment(cls, backbone, class_names, config):
        """Builds the RetinaNet of `config.detector`: squares of `data.image_size`, or any size with `short_sides`."""
        detector = config.detector
        return cls(
            backbone,
            class_names,
            None if detector.short_sides else config.data.image_size,
            fpn_channels=detector.fpn_channels,
            fpn_norm=detector.fpn_norm,
            head_channels=detector.head_channels,
            head_convs=detector.head_convs,
            anchor_scale=detector.anchor_scale or 4.0,
            norm=detector.norm,
            score_threshold=detector.score_threshold,
            nms_iou=detector.nms_iou,
            max_detections=detector.max_detections,
            test_short_side=detector.side_at_test,
            max_long_side=detector.max_long_side,
        )

    def _build_loss_logs(self):
        """Computes the losses of an empty image of 32 px once, because Keras creates its loss logs then."""
        images = tf.zeros([1, 32, 32, 3])
        count = sum(len(level) for level in self.anchor_generator(image_shape=(32, 32, 3)).values())
        labels = {"boxes": tf.fill([1, 1, 4], -1.0), "classes": tf.fill([1, 1], -1.0)}
        outputs = {"box": tf.zeros([1, count, 4]), "classification": tf.zeros([1, count, self.num_classes])}
        self.compute_loss(images, labels, outputs, None)
        self.reset_metrics()

    def call(self, inputs, training=None, mask=None):
        # KerasCV's steps pass the bare images but its graph has a dict; Keras would warn at every trace.
        return super().call({"images": images_of(inputs)}, training=training, mask=mask)

    def train_step(self, data):
        data = batch_of(data)
        labels = {name: data["bounding_boxes"][name] for name in ("boxes", "classes")}  # KerasCV rejects others
        return super().train_step((data["images"], labels))

    def decode_predictions(self, predictions, images):
        """Decodes as KerasCV does, for images of any size. `boxes` and `classes` from `num_detections` on are -1."""
        anchors = tf.concat(list(self.anchor_generator(image_shape=tf.shape(images)[1:]).values()), axis=0)
        boxes = decoded(predictions["box"], anchors)  # (B, anchors, 4)
        return self.prediction_decoder(boxes, predictions["classification"])


@keras.saving.register_keras_serializable("dupr_tf")
class FeaturePyramid(keras.layers.Layer):
    """Feature Pyramid Network (Lin et al., 2017) of RetinaNet, with inputs P3 to P5 and outputs P3 to P7.

    Args:
        channels: channels of every output level.
        norm: batch normalisation after the lateral and the output convolutions, as in the paper.
    """

    def __init__(self, channels, norm=True, **kwargs):
        super().__init__(**kwargs)
        self.channels, self.norm = channels, norm
        self.lateral = {level: self._conv(1, name=f"lateral_{level}") for level in LEVELS}
        self.output_convs = {level: self._conv(3, name=f"output_{level}") for level in LEVELS}
        # No normalisation here: at P7 a small image has four cells.
        self.p6, self.p7 = (self._conv(3, strides=2, norm=False, name=name) for name in ("P6", "P7"))

    def _conv(self, kernel, name, strides=1, norm=None):
        norm = self.norm if norm is None else norm
        conv = keras.layers.Conv2D(
            self.channels,
            kernel,
            strides,
            padding="same",
            use_bias=not norm,
            kernel_initializer="lecun_uniform",
            name=f"{name}_conv",
        )
        layers = [conv]
        if norm:
            layers.append(FusedBatchNormalization(momentum=0.9, epsilon=1e-5, name=f"{name}_bn"))
        return keras.Sequential(layers, name=name)

    def build(self, input_shape):
        for level in LEVELS:
            self.lateral[level].build((None, None, None, input_shape[level][-1]))
            self.output_convs[level].build((None, None, None, self.channels))
        self.p6.build((None, None, None, input_shape["P5"][-1]))
        self.p7.build((None, None, None, self.channels))
        super().build(input_shape)

    def call(self, inputs, training=False):
        p5 = self.lateral["P5"](inputs["P5"], training=training)  # (B, S/32, S/32, channels)
        p4 = self.lateral["P4"](inputs["P4"], training=training) + _doubled(p5)
        p3 = self.lateral["P3"](inputs["P3"], training=training) + _doubled(p4)
        merged = dict(zip(LEVELS, (p3, p4, p5), strict=True))
        outputs = [self.output_convs[level](merged[level], training=training) for level in LEVELS]
        p6 = self.p6(inputs["P5"])
        return [*outputs, p6, self.p7(keras.ops.relu(p6))]

    def compute_output_shape(self, input_shape):
        def halved(shape, times):
            sides = [None if side is None else -(-side // 2**times) for side in shape[1:3]]
            return (shape[0], *sides, self.channels)

        return [halved(input_shape[level], 0) for level in LEVELS] + [halved(input_shape["P5"], n) for n in (1, 2)]

    def get_config(self):
        return {**super().get_config(), "channels": self.channels, "norm": self.norm}


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
        super().build(input_shape)

    def call(self, inputs):
        for layer in self.hidden:
            inputs = layer(inputs)
        return self.prediction(inputs)  # (B, h, w, filters)

    def compute_output_shape(self, input_shape):
        return (*input_shape[:-1], self.filters)

    def get_config(self):
        own = {"filters": self.filters, "channels": self.channels, "convs": self.convs, "bias": self.bias}
        return {**super().get_config(), **own}


@keras.saving.register_keras_serializable("dupr_tf")
class Anchors(keras_cv.layers.AnchorGenerator):
    """KerasCV's anchors, for images whose size may be unknown until the graph runs."""

    def __call__(self, image=None, image_shape=None):
        height, width = tf.unstack((tf.shape(image) if image_shape is None else tf.convert_to_tensor(image_shape))[:2])
        return {level: _anchors_of(one, height, width) for level, one in self.anchor_generators.items()}


def _anchors_of(generator, height, width):
    """Returns (h·w·K, 4) xyxy, clipped: cells row by row, at each the sizes (three per octave) times the shapes."""
    shapes = tf.sqrt(tf.constant(generator.aspect_ratios, tf.float32))  # width / height is the ratio
    sizes = tf.constant([generator.sizes * scale for scale in generator.scales], tf.float32)[:, None]
    half = tf.reshape(tf.stack([sizes * shapes, sizes / shapes], axis=-1), [1, 1, -1, 2]) / 2  # x, y

    def centres(side):
        return (tf.cast(tf.range(-(-side // generator.stride)), tf.float32) + 0.5) * generator.stride

    centre = tf.stack(tf.meshgrid(centres(width), centres(height)), axis=-1)[:, :, None]  # (h, w, 1, 2)
    boxes = tf.reshape(tf.concat([centre - half, centre + half], axis=-1), [-1, 4])
    return tf.clip_by_value(boxes, 0.0, tf.cast(tf.stack([width, height, width, height]), tf.float32))


def pyramid_anchors(scale):
    """Creates KerasCV's default anchors if `scale` is 4: three sizes times three shapes at every cell of P3 to P7."""
    strides = [2**level for level in range(3, 8)]
    return Anchors(
        bounding_box_format=BOX_FORMAT,
        sizes=[float(scale * stride) for stride in strides],
        scales=[2 ** (third / 3) for third in range(3)],
        aspect_ratios=[0.5, 1.0, 2.0],
        strides=strides,
        clip_boxes=True,
    )


def per_class_nms(score_threshold, nms_iou, max_detections):
    """Creates KerasCV's layer from boxes (B, n, 4) xyxy and logits (B, n, classes) to the best detections."""
    return keras_cv.layers.MultiClassNonMaxSuppression(
        bounding_box_format=BOX_FORMAT,
        from_logits=True,
        iou_threshold=nms_iou,
        confidence_threshold=score_threshold,
        max_detections=max_detections,
        max_detections_per_class=max_detections,
    )


def decoded(deltas, anchors):
    """Decodes deltas (dy, dx, dh, dw) over their deviations, KerasCV's `center_yxhw`, to boxes (B, n, 4) xyxy."""
    deltas = deltas * tf.constant(BOX_DEVIATIONS)
    sides = anchors[:, 2:] - anchors[:, :2]  # (n, 2) width, height
    centres = (anchors[:, :2] + anchors[:, 2:]) / 2 + deltas[..., 1::-1] * sides
    half = tf.exp(deltas[..., :1:-1]) * sides / 2
    return tf.concat([centres - half, centres + half], axis=-1)


def clipped(found, image_sizes):
    """Clips the boxes of detections to the images' sizes (B, 2) height, width; rows of -1 do not change."""
    ends = tf.cast(tf.gather(image_sizes, [1, 0, 1, 0], axis=1), tf.float32)[:, None]
    boxes = tf.clip_by_value(found["boxes"], 0.0, ends)
    return {**found, "boxes": tf.where(found["classes"][..., None] >= 0, boxes, found["boxes"])}


def batch_of(data):
    """Returns a Keras batch without its tuple: a dict, or images alone."""
    while isinstance(data, tuple | list):
        data = data[0]
    return data


def images_of(data):
    """Returns the images of a batch that is a dict, (images, labels), or images alone."""
    data = batch_of(data)
    return data["images"] if isinstance(data, dict) else data


def _doubled(features):
    """Upsamples by 2 with nearest neighbours."""
    return keras.ops.repeat(keras.ops.repeat(features, 2, axis=1), 2, axis=2)
