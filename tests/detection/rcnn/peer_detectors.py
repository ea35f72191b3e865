"""Makes the detectors and batches that are compared with other libraries."""

from __future__ import annotations

import keras
import numpy as np
import tensorflow as tf

from dupr_tf.models.layers import norm_layers
from dupr_tf.models.resnet import ResNetBackbone, build_backbone
from tests.detection.rcnn.small import KINDS, NAMES
from tests.detection.test_overfit import batch_of, ellipse, photos
from tests.weights.backbones import randomised

IMAGES, SIZE, STEPS = 4, 160, 40
SIZES = ((160, 160), (128, 160), (160, 96), (131, 150))  # unpadded parts of the images
ARGUMENTS = {
    "fpn_channels": 64,
    "head_channels": 32,
    "head_convs": 2,
    "box_head_width": 128,
    "anchor_scale": 4.0,
    "rpn_pre_nms": (500, 300),
    "rpn_post_nms": (150, 100),
    "rois_per_image": 64,
}
# torchvision has no narrower ResNet. detectron2's head on res4 is of bottleneck blocks, and each region costs three.
BACKBONES = {"fpn": {"architecture": "resnet18"}, "c4": {"architecture": "resnet50", "width": 0.125}}
NECKS = {"fpn": {}, "c4": {"rois_per_image": 16}}


def noise(kind, neck):
    """Returns a detector with random weights that differ everywhere, and a batch of noise with random boxes."""
    detector = KINDS[kind](
        randomised(**BACKBONES[neck], include_normalization=True), NAMES, neck=neck, **(ARGUMENTS | NECKS[neck])
    )
    rng = np.random.default_rng(0)
    heads = [*detector.rpn.weights, *detector.predictor.weights]
    heads += detector.regions.weights if neck == "fpn" else []
    heads += detector.mask_head.weights if kind == "mask" else []
    for variable in heads:
        scale = np.prod(variable.shape[:-1]) ** -0.5 if len(variable.shape) > 1 else 0.1
        scale *= 0.3 if "deltas" in variable.path else 1.0  # boxes do not reach far beyond the image
        variable.assign(rng.normal(0, scale, variable.shape))
    if neck == "c4":
        detector.regions.norm.set_weights(rng.uniform(0.5, 1.5, (4, *detector.regions.norm.gamma.shape)))
    boxes = np.full((IMAGES, 5, 4), -1, np.float32)
    for i, size in enumerate(SIZES):
        corners = np.sort(rng.uniform(0, 1, (i + 2, 2, 2)), 1) * size[::-1]
        corners[:, 1] += 6  # no box is narrower
        boxes[i, : i + 2] = corners.reshape(-1, 4)
    classes = np.where(boxes[..., 2] > 0, rng.integers(0, 3, boxes.shape[:2]), -1)
    data = rng.uniform(0, 255, (IMAGES, SIZE, SIZE, 3)), np.array(SIZES), boxes, classes
    _measure_norms(detector, as_batch(*data))
    return detector, *data


def _measure_norms(detector, batch):
    """Gives the norms the statistics of a batch, so that features keep their size at test."""
    for layer in norm_layers(detector):
        layer.momentum = 0.0
    detector.losses(batch, training=True)
    for layer in norm_layers(detector):
        layer.momentum = 0.9


def trained(kind, neck):
    """Returns a detector that was fine-tuned for a minute on eight photos, and four of the photos."""
    keras.utils.set_random_seed(0)
    images, annotated = photos()
    backbone = build_backbone(**BACKBONES[neck], include_normalization=True)
    detector = KINDS[kind](backbone, annotated.class_names, neck=neck, **(ARGUMENTS | NECKS[neck]))
    detector.compile(keras.optimizers.AdamW(5e-4, global_clipnorm=10.0))
    batch = batch_of(images, annotated)
    batches = tf.data.Dataset.from_tensor_slices(batch).repeat().batch(4).take(STEPS)
    detector.fit(batches, verbose=0, shuffle=False)
    few = tf.nest.map_structure(lambda x: x[:IMAGES], batch)
    labels = few["bounding_boxes"]
    return detector, few["images"], np.full((IMAGES, 2), SIZE), labels["boxes"], labels["classes"]


def in_float64(detector):
    """Returns a detector with the same weights whose layers compute in float64. Its losses and boxes stay float32."""
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy("float64")
    try:
        backbone = ResNetBackbone.from_config({**detector.backbone.get_config(), "dtype": "float64"})
        settings = {name: getattr(detector, name) for name in detector.SETTINGS}
        settings["norm"] = "sync"  # without Keras' own code, which is used then, norms of a batch have no float64
        twin = type(detector)(backbone, detector.class_names, **settings)
    finally:
        keras.config.set_dtype_policy(before)
    twin.set_weights(detector.get_weights())
    return twin


def as_batch(images, sizes, boxes, classes):
    masks = np.broadcast_to(ellipse(56), (*classes.shape, 56, 56))
    labels = {"boxes": boxes, "classes": classes, "masks": masks}
    batch = {"images": images, "image_sizes": sizes, "bounding_boxes": labels}
    return tf.nest.map_structure(lambda x: tf.constant(x, tf.float32), batch)


def whole_masks(boxes):
    """Returns (n, SIZE, SIZE) uint8: the ellipse of each box in the image."""
    x1, y1, x2, y2 = np.split(boxes[..., None], 4, 1)
    y, x = np.mgrid[:SIZE, :SIZE][:, None] + 0.5
    return (((2 * x - x1 - x2) / (x2 - x1)) ** 2 + ((2 * y - y1 - y2) / (y2 - y1)) ** 2 <= 1).astype(np.uint8)
