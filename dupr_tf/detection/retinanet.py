"""A RetinaNet on a pre-trained backbone: KerasCV's, with a feature pyramid and heads of any width.

With `rcnn/`, which takes two functions, the only importer of keras_cv, whose last release is 0.9.0. From it come
anchors, label encoder, losses, their normalisation by the number of positive anchors, and per-class NMS. Its own pyramid and heads have 256
channels and cannot be resized, and its `get_config` forgets the pyramid.
"""

from __future__ import annotations

from pathlib import Path

import keras
import keras_cv
import numpy as np
import tensorflow as tf

from dupr_tf.data.detection import letterbox
from dupr_tf.models.batch_norm import FusedBatchNormalization
from dupr_tf.weights.loading import read_keras

LEVELS = ("P3", "P4", "P5")  # of the backbone; the pyramid adds P6 and P7
ANCHORS_PER_CELL = 9
BOX_FORMAT = "xyxy"


@keras.saving.register_keras_serializable("dupr_tf")
class RetinaNet(keras_cv.models.RetinaNet):
    """KerasCV's RetinaNet. Images are RGB in 0–255, (B, S, S, 3); the backbone normalises them itself.

    Args:
        backbone: a functional model with `pyramid_level_inputs` for P3, P4 and P5.
        class_names: names of the classes 0, 1, …
        image_size: side S of its input, a multiple of 32.
        fpn_channels: width of the feature pyramid.
        anchor_scale: side of the smallest anchor of a level, in strides: 4, or less for small images.
        fpn_norm: batch normalisation after the lateral and output convolutions of P3 to P5.
        head_channels: width of the class and box heads, which have no normalisation.
        head_convs: 3×3 convolutions in each head before the one that predicts.
        freeze_norm: the backbone's batch normalisation keeps its moving statistics and its parameters.
        score_threshold, nms_iou, max_detections: what `predict` returns; NMS is per class.
        name, trainable: as in every Keras model.
    """

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
        freeze_norm=False,
        score_threshold=0.05,
        nms_iou=0.5,
        max_detections=100,
        name="retinanet",
        trainable=True,
    ):
        if image_size % 32:
            raise ValueError(f"Expected image_size, a multiple of 32, received {image_size}. Fix: 224 or 256.")
        classes, prior = len(class_names), float(-np.log((1 - 0.01) / 0.01))
        super().__init__(
            backbone=backbone,
            num_classes=classes,
            bounding_box_format=BOX_FORMAT,
            anchor_generator=_anchors(anchor_scale),
            feature_pyramid=FeaturePyramid(fpn_channels, fpn_norm, name="feature_pyramid"),
            classification_head=PredictionHead(
                ANCHORS_PER_CELL * classes, head_channels, head_convs, prior, name="class_head"
            ),
            box_head=PredictionHead(ANCHORS_PER_CELL * 4, head_channels, head_convs, name="box_head"),
            prediction_decoder=keras_cv.layers.MultiClassNonMaxSuppression(
                bounding_box_format=BOX_FORMAT,
                from_logits=True,
                iou_threshold=nms_iou,
                confidence_threshold=score_threshold,
                max_detections=max_detections,
                max_detections_per_class=max_detections,
            ),
            name=name,
            trainable=trainable,
        )
        self.class_names, self.image_size = tuple(class_names), image_size
        self.fpn_channels, self.fpn_norm = fpn_channels, fpn_norm
        self.head_channels, self.head_convs = head_channels, head_convs
        self.anchor_scale, self.freeze_norm = anchor_scale, freeze_norm
        self.score_threshold, self.nms_iou, self.max_detections = score_threshold, nms_iou, max_detections
        if freeze_norm:
            _freeze_norms(backbone)

    def compile(self, optimizer, **kwargs):
        """Focal and smooth L1 loss, KerasCV's; no XLA, which its label encoder and NMS do not gain from."""
        defaults = {"classification_loss": "focal", "box_loss": "smoothl1", "jit_compile": False}
        super().compile(optimizer=optimizer, **(defaults | kwargs))
        # Left to the first step, the creation of its variables has Keras trace that step twice.
        self.optimizer.build(self.trainable_variables)

    def call(self, inputs, training=None, mask=None):
        # KerasCV's steps pass the bare images where its graph has a dict; Keras would warn at every trace.
        inputs = inputs if isinstance(inputs, dict) else {"images": inputs}
        return super().call(inputs, training=training, mask=mask)

    def predict_step(self, data):
        """Detections of a batch; KerasCV's own takes labels for images where a dataset has both."""
        images = _images_of(data)
        return self.decode_predictions(self(images, training=False), images)

    def get_config(self):
        return {
            "backbone": keras.saving.serialize_keras_object(self.backbone),
            "class_names": list(self.class_names),
            "image_size": self.image_size,
            "fpn_channels": self.fpn_channels,
            "fpn_norm": self.fpn_norm,
            "head_channels": self.head_channels,
            "head_convs": self.head_convs,
            "anchor_scale": self.anchor_scale,
            "freeze_norm": self.freeze_norm,
            "score_threshold": self.score_threshold,
            "nms_iou": self.nms_iou,
            "max_detections": self.max_detections,
            "name": self.name,
            "trainable": self.trainable,
        }

    @classmethod
    def from_config(cls, config):
        return cls(**{**config, "backbone": keras.saving.deserialize_keras_object(config["backbone"])})

    def get_compile_config(self):
        """None: a saved detector carries no optimizer."""
        return None


@keras.saving.register_keras_serializable("dupr_tf")
class FeaturePyramid(keras.layers.Layer):
    """Feature Pyramid Networks (Lin et al., 2017) as RetinaNet has it: P3, P4, P5 in, P3 … P7 out.

    Args:
        channels: of every level that comes out.
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
    """Convolutions shared by all levels: `convs` with ReLU, then one that predicts (Lin et al., 2018, section 4.1).

    Args:
        filters: channels of the prediction.
        channels: channels of the convolutions before it.
        convs: how many of them.
        bias: initial bias of the prediction; for classes the logit of the prior probability of an object.
    """

    def __init__(self, filters, channels, convs, bias=0.0, **kwargs):
        super().__init__(**kwargs)
        self.filters, self.channels, self.convs, self.bias = filters, channels, convs, bias
        self.hidden = [self._conv(channels, activation="relu", name=f"conv{i}") for i in range(convs)]
        self.prediction = self._conv(filters, bias_initializer=keras.initializers.Constant(bias), name="prediction")

    def _conv(self, filters, **kwargs):
        # Deviation 0.01 where 256 channels come in, as in the paper; narrower heads keep what that does to the signal,
        # which 0.01 would halve in every layer at 64 channels.
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


def build_retinanet(backbone, class_names, config):
    """A RetinaNet as `config.detector` and `config.data.image_size` describe it."""
    detector = config.detector
    return RetinaNet(
        backbone,
        class_names,
        config.data.image_size,
        fpn_channels=detector.fpn_channels,
        fpn_norm=detector.fpn_norm,
        head_channels=detector.head_channels,
        head_convs=detector.head_convs,
        anchor_scale=detector.anchor_scale or 4.0,
        freeze_norm=detector.norm == "frozen",
        score_threshold=detector.score_threshold,
        nms_iou=detector.nms_iou,
        max_detections=detector.max_detections,
    )


def save_detector(detector, path):
    """Writes a `.keras` file without the optimizer's state; `load_detector` reads it."""
    copy = RetinaNet.from_config(detector.get_config())
    copy.set_weights(detector.get_weights())
    copy.save(path)


def load_detector(path):
    """Reads a `.keras` file of `save_detector`, or of a folder that `finetune` wrote.

    Raises:
        ValueError: there is none, or it is another kind of model.
    """
    file = Path(path)
    file = file / "detector.keras" if file.is_dir() else file
    if not file.is_file() or file.suffix != ".keras":
        raise ValueError(f"Expected a detector (.keras, or a folder of finetune), received {path}. Fix: the path")
    model = read_keras(file)
    if not isinstance(model, RetinaNet):
        raise ValueError(f"Expected a RetinaNet, received {file} ({type(model).__name__}). Fix: a detector.keras")
    return model


def export_detector(detector, path):
    """Writes a SavedModel that gives the same detections as `predict`, without Keras.

    Functions of the loaded object. The first two return `boxes` (B, M, 4) float32 x1 y1 x2 y2, `classes` (B, M)
    int32, `scores` (B, M) float32 and `num_detections` (B,) int32, rows from there on being -1:
        serve (and the signature `serving_default`): images (B, H, W, 3) uint8 of any size, boxes in their pixels;
        serve_square: images (B, S, S, 3) float32 in 0–255, letterboxed already;
        class_names: takes nothing, returns (classes,) strings.
    """
    size = detector.image_size

    @tf.function(input_signature=[tf.TensorSpec((None, size, size, 3), tf.float32, "images")], autograph=False)
    def serve_square(images):
        found = detector.decode_predictions(detector(images, training=False), images)
        return {
            "boxes": found["boxes"],
            "classes": tf.cast(found["classes"], tf.int32),
            "scores": found["confidence"],
            "num_detections": found["num_detections"],
        }

    @tf.function(input_signature=[tf.TensorSpec((None, None, None, 3), tf.uint8, "images")], autograph=False)
    def serve(images):
        square, scale = letterbox(images, size)
        found = serve_square(square)
        height, width = (tf.cast(side, tf.float32) for side in tf.unstack(tf.shape(images)[1:3]))
        boxes = tf.clip_by_value(found["boxes"] / scale, 0.0, tf.stack([width, height, width, height]))
        return {**found, "boxes": tf.where(found["classes"][..., None] >= 0, boxes, -1.0)}

    module = tf.Module()
    module.weights = [variable.value for variable in detector.variables]
    module.serve, module.serve_square = serve, serve_square
    module.class_names = tf.function(lambda: tf.constant(detector.class_names), input_signature=[])
    # Keras' ExportArchive gives the same in twice the time.
    tf.saved_model.save(module, str(path), signatures={"serving_default": serve})


def _anchors(scale):
    """KerasCV's default anchors where `scale` is 4: at every cell three sizes times three shapes."""
    strides = [2**level for level in range(3, 8)]
    return keras_cv.layers.AnchorGenerator(
        bounding_box_format=BOX_FORMAT,
        sizes=[float(scale * stride) for stride in strides],
        scales=[2 ** (third / 3) for third in range(3)],
        aspect_ratios=[0.5, 1.0, 2.0],
        strides=strides,
        clip_boxes=True,
    )


def _images_of(data):
    if isinstance(data, tuple | list):
        data = data[0]
    return data["images"] if isinstance(data, dict) else data


def _doubled(features):
    """Nearest-neighbour upsampling by 2."""
    return keras.ops.repeat(keras.ops.repeat(features, 2, axis=1), 2, axis=2)


def _freeze_norms(backbone):
    for layer in backbone._flatten_layers():
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.trainable = False
