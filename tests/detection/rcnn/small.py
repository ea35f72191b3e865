"""A backbone and detectors of a few channels, whose graphs are traced quickly."""

import keras
import numpy as np
import tensorflow as tf

from dupr_tf.detection.rcnn import FasterRCNN, MaskRCNN
from dupr_tf.models.layers import FusedBatchNormalization

NAMES = ("bus", "cat", "dog")
KINDS = {"faster": FasterRCNN, "mask": MaskRCNN}
ARGUMENTS = {
    "fpn_channels": 8,
    "head_channels": 8,
    "head_convs": 1,
    "box_head_width": 16,
    "anchor_scale": 4.0,
    "rpn_pre_nms": (100, 60),
    "rpn_post_nms": (40, 20),
    "rois_per_image": 16,
    "score_threshold": 0.28,
    "max_detections": 30,
}


@keras.saving.register_keras_serializable("dupr_tf_tests")
class ChainBackbone(keras.Model):
    """P2 to P5 from one convolution with batch normalisation each; every level is computed from the previous one."""

    def __init__(self, channels=8, around=False, name="chain", trainable=True):
        x = images = keras.Input((None, None, 3), name="images")
        x = keras.layers.Rescaling(1 / 127.5, offset=-1)(x)
        for i, level in enumerate(("P2", "P3", "P4", "P5")):
            # XNNPACK, which LiteRT uses, returns zeros for kernels narrower than the stride with "same" padding.
            kernel, stride = (4, 4) if i == 0 else (3, 2)
            x = keras.layers.Conv2D(channels, kernel, stride, padding="same", use_bias=False, name=f"conv{i}")(x)
            x = FusedBatchNormalization(momentum=0.5, name=f"bn{i}")(x)
            if around and level == "P5":  # a path from the image that bypasses P4
                x = keras.layers.Add()([x, keras.layers.Conv2D(channels, 3, 32, padding="same")(images)])
            x = keras.layers.Activation("relu", name=level)(x)
            channels += 4
        super().__init__(images, x, name=name, trainable=trainable)
        self.around, self.first = around, channels - 16
        self.pyramid_level_inputs = {level: level for level in ("P2", "P3", "P4", "P5")}

    def get_config(self):
        return {"channels": self.first, "around": self.around, "name": self.name}

    @classmethod
    def from_config(cls, config, custom_objects=None):
        return cls(**config)


def make(kind, neck, **arguments):
    """Returns a detector with randomly moved weights, as after training, so that detections differ."""
    keras.utils.set_random_seed(1)
    backbone = arguments.pop("backbone", None) or ChainBackbone()
    detector = KINDS[kind](backbone, NAMES, neck=neck, **(ARGUMENTS | arguments))
    heads = [*detector.rpn.weights, *detector.predictor.weights]
    heads += detector.mask_head.weights if kind == "mask" else []
    for seed, variable in enumerate(heads):
        variable.assign(keras.random.normal(variable.shape, stddev=0.3, seed=seed))
    return detector


def batch(kind, images=2, height=64, width=96, things=None, rows=3, sizes=None):
    """Returns a batch; `things` is a list of (box, class) for each image."""
    rng = np.random.default_rng(0)
    things = things if things is not None else [[((8, 8, 60, 50), 1), ((50, 20, 90, 60), 0)]] * images
    boxes, classes = np.full((images, rows, 4), -1, np.float32), np.full((images, rows), -1, np.float32)
    for i, image in enumerate(things):
        for j, (box, label) in enumerate(image):
            boxes[i, j], classes[i, j] = box, label
    labels = {"boxes": boxes, "classes": classes}
    if kind == "mask":
        labels["masks"] = (rng.uniform(size=(images, rows, 56, 56)) > 0.3).astype(np.float32)
    pixels = rng.uniform(0, 255, (images, height, width, 3)).astype(np.float32)
    sizes = np.array(sizes or [(height, width)] * images, np.float32)
    return tf.nest.map_structure(
        tf.convert_to_tensor, {"images": pixels, "bounding_boxes": labels, "image_sizes": sizes}
    )
