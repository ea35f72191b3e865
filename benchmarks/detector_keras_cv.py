"""Times KerasCV's RetinaNet as its users train it."""

from __future__ import annotations

import keras
import keras_cv

from benchmarks.detector_arrays import CLASSES, objects
from benchmarks.detector_ours import steps_of


def build(size, batch):
    """Builds its default: pyramid without norm, heads of three convolutions and a prediction, its own ResNet-18."""
    keras.utils.set_random_seed(0)
    backbone = keras_cv.models.ResNetBackbone(
        stackwise_filters=[64, 128, 256, 512],
        stackwise_blocks=[2, 2, 2, 2],
        stackwise_strides=[1, 2, 2, 2],
        block_type="basic_block",
        include_rescaling=True,
        input_shape=(size, size, 3),
    )
    detector = keras_cv.models.RetinaNet(num_classes=CLASSES, bounding_box_format="xyxy", backbone=backbone)
    optimizer = keras.optimizers.SGD(1e-4, momentum=0.9, global_clipnorm=10.0)
    detector.compile(optimizer=optimizer, classification_loss="focal", box_loss="smoothl1", jit_compile=False)
    batch = objects(size, batch, masks=False)
    del batch["image_sizes"]  # its graph takes only images
    return steps_of(detector, batch)
