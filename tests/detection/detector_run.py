"""Takes steps of a detector by `fit` on N logical devices and saves the results.

    python -m tests.detection.detector_run DEVICES KIND OUTPUT.npz

It runs in a separate process, because logical devices are set before TensorFlow starts and one process holds one
strategy.
"""

import sys

import keras
import numpy as np
import tensorflow as tf

from dupr_tf.config import parse_config
from dupr_tf.detection.precise_bn import measure_norms
from dupr_tf.detection.registry import build_detector
from dupr_tf.models.layers import norm_layers
from dupr_tf.models.resnet import build_backbone
from dupr_tf.training.distribution import scope
from dupr_tf.training.optimizers import CoupledSGD

NAMES = ("bus", "cat", "dog")


def batches():
    """Yields two batches of different sizes. Their halves have equal numbers of boxes: a mean of means is the mean."""
    rng = np.random.default_rng(0)
    boxes = np.array([[[8, 8, 40, 40], [20, 10, 60, 50]], [[4, 4, 30, 44], [-1] * 4]], np.float32)
    classes = np.array([[0, 1], [2, -1]], np.float32)
    for height, width in ((64, 96), (96, 64)):
        images = np.tile(rng.uniform(0, 255, (2, height, width, 3)), (2, 1, 1, 1)).astype(np.float32)
        yield {
            "images": images + rng.uniform(0, 9, images.shape).astype(np.float32),
            "image_sizes": np.array([[height, width]] * 4, np.float32),
            "bounding_boxes": {"boxes": np.tile(boxes, (2, 1, 1)), "classes": np.tile(classes, (2, 1))},
            "segments": np.tile(rng.integers(0, 3, (2, height, width)), (2, 1, 1)).astype(np.int32),
        }


def dataset(kind):
    kept = [
        {k: v for k, v in one.items() if k != ("bounding_boxes" if kind == "fcn" else "segments")} for one in batches()
    ]

    def spec(value):
        picture = value.ndim >= 3 and value.shape[1] > 2
        return tf.TensorSpec((4, None, None, *value.shape[3:]) if picture else value.shape, value.dtype)

    return tf.data.Dataset.from_generator(lambda: kept, output_signature=tf.nest.map_structure(spec, kept[0]))


def main(devices, kind, output):
    cpu = tf.config.list_physical_devices("CPU")[0]
    tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * devices)
    strategy = tf.distribute.MirroredStrategy([f"CPU:{i}" for i in range(devices)]) if devices > 1 else None
    section = {"kind": kind, "norm": "sync", "fpn_channels": 8, "head_channels": 8, "head_convs": 1}
    config = parse_config({"detector": section if kind == "fcn" else {**section, "short_sides": [64]}})
    keras.utils.set_random_seed(1)
    with scope(strategy):
        backbone = build_backbone("resnet18", width=0.125, include_normalization=True)
        detector = build_detector(backbone, NAMES, config)
        detector.compile(CoupledSGD(0.01))
    logs = detector.fit(dataset(kind), steps_per_epoch=2, verbose=0, shuffle=False).history
    values = {f"weight_{i}": weight.numpy() for i, weight in enumerate(detector.trainable_variables)}
    values |= {f"mean_{i}": layer.moving_mean.numpy() for i, layer in enumerate(norm_layers(detector))}
    measure_norms(detector, dataset(kind))
    values |= {f"precise_{i}": layer.moving_mean.numpy() for i, layer in enumerate(norm_layers(detector))}
    np.savez(output, **values, **{f"log_{name}": value for name, value in logs.items()})


if __name__ == "__main__":
    main(int(sys.argv[1]), *sys.argv[2:])
